"""What a comparison reports: the decisions that differ, and what may be weaker without an example that shows it.
Standard: policies/README.md, "Trying and installing"; the texts are for people, the names in JSON are stable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from relay.levels import ONLY_PLAINTEXT
from relay.policy.comparing.effects import MailOutcome, stays, weaker

Direction = Literal["down", "let go", "not shown", "stopped", "other", "up"]
"""Direction of a change; weaker anywhere counts as down. `not shown`: it may be weaker, and no mail was found."""

ORDER: tuple[Direction, ...] = ("down", "let go", "not shown", "stopped", "other", "up")
"""The most important first."""
WEAKER: frozenset[Direction] = frozenset({"down", "let go"})
NOT_SHOWN: Direction = "not shown"
ARRIVING = "arriving"
"""Prefix of the message of a difference that concerns mail from the recipients."""
_COMPARED = ("levels", "peer", "max_size", "otherwise", "priority")


@dataclass(frozen=True, slots=True)
class Difference:
    """One kind of recipient whose mail the two sets treat differently.

    `sender` is an example, and `senders` are all to whom it applies. `before` and `after` are the levels, None where
    the mail is held because nothing covers it. `changed` lists the changes, or says by which rule what is not shown.
    """

    recipients: str
    sender: str
    message: str
    before: tuple[str, ...] | None
    after: tuple[str, ...] | None
    changed: tuple[str, ...]
    direction: Direction
    senders: str = ""

    @classmethod
    def of(
        cls, recipients: str, senders: str, message: str, before: MailOutcome, after: MailOutcome, *, keys: bool
    ) -> Difference:
        """The difference between two outcomes for mail from these senders; `keys` as in `weaker`."""
        was, now = (outcome.levels if outcome is not None else None for outcome in (before, after))
        course = direction(before, after, keys=keys)
        return cls(recipients, senders, message, was, now, changes(before, after), course, senders)

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
            "before": list(self.before) if self.before else None,
            "after": list(self.after) if self.after else None,
            "in_clear": self.after == ONLY_PLAINTEXT,
            "changed": list(self.changed),
            "direction": self.direction,
        }


def direction(before: MailOutcome, after: MailOutcome, *, keys: bool = True) -> Direction:
    """The direction of a change."""
    if weaker(after, before, keys=keys):
        return "let go" if stays(before) else "down"
    if stays(after) and not stays(before):
        return "stopped"
    return "up" if weaker(before, after, keys=keys) else "other"


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
