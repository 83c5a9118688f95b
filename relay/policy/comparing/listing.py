"""Lists the decisions that differ, by mails that rules look for: for people to read, not to prove anything.
Standard: each kind of recipient alike is looked at once; where there is too much to try, it is said for whom.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations

from relay.policy.comparing.differences import Difference, Direction, Look, look
from relay.policy.comparing.items import Conditions, Item
from relay.policy.comparing.samples import (
    ANY_MESSAGE,
    MAX_IN_PAIRS,
    SOMEBODY,
    Message,
    described,
    joined,
    messages,
    outside,
    senders,
)
from relay.policy.comparing.sides import Side
from relay.policy.decide import PolicySet
from relay.policy.people import NULL_SENDER

MAX_TRIES = 4000
"""Maximum number of mails made for one kind of recipient; where there would be more, rules are tried one by one."""
MAX_LOOKS = 200_000
"""Maximum number of mails made for all kinds of recipients, in pairs of rules; then rules are tried one by one."""
MAX_CALLED = 3
"""Maximum number of senders named."""


@dataclass(slots=True)
class Tries:
    """The mails that are tried for one kind of recipient: each message from each sender."""

    senders: list[str]
    messages: list[Message]
    coarse: bool = False

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.senders) * len(self.messages)


class Listing:
    """Finds differences between two sets; counts how much it has tried."""

    def __init__(self, old: PolicySet, new: PolicySet, separators: str) -> None:
        self._sets = (old, new)
        self._separators = separators
        self._looks = 0

    def differences(
        self, recipient: str, called: str, old: Side, new: Side, day: date | None, *, same_file: bool
    ) -> tuple[list[Difference], bool]:
        """Those for one kind of recipient on a day (None: today), and whether not all was tried.

        `same_file` says that only what stands beside the files differs.
        """
        tries = self._tries(old, new, same_file=same_file)
        sizes = sorted({*old.limits(), *new.limits(), self._sets[0].site.max_bounce + 1})
        seen: dict[tuple[str, ...], tuple[Look, str, Message]] = {}
        whose: dict[tuple[Direction, tuple[str, ...]], dict[str, None]] = {}
        found: dict[tuple[Direction, tuple[str, ...]], Difference] = {}
        for message in tries.messages:
            mails = [described(message, octets) for octets in message.of_sizes(sizes)]
            self._looks += len(mails) * len(tries.senders)
            for sender in tries.senders:
                for each in look(*self._sets, sender, recipient, mails):
                    told = (each.direction, each.changed)
                    whose.setdefault(told, {})[sender or NULL_SENDER] = None
                    if told not in found:
                        found[told] = _difference(called, sender, message, each, day)
        del seen
        every = dict.fromkeys(sender or NULL_SENDER for sender in tries.senders)
        return [replace(each, senders=_called(every, whose[told])) for told, each in found.items()], tries.coarse

    def _tries(self, old: Side, new: Side, *, same_file: bool) -> Tries:
        """All rules alone, in pairs and together, as far as they may make a difference and there are not too many."""
        rules = list({each.key: each for each in (*old.replacing, *old.raising, *new.replacing, *new.raising)}.values())
        shared = {each.key for each in (*old.replacing, *old.raising)} & {
            each.key for each in (*new.replacing, *new.raising)
        }
        about = [each for each in rules if each.key not in shared] if same_file else rules
        conditions = [each.conditions for each in rules]
        if self._looks < MAX_LOOKS:
            tries = Tries(
                senders(conditions, self._separators, pairs=True), _messages(about, rules, alone=same_file, pairs=True)
            )
            if tries.number <= MAX_TRIES:
                return tries
        asked = [each.conditions for each in about]
        tries = Tries(
            senders(asked, self._separators, pairs=False), _messages(about, rules, alone=same_file), coarse=True
        )
        del tries.messages[max(1, MAX_TRIES // max(1, len(tries.senders))) :]
        return tries


def _messages(about: Sequence[Item], rules: Sequence[Item], *, alone: bool, pairs: bool = False) -> list[Message]:
    """A message that no rule looks for, and those of some rules; with `pairs`, each with those of all others."""
    asked = {each.key: list(_of_rule(each.conditions)) for each in rules}
    found = dict.fromkeys([ANY_MESSAGE])
    for each in about:
        found |= dict.fromkeys(asked[each.key])
        if (too_large := outside(each.conditions)) is not None and not alone:
            found[too_large] = None
    if not pairs:
        return list(found)
    first = {message: None for each in rules[:MAX_IN_PAIRS] for message in asked[each.key]}
    own = dict.fromkeys(message for each in about[:MAX_IN_PAIRS] for message in asked[each.key])
    for one, other in combinations(first, 2):
        if (one in own or other in own) and (both := joined([one, other])) is not None:
            found[both] = None
    if len(first) > 2 and (all_of_them := joined(list(first))) is not None:
        found[all_of_them] = None
    return list(found)


def _of_rule(conditions: Conditions) -> Iterator[Message]:
    yield from messages(conditions)


def _difference(called: str, sender: str, message: Message, each: Look, day: date | None) -> Difference:
    said = [message.called]
    if each.octets > message.least:
        said.append(f"{each.octets} octets")
    if day is not None:
        said.append(f"from {day} on")
    sender = sender or NULL_SENDER
    return Difference(called, sender, ", ".join(said), each.before, each.after, each.changed, each.direction)


def _called(every: Collection[str], some: Collection[str]) -> str:
    """Some of all senders who were tried, in the shorter way."""
    others = [sender for sender in every if sender not in some]
    if not others:
        return "anybody"
    if SOMEBODY in some:
        return f"anybody but {_listed(others)}"
    return _listed(list(some))


def _listed(some: Sequence[str]) -> str:
    more = f" and {len(some) - MAX_CALLED} more" if len(some) > MAX_CALLED else ""
    return ", ".join(some[:MAX_CALLED]) + more
