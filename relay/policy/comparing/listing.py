"""Lists the decisions that differ, by mails that rules look for: for display; it proves nothing.
Standard: equal kinds of recipients are checked once; those with too much to try are reported.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations

from relay.policy.comparing.differences import Difference, Direction, Look, look
from relay.policy.comparing.items import Item
from relay.policy.comparing.samples import (
    ANY_MESSAGE,
    MAX_IN_PAIRS,
    SOMEBODY,
    SampleMessage,
    described,
    joined,
    messages,
    outside,
    senders,
)
from relay.policy.comparing.sides import Side
from relay.policy.decide import PolicySet
from relay.policy.people import NULL_SENDER

MAX_WORK = 20_000
"""Maximum number of rule checks for one kind of recipient; beyond it, rules are tried alone."""
MAX_WORK_IN_ALL = 100_000
"""The same for all kinds of recipients together."""
MAX_CALLED = 3
"""Maximum number of senders named."""


@dataclass(slots=True)
class _Tries:
    """The mails that are tried for one kind of recipient: each message from each sender."""

    senders: list[str]
    messages: list[SampleMessage]

    def number(self, sizes: Sequence[int]) -> int:
        """The number of mails."""
        return len(self.senders) * sum(len(message.of_sizes(sizes)) for message in self.messages)


class DifferenceSearch:
    """Finds differences between two sets, within a budget of work."""

    def __init__(self, old: PolicySet, new: PolicySet, separators: str) -> None:
        self._sets = (old, new)
        self._separators = separators
        self._left = MAX_WORK_IN_ALL
        self._looked_for: dict[object, list[SampleMessage]] = {}

    def differences(
        self, recipient: str, called: str, old: Side, new: Side, day: date | None, *, same_settings: bool
    ) -> tuple[list[Difference], bool]:
        """The differences for one kind of recipient on a day (None: today), and whether the search was cut short.

        `same_settings` says that only rules and floors differ.
        """
        if self._left <= 0 and same_settings:
            return [], True
        sizes = sorted({*old.limits(), *new.limits(), self._sets[0].site.max_bounce + 1}) if self._left > 0 else []
        tries, coarse = self._tries(old, new, sizes, same_settings=same_settings)
        senders_by_change: dict[tuple[Direction, tuple[str, ...]], dict[str, None]] = {}
        first: dict[tuple[Direction, tuple[str, ...]], Difference] = {}
        for message in tries.messages:
            mails = [described(message, octets) for octets in message.of_sizes(sizes)]
            for sender in tries.senders:
                for each in look(*self._sets, sender, recipient, mails):
                    change = (each.direction, each.changed)
                    senders_by_change.setdefault(change, {})[sender or NULL_SENDER] = None
                    if change not in first:
                        first[change] = _difference(called, sender, message, each, day)
        every = dict.fromkeys(sender or NULL_SENDER for sender in tries.senders)
        return [
            replace(each, senders=_called(every, senders_by_change[change])) for change, each in first.items()
        ], coarse

    def _tries(self, old: Side, new: Side, sizes: Sequence[int], *, same_settings: bool) -> tuple[_Tries, bool]:
        """The mails to try, and whether combining rules would make too many."""
        rules = list({each.key: each for side in (old, new) for each in (*side.replacing, *side.raising)}.values())
        about = _about(old, new, rules) if same_settings else rules
        work = 2 * (len(rules) + 1)
        if self._left <= 0:
            return _Tries(
                [SOMEBODY], [ANY_MESSAGE, *(each for item in about[:1] for each in self._asked(item)[:1])]
            ), True
        conditions = [each.conditions for each in rules]
        tries = _Tries(senders(conditions, self._separators, pairs=True), self._messages(about, rules, pairs=True))
        coarse = tries.number(sizes) * work > min(MAX_WORK, self._left)
        if coarse:
            asked = [each.conditions for each in about]
            tries = _Tries(senders(asked, self._separators, pairs=False), self._messages(about, rules))
            while len(tries.messages) > 1 and tries.number(sizes) * work > MAX_WORK:
                del tries.messages[-len(tries.messages) // 2 :]
            del tries.senders[max(2, MAX_WORK // work) :]
        self._left -= tries.number(sizes) * work
        return tries, coarse

    def _asked(self, item: Item) -> list[SampleMessage]:
        """The messages that a rule looks for."""
        if item.key not in self._looked_for:
            self._looked_for[item.key] = list(messages(item.conditions))
        return self._looked_for[item.key]

    def _messages(self, about: Sequence[Item], rules: Sequence[Item], *, pairs: bool = False) -> list[SampleMessage]:
        """A message that no rule looks for, and those of some rules; with `pairs`, each combined with all others."""
        messages = dict.fromkeys([ANY_MESSAGE])
        for each in about:
            messages |= dict.fromkeys(self._asked(each))
            if (too_large := outside(each.conditions)) is not None:
                messages[too_large] = None
        if not pairs:
            return list(messages)
        own = dict.fromkeys(message for each in about[:MAX_IN_PAIRS] for message in self._asked(each))
        others = dict.fromkeys(message for each in rules[:MAX_IN_PAIRS] for message in self._asked(each))
        for one, other in combinations(own | others, 2):
            if one in own and (both := joined([one, other])) is not None:
                messages[both] = None
        if len(others) > 2 and (all_of_them := joined(list(others))) is not None:
            messages[all_of_them] = None
        return list(messages)


def _about(old: Side, new: Side, rules: Sequence[Item]) -> list[Item]:
    """The rules that differ between both; all rules by sender if their order may matter."""
    in_order = [list(map(_said, side.replacing)) for side in (old, new)]
    shared = set(map(_said, old.raising)) & set(map(_said, new.raising))
    shared |= set(in_order[0]) if in_order[0] == in_order[1] else set()
    return [each for each in rules if _said(each) not in shared]


def _said(item: Item) -> object:
    """Equal for rules that say the same, including what is not about strength."""
    when = item.rule.when
    return item.key, when.otherwise, when.impossible, when.hold_for


def _difference(called: str, sender: str, message: SampleMessage, each: Look, day: date | None) -> Difference:
    texts = [message.called]
    if (octets := each.sample.content.size) > message.least:
        texts.append(f"{octets} bytes")
    if day is not None:
        texts.append(f"from {day} on")
    sender = sender or NULL_SENDER
    shown = (each.before, each.after, each.changed, each.direction)
    return Difference(called, sender, ", ".join(texts), *shown, sample=each.sample)


def _called(every: Collection[str], some: Collection[str]) -> str:
    """A short description of some of the senders that were tried."""
    others = [sender for sender in every if sender not in some]
    if not others:
        return "anybody"
    if SOMEBODY in some:
        return f"anybody but {_listed(others)}"
    return _listed(list(some))


def _listed(some: Sequence[str]) -> str:
    more = f" and {len(some) - MAX_CALLED} more" if len(some) > MAX_CALLED else ""
    return ", ".join(some[:MAX_CALLED]) + more
