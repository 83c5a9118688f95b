"""Whether mail flows, and what is wrong: what somebody who was woken needs first.
Standard: what is said can be seen in /metrics as well; each trouble names what to do (relay/counting/alarms.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.counting import metrics
from relay.status.page import words
from relay.status.page.now import Now
from relay.status.record import RECENT_S

State = Literal["good", "quiet", "warning", "bad"]
DIRECTIONS = ("outgoing", "incoming")
THROUGH = ("delivered", "inside", "repeated")
STUCK_S = 60.0
"""One mail that is held between two that go is no reason to say that none does."""
MINUTES = f"{RECENT_S / 60:.0f} minutes"
_WARNINGS = (
    "certificate_ends",
    "keys_run_low",
    "mail_put_aside",
    "quarantine_grows",
    "policy_broken",
    "clear_text",
    "clock_jumped",
)
"""Alarms that can wait for the morning."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line, and one more."""

    state: State
    line: str
    more: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is wrong, or will be; `do` has commands between backticks, `since` is in seconds since 1970."""

    state: Literal["warning", "bad"]
    what: str
    do: str
    alarm: str = ""
    since: float | None = None


def verdict(now: Now) -> Verdict:
    """Whether mail flows."""
    if now.causes:
        return Verdict("bad", "All mail is held", "; ".join(now.causes))
    for each in now.past.standing:
        if each.alarm.name == "shadow_mode":
            return Verdict("bad", "No outgoing mail is sealed", each.public_cause)
    recent = now.past.recent[metrics.MAILS]
    through, refused = (
        sum(number for labels, number in recent.items() if labels[-1] in outcomes)
        for outcomes in (THROUGH, ("refused",))
    )
    waiting = now.sum(metrics.HELD_RECIPIENTS)
    held = f"mail to {words.many(waiting, 'recipient')} is held" if waiting else "nothing is held"
    counts = f"{through:,.0f} delivered, {refused:,.0f} refused in the last {MINUTES}; {held}"
    stuck = [each for each in DIRECTIONS if _stuck(now, each)]
    if stuck:
        which = "No mail" if len(stuck) == len(DIRECTIONS) else f"No {stuck[0]} mail"
        return Verdict("bad", f"{which} gets through", f"{counts}; what is held stays in the queue of who sent it")
    if waiting or refused:
        return Verdict("warning", "Mail flows, but not all of it", counts)
    if through:
        return Verdict("good", "Mail flows", counts)
    return Verdict("quiet", "Ready, and no mail comes", f"none in the last {MINUTES}; {held}")


def _stuck(now: Now, direction: str) -> bool:
    """What came last was held, and for a while nothing has gone."""
    held, through = now.last(direction, "held"), now.last(direction, *THROUGH)
    return held < min(RECENT_S, through) and through > STUCK_S


def troubles(now: Now) -> list[Trouble]:
    """All that is wrong, the worst first, and of that what began last."""
    found = [
        Trouble("bad", f"Not ready: {cause}", "`qumail-relay check` says more. What is held comes again by itself.")
        for cause in now.causes
    ]
    for each in sorted(now.past.standing, key=lambda each: -each.since):
        name = each.alarm.name
        state: Literal["warning", "bad"] = "warning" if name in _WARNINGS else "bad"
        found.append(Trouble(state, each.public_cause, each.alarm.what_to_do, name, each.since))
    if now.past.trouble:
        cause = f"The history is not written: {now.past.trouble}"
        found.append(Trouble("warning", cause, "`qumail-relay check` looks at the store."))
    return sorted(found, key=lambda each: each.state != "bad")
