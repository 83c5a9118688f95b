"""The overall state: whether mail flows, and what is wrong.
Derived only from active alarms (relay/counting/alarms.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from relay.counting import amounts, metrics
from relay.counting.alarms import ALARMS
from relay.keys.development import NOT_QUANTUM
from relay.status.active_alarms import ActiveAlarm
from relay.status.page.now import Now
from relay.status.record import RECENT_S
from relay.status.rules import THROUGH

State = Literal["good", "quiet", "warning", "bad"]
DIRECTIONS = ("outgoing", "incoming")
MINUTES = f"{RECENT_S / 60:.0f} minutes"
_ORDER = {name: place for place, name in enumerate(ALARMS)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The overall state, as one line and a second one."""

    state: State
    line: str
    more: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """An active alarm; `do` has commands in backticks, `since` is a Unix time."""

    state: State
    line: str
    what: str
    do: str
    alarm: str
    since: float


def state_of(active: ActiveAlarm) -> State:
    """An alarm's severity on the page."""
    return "bad" if active.alarm.severity == "critical" else "warning"


def verdict(now: Now) -> Verdict:
    """The overall state, by the most severe active alarm."""
    recent = now.past.recent[metrics.MAILS]
    through, refused = (
        sum(number for labels, number in recent.items() if labels[-1] in outcomes)
        for outcomes in (THROUGH, ("refused",))
    )
    waiting = now.sum(metrics.HELD_RECIPIENTS)
    held = f"mail to {amounts.many(waiting, 'recipient')} is held" if waiting else "nothing is held"
    if now.development:
        held += f"; {NOT_QUANTUM}"
    counts = f"{through:,.0f} delivered, {refused:,.0f} refused in the last {MINUTES}; {held}"
    if found := _worst_first(now):
        worst = found[0]
        more = f"{len(found) - 1} more below; {counts}" if len(found) > 1 else counts
        return Verdict(state_of(worst), worst.alarm.line(worst.about), more)
    flows = bool(through or waiting or refused)
    line = "Mail flows" if flows else "Ready, and no mail comes"
    more = counts if flows else f"none in the last {MINUTES}; {held}"
    if now.development:
        return Verdict("warning", f"{line}, NOT QUANTUM", more)
    return Verdict("good" if flows else "quiet", line, more)


def troubles(now: Now) -> list[Trouble]:
    """All active alarms, the most severe first, of the same severity the latest first."""
    return [
        Trouble(
            state_of(each), each.alarm.line(each.about), each.public_cause, each.alarm.what_to_do, each.alarm.name,
            each.since,
        )
        for each in _worst_first(now)
    ]  # fmt: skip


def _worst_first(now: Now) -> list[ActiveAlarm]:
    def rank(each: ActiveAlarm) -> tuple[bool, bool, int, float]:
        alarm = each.alarm
        return not alarm.not_ready, alarm.severity != "critical", _ORDER[alarm.name], -each.since

    return sorted(now.past.active, key=rank)
