"""How two sets decide about one mail, and which way a difference goes.
Standard: what is weaker is what outcomes.py calls so; sizes that limits can tell apart are looked at one by one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NamedTuple

from relay.errors import RelayError
from relay.policy.comparing.outcomes import HELD, TriedLevels, weaker
from relay.policy.comparing.time_limit import check_time
from relay.policy.content import MessageFacts
from relay.policy.decide import Decision, PolicySet
from relay.policy.settings import today

Direction = Literal["down", "let go", "stopped", "other", "up"]
"""Of what leaves, or stops to leave: what is weaker anywhere counts as down."""

ORDER: tuple[Direction, ...] = ("down", "let go", "stopped", "other", "up")
"""The most important first."""
WEAKER: frozenset[Direction] = frozenset({"down", "let go"})
ARRIVING = "arriving"
"""What the message of a difference begins with that is about mail from the recipients."""
_COMPARED = ("levels", "peer", "quantum", "kem", "max_size", "otherwise", "impossible", "hold_for", "priority")


class ExampleMail(NamedTuple):
    """The mail that shows a difference: the SMTP envelope, the message, and the day on which it is decided about."""

    sender: str
    recipient: str
    content: MessageFacts
    day: date


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of recipient whose mail the two sets treat otherwise, with a mail that shows it.

    `before` and `after` are None where the mail is held because nothing covers it. `changed` says what is otherwise.
    """

    recipients: str
    sender: str
    message: str
    before: Decision | None
    after: Decision | None
    changed: tuple[str, ...]
    direction: Direction
    senders: str = ""
    """Whose mail it is: all of whom something was tried, all but a few of them, or those few."""
    alone: bool = False
    """It is about one recipient, and not about all of their kind."""
    sample: ExampleMail | None = None
    """The mail that shows it; None where it is not about one mail."""

    @property
    def weaker(self) -> bool:
        """Whether something that leaves is weaker, or leaves only now."""
        return self.direction in WEAKER

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "recipients": self.recipients,
            "sender": self.sender,
            "senders": self.senders,
            "message": self.message,
            "before": list(self.before.levels) if self.before else None,
            "after": list(self.after.levels) if self.after else None,
            "in_clear": bool(self.after and self.after.in_clear),
            "changed": list(self.changed),
            "direction": self.direction,
        }


class Look(NamedTuple):
    """What two sets decide about a mail of one size in bytes."""

    sample: ExampleMail
    before: Decision | None
    after: Decision | None
    changed: tuple[str, ...]
    direction: Direction


def look(old: PolicySet, new: PolicySet, sender: str, recipient: str, mails: Iterable[MessageFacts]) -> list[Look]:
    """What is otherwise, each change once: where it goes furthest down, of mails that differ in their size alone."""
    found: dict[tuple[str, ...], Look] = {}
    for content in mails:
        before, after = (_decide(policies, sender, recipient, content) for policies in (old, new))
        if changed := _changed(before, after):
            way = direction(*(outcome_of(each, content.sealed_size) for each in (before, after)))
            known = found.get(changed)
            if known is None or ORDER.index(way) < ORDER.index(known.direction):
                found[changed] = Look(ExampleMail(sender, recipient, content, today()), before, after, changed, way)
    return list(found.values())


def outcome_of(decision: Decision | None, size: int) -> TriedLevels:
    """What a decision comes to for a message of this size in bytes, as far as strength goes."""
    if decision is None or decision.hopeless(size):
        return HELD
    levels = tuple(level for level in decision.levels if not decision.too_big(level, size))
    peer = None if decision.in_clear else decision.peer
    return TriedLevels(levels, decision.quantum, decision.kem, peer, decision.priority)


def direction(before: TriedLevels, after: TriedLevels) -> Direction:
    """Which way it goes."""
    if weaker(after, before):
        return "let go" if before.held else "down"
    if after.held and not before.held:
        return "stopped"
    return "up" if weaker(before, after) else "other"


def _decide(policies: PolicySet, sender: str, recipient: str, content: MessageFacts) -> Decision | None:
    check_time()
    try:
        return policies.decide(sender, recipient, content)
    except RelayError:
        return None


def _changed(before: Decision | None, after: Decision | None) -> tuple[str, ...]:
    if before is None or after is None:
        if before is after:
            return ()
        return (f"{_shown(after)} instead of {_shown(before)}",)
    values = ((name, getattr(before, name), getattr(after, name)) for name in _COMPARED)
    return tuple(f"{name}: {_text(now)} instead of {_text(was)}" for name, was, now in values if was != now)


def _shown(decision: Decision | None) -> str:
    return "held" if decision is None else ", then ".join(decision.levels)


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value) or "none"
    return "none" if value is None else str(value)
