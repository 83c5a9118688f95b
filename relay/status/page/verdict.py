"""Whether mail flows, and what is wrong: what somebody who was woken needs first.
Standard: what is said can be seen in /metrics as well; each trouble names what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from relay.counting import Metric, metrics
from relay.status.page import words
from relay.status.page.now import Now
from relay.status.record import RECENT_S

State = Literal["good", "quiet", "warning", "bad"]
DIRECTIONS = ("outgoing", "incoming")
THROUGH = ("delivered", "inside", "repeated")
STUCK_S = 60.0
"""One mail that is held between two that go is no reason to say that none does."""
CERTIFICATE_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line, and one more."""

    state: State
    line: str
    more: str


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something is wrong, or will be; `do` has commands between backticks."""

    state: Literal["warning", "bad"]
    what: str
    do: str


def verdict(now: Now) -> Verdict:
    """Whether mail flows."""
    if now.causes:
        return Verdict("bad", "All mail is held", "; ".join(now.causes))
    recent = now.past.recent[metrics.MAILS]
    through, held, refused = (
        sum(number for labels, number in recent.items() if labels[-1] in outcomes)
        for outcomes in (THROUGH, ("held",), ("refused",))
    )
    minutes = f"in the last {RECENT_S / 60:.0f} minutes"
    counts = f"{through:,.0f} delivered, {held:,.0f} held, {refused:,.0f} refused {minutes}"
    stuck = [each for each in DIRECTIONS if _stuck(now, each)]
    if stuck:
        which = "No mail" if len(stuck) == len(DIRECTIONS) else f"No {stuck[0]} mail"
        return Verdict("bad", f"{which} gets through", f"{counts}; the senders' queues keep what is held")
    if held or refused:
        return Verdict("warning", "Mail flows, but not all of it", counts)
    if through:
        return Verdict("good", "Mail flows", counts)
    return Verdict("quiet", "Ready, and no mail comes", f"none {minutes}")


def _stuck(now: Now, direction: str) -> bool:
    """What came last was held, and for a while nothing has gone."""
    held, through = now.last(direction, "held"), now.last(direction, *THROUGH)
    return held < min(RECENT_S, through) and through > STUCK_S


def troubles(now: Now) -> list[Trouble]:
    """All that is wrong, the worst first."""
    found = [*_of_the_relay(now), *_of_mail(now), *_of_keys(now), *_of_what_ends(now)]
    return sorted(found, key=lambda each: each.state != "bad")


def _of_mail(now: Now) -> Iterator[Trouble]:
    for direction in (each for each in DIRECTIONS if _stuck(now, each)):
        reasons = {
            reason: more
            for (way, reason), more in now.past.recent[metrics.FAILURES].items()
            if way == direction and more
        }
        for reason in sorted(reasons, key=lambda each: -reasons[each])[:3]:
            meaning = words.reason(reason) or reason
            yield Trouble("bad", f"{direction.capitalize()} mail is held: {meaning}", _remedy(reason))


def _remedy(reason: str) -> str:
    if reason in ("PolicyHolds", "CannotSeal", "KEMUnavailable"):
        return "`qumail-relay policy explain SENDER RECIPIENT` says what would be needed."
    if reason.startswith(("KME", "Key", "NotAsked", "Ambiguous")):
        return "`qumail-relay keys status` shows which keys there are, `qumail-relay check` asks the KMEs."
    if reason.startswith("NextHop"):
        return "`qumail-relay check` tries the next hop. Is the mail server there up, and what does its log say?"
    return (
        "`qumail-relay check` looks at everything; the log has each mail: `not_sealed`, `copy_not_delivered`, `held`."
    )


def _of_the_relay(now: Now) -> Iterator[Trouble]:
    for cause in now.causes:
        yield Trouble("bad", cause, "`qumail-relay check` says more. What is held comes again by itself.")
    if tripped := _recent(now, metrics.TRIPWIRE):
        yield Trouble(
            "bad",
            f"{tripped:,.0f} mails were about to leave otherwise than policy wants, and were held",
            "A fault of the relay: keep the mail and the log's `tripwire` lines, and report it.",
        )
    if failed := _recent(now, metrics.LEDGER_FAILURES):
        yield Trouble(
            "bad",
            f"{failed:,.0f} lines could not be written into the ledger, and their mails were held",
            "`qumail-relay check` says why: rights, or a full disk.",
        )
    if problems := now.value(metrics.POLICY_PROBLEMS):
        yield Trouble(
            "warning",
            f"The policy files are wrong ({problems:.0f} faults); those from before are in force",
            "`qumail-relay policy check` names file and line.",
        )
    limit, taken = now.value(metrics.QUARANTINE_LIMIT), now.value(metrics.QUARANTINE_BYTES)
    if limit and taken and taken > 0.8 * limit:
        yield Trouble(
            "warning",
            f"The quarantine is {taken / limit:.0%} full; mail that finds no room is held",
            "Release or drop what lies there: `qumail-relay quarantine list`.",
        )
    if now.past.trouble:
        yield Trouble(
            "warning", f"The history is not written: {now.past.trouble}", "`qumail-relay check` looks at the store."
        )


def _of_keys(now: Now) -> Iterator[Trouble]:
    for (kme, call), state in now.series(metrics.KME_BREAKER):
        if state == 2:
            yield Trouble(
                "bad",
                f"KME {kme} does not answer {call}, and is left alone for a while",
                "`qumail-relay check` asks it and says what is wrong: address, certificates, or its own fault.",
            )
    for (kme,), withheld in now.series(metrics.KEYS_WITHHELD):
        if withheld:
            yield Trouble(
                "bad",
                f"No keys are drawn of KME {kme}, as the store cannot remember them",
                "`qumail-relay check` looks at the store.",
            )
    for (kme, peer), alarm in now.series(metrics.KEY_ALARM):
        if alarm:
            left = words.duration(now.value(metrics.KEYS_EMPTY, kme, peer) or 0)
            yield Trouble(
                "bad",
                f"The keys of KME {kme} for {peer} are gone in {left} at the present rates",
                "`qumail-relay keys status` shows who uses them; less otp, or a faster link: `qumail-relay keys plan`.",
            )


def _of_what_ends(now: Now) -> Iterator[Trouble]:
    for (of, name), ends in now.series(metrics.CERTIFICATE):
        left = ends - now.time
        if left < CERTIFICATE_S:
            what = f"The certificate {of} {name}".rstrip()
            end = "has ended" if left <= 0 else f"ends in {words.duration(left)}"
            yield Trouble("bad" if left < CERTIFICATE_S / 10 else "warning", f"{what} {end}", _renew(of))
    if ends_soon := now.value(metrics.POLICY_ENDS):
        yield Trouble(
            "warning",
            f"{ends_soon:.0f} policy files or rules end within two weeks, or have ended",
            "`qumail-relay policy check` names them.",
        )


def _renew(of: str) -> str:
    return {
        "site": "Make a new one with `qumail-relay identity new`, and give each peer the document.",
        "peer": "Ask the peer for their new document: `qumail-relay identity import`.",
    }.get(of, "Put a new one in its place; SIGHUP reads it (`systemctl reload qumail-relay`).")


def _recent(now: Now, metric: Metric) -> float:
    return sum(now.past.recent[metric].values())
