"""Adds up what policies would do with many messages, and picks out the odd ones; compares two sets of policies.
Standard: memory does not grow with the number of messages, only with the number of different results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from relay.plan import Outcome, Result
from relay.policy.strength import strength_of

ODD = 10
"""So many messages are shown that were treated as few others."""
MAX_KINDS = 10_000


Kind = tuple[Result, str, str]
"""Messages that were treated alike: what became of them, how they were protected, by which policy."""


@dataclass
class Tally:
    """The sums; `add` each recipient once."""

    recipients: Counter[tuple[Result, str]] = field(default_factory=Counter)
    octets: Counter[tuple[Result, str]] = field(default_factory=Counter)
    quantum_bits: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    _examples: dict[Kind, list[tuple[str, Outcome]]] = field(default_factory=dict)

    def add(self, name: str, outcome: Outcome) -> None:
        """One more recipient of the message called `name`."""
        row = (outcome.result, outcome.protection)
        self.recipients[row] += 1
        self.octets[row] += outcome.octets
        if outcome.quantum_bits and outcome.peer is not None:
            self.quantum_bits[outcome.peer] += outcome.quantum_bits
        kind = (*row, outcome.policy)
        if kind in self.kinds or len(self.kinds) < MAX_KINDS:
            self.kinds[kind] += 1
            examples = self._examples.setdefault(kind, [])
            if len(examples) < ODD:
                examples.append((name, outcome))

    def odd(self) -> list[tuple[str, Outcome]]:
        """At most ten that were treated as the fewest others, the rarest first; none where all are alike."""
        if len(self.kinds) < 2:
            return []
        rarest = sorted(self.kinds.items(), key=lambda item: (item[1], item[0]))[:-1]
        return [example for kind, _ in rarest for example in self._examples[kind]][:ODD]

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {
            "results": [
                {"result": row[0], "protection": row[1], "recipients": number, "octets": self.octets[row]}
                for row, number in sorted(self.recipients.items())
            ],
            "quantum_bits": dict(sorted(self.quantum_bits.items())),
            "odd": [{"message": name} | asdict(outcome) for name, outcome in self.odd()],
        }


@dataclass(frozen=True, slots=True)
class Change:
    """A recipient whose treatment differs between two sets of policies."""

    recipient: str
    before: str
    after: str
    direction: str


@dataclass
class Differences:
    """Recipients by change, with the number of mails; at most MAX_KINDS different ones."""

    changes: Counter[Change] = field(default_factory=Counter)
    directions: Counter[str] = field(default_factory=Counter)
    same: int = 0

    def add(self, before: Outcome, after: Outcome) -> None:
        """The same recipient of the same message under the old policies and the new ones."""
        first, second = _said(before), _said(after)
        if first == second:
            self.same += 1
            return
        direction = _direction(before, after)
        self.directions[direction] += 1
        change = Change(before.recipient, first, second, direction)
        if change in self.changes or len(self.changes) < MAX_KINDS:
            self.changes[change] += 1

    def most_important(self) -> Iterator[tuple[Change, int]]:
        """Those that go down first, and of these the ones with the most mails."""
        order = {"down": 0, "stopped": 1, "let go": 2, "other": 3, "up": 4}
        yield from sorted(
            self.changes.items(), key=lambda item: (order[item[0].direction], -item[1], item[0].recipient)
        )


def _said(outcome: Outcome) -> str:
    return outcome.protection or outcome.result


def _direction(before: Outcome, after: Outcome) -> str:
    """`up` and `down` by strength; `stopped` and `let go` where mail no longer leaves, or now does."""
    left, leaves = before.result in ("sealed", "clear"), after.result in ("sealed", "clear")
    if left and leaves:
        first, second = strength_of(before.protection), strength_of(after.protection)
        if first == second:
            return "up" if after.protection.count("+") > before.protection.count("+") else "down"
        return "up" if second > first else "down"
    if left or leaves:
        return "stopped" if left else "let go"
    return "other"
