"""What a comparison reports: the decisions that differ, and which of them may be weaker.
Standard: policies/README.md, "Trying and installing"; the texts are for people, the names in JSON are stable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from relay.policy.comparing.effects import MailOutcome, Side, ways, weaker

Direction = Literal["down", "let go", "stopped", "other", "up"]
"""Direction of a change; what may be weaker anywhere counts as down."""

ORDER: tuple[Direction, ...] = ("down", "let go", "stopped", "other", "up")
"""The most important first."""
WEAKER: frozenset[Direction] = frozenset({"down", "let go"})
ARRIVING = "arriving"
"""Prefix of the message of a difference that concerns mail from the recipients."""
_COMPARED = ("levels", "peer", "max_size", "otherwise", "priority")


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of recipient whose mail the two sets treat differently.

    `senders` are those to whom it applies. `changed` lists the changes.
    """

    recipients: str
    senders: str
    message: str
    changed: tuple[str, ...]
    direction: Direction

    @classmethod
    def of(
        cls, recipients: str, senders: str, message: str, before: MailOutcome, after: MailOutcome, old: Side, new: Side
    ) -> Difference:
        """The difference between two outcomes, in these sets, for mail from these senders."""
        is_weaker = partial(weaker, keys=new.needs_reserve, beside=old.listed | new.listed)
        direction: Direction = "up" if is_weaker(before, after) else "other"
        if is_weaker(after, before):
            direction = "down" if ways(before) else "let go"
        elif ways(before) and not ways(after):
            direction = "stopped"
        return cls(recipients, senders, message, changes(before, after), direction)

    @property
    def weaker(self) -> bool:
        """Whether mail may be weaker, or newly leaves."""
        return self.direction in WEAKER


def changes(before: MailOutcome, after: MailOutcome) -> tuple[str, ...]:
    """What differs, each as "levels: aes instead of otp"; nothing if both are the same."""
    if before is None or after is None:
        return () if before is after else (f"{_levels(after)} instead of {_levels(before)}",)
    values = ((name, getattr(before, name), getattr(after, name)) for name in _COMPARED)
    return tuple(f"{name}: {_text(now)} instead of {_text(was)}" for name, was, now in values if was != now)


def _levels(outcome: MailOutcome) -> str:
    return ", then ".join(outcome.levels) if outcome is not None else "held"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(" ".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value) or "none"
    return "none" if value is None else str(value)
