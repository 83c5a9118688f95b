"""How two sets decide about one mail, and the direction of a difference.
Standard: weaker is defined in outcomes.py; sizes that limits distinguish are checked one by one.
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
"""Direction of a change; weaker anywhere counts as down."""

ORDER: tuple[Direction, ...] = ("down", "let go", "stopped", "other", "up")
"""The most important first."""
WEAKER: frozenset[Direction] = frozenset({"down", "let go"})
ARRIVING = "arriving"
"""Prefix of the message of a difference that concerns mail from the recipients."""
_COMPARED = ("levels", "peer", "quantum", "kem", "max_size", "otherwise", "impossible", "hold_for", "priority")


class ExampleMail(NamedTuple):
    """The mail that shows a difference: the SMTP envelope, the message, and the day on which it is decided about."""

    sender: str
    recipient: str
    content: MessageFacts
    day: date


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of recipient whose mail the two sets treat differently, with an example mail.

    `before` and `after` are None where the mail is held because nothing covers it. `changed` lists the changes.
    """

    recipients: str
    sender: str
    message: str
    before: Decision | None
    after: Decision | None
    changed: tuple[str, ...]
    direction: Direction
    senders: str = ""
    """The senders it applies to: all that were tried, all but a few, or those few."""
    alone: bool = False
    """It applies to one recipient, not to all of their kind."""
    sample: ExampleMail | None = None
    """The example mail; None if it is not about one mail."""

    @property
    def weaker(self) -> bool:
        """Whether outgoing mail is weaker, or newly leaves."""
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
    """The decisions of two sets about a mail of one size in bytes."""

    sample: ExampleMail
    before: Decision | None
    after: Decision | None
    changed: tuple[str, ...]
    direction: Direction


def look(old: PolicySet, new: PolicySet, sender: str, recipient: str, mails: Iterable[MessageFacts]) -> list[Look]:
    """Each change once, of mails that differ in size alone: the one that goes furthest down."""
    looks: dict[tuple[str, ...], Look] = {}
    for content in mails:
        before, after = (_decide(policies, sender, recipient, content) for policies in (old, new))
        if changed := _changed(before, after):
            course = direction(*(outcome_of(each, content.sealed_size) for each in (before, after)))
            earlier = looks.get(changed)
            if earlier is None or ORDER.index(course) < ORDER.index(earlier.direction):
                looks[changed] = Look(ExampleMail(sender, recipient, content, today()), before, after, changed, course)
    return list(looks.values())


def outcome_of(decision: Decision | None, size: int) -> TriedLevels:
    """The strength-related outcome of a decision for a message of this size in bytes."""
    if decision is None or decision.hopeless(size):
        return HELD
    levels = tuple(level for level in decision.levels if not decision.too_big(level, size))
    peer = None if decision.in_clear else decision.peer
    return TriedLevels(levels, decision.quantum, decision.kem, peer, decision.priority)


def direction(before: TriedLevels, after: TriedLevels) -> Direction:
    """The direction of a change."""
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
