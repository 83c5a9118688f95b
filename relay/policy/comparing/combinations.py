"""Tries all combinations of rules that may apply to one mail, where checking each rule alone is not enough.
Standard: rules that do the same count as one; where there are too many left, nothing is shown.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from relay.policy.comparing.context import NO_CONDITIONS, Context
from relay.policy.comparing.implied import in_single_texts, never_together
from relay.policy.comparing.items import Conditions, Item
from relay.policy.comparing.outcomes import TriedLevels, weaker

MAX_RULES = 12
"""Maximum number of distinct rules that are combined."""
MAX_PARTS = 8
"""Maximum number of parts of one rule that are checked individually."""


class WeakerCombination(NamedTuple):
    """What is weaker, and the old rules that apply then; "" if nothing is."""

    why: str
    together: tuple[Item, ...] = ()


NOTHING = WeakerCombination("")


class _RulePart(NamedTuple):
    """A rule or a part of it, with its number on either side; None where it is missing."""

    item: Item
    old: int | None
    new: int | None


@dataclass(slots=True)
class _AlikeParts:
    """Parts of rules with the same effect: it is enough to know whether one of them applies. `first` represents all."""

    first: _RulePart
    members: list[int] = field(default_factory=list)
    needs: frozenset[int] = frozenset()
    """Numbers of the units that apply wherever this one does."""
    excludes: frozenset[int] = frozenset()
    """Numbers of the units that never apply with this one."""


def combined(context: Context) -> WeakerCombination:
    """The smallest combination of rules that may be weaker."""
    units, always = _units(context)
    if len(units) > MAX_RULES:
        return WeakerCombination(f"{len(units)} rules may count together, which is more than can be tried")
    firsts = [unit.first for unit in units]
    in_old = sorted((each.old, number) for number, each in enumerate(firsts) if each.old is not None)
    in_new = sorted((each.new, number) for number, each in enumerate(firsts) if each.new is not None)
    before: dict[int, TriedLevels] = {}
    after: dict[int, TriedLevels] = {}

    def rules(some: Sequence[tuple[int, int]], applying: int) -> list[Item]:
        return [firsts[number].item for _, number in some if applying >> number & 1]

    old_bits, new_bits = (sum(1 << number for _, number in some) for some in (in_old, in_new))
    needs = [_bits(unit.needs) for unit in units]
    for applying in sorted(range(1 << len(units)), key=int.bit_count):
        if _bits(always) & ~applying or any(
            needs[each] & ~applying for each in range(len(units)) if applying >> each & 1
        ):
            continue
        old, new = applying & old_bits, applying & new_bits
        if old not in before:
            before[old] = context.before(rules(in_old, old))
        if new not in after:
            after[new] = context.after(rules(in_new, new))
        if why := weaker(after[new], before[old]):
            return WeakerCombination(why, tuple(rules(in_old, old)))
    return NOTHING


def _bits(numbers: Collection[int]) -> int:
    return sum(1 << number for number in numbers)


def _units(context: Context) -> tuple[list[_AlikeParts], frozenset[int]]:
    """The units, and the numbers of those that apply always."""
    parts = list(_parts(context))
    needs = [_needed(context, part.item.conditions, part, parts) for part in parts]
    units: dict[object, _AlikeParts] = {}
    unit_of: list[int] = []
    for number, part in enumerate(parts):
        # Where a list is not in descending order, it matters which of two lists comes first.
        does = part.item.effect if context.sure.a_lattice else part.item.key
        both = part.old is not None and part.new is not None
        key = (part.old is None, part.new is None, does, None if both else needs[number])
        unit = units.setdefault(key, _AlikeParts(part))
        unit.members.append(number)
        unit_of.append(list(units).index(key))
    for unit in units.values():
        every = (frozenset(unit_of[other] for other in needs[number]) for number in unit.members)
        unit.needs = frozenset.intersection(*every)
        unit.excludes = frozenset(
            number
            for number, other in enumerate(units.values())
            if all(
                never_together(parts[one].item.conditions, parts[another].item.conditions, context.assumed)
                for one in unit.members
                for another in other.members
            )
        )
    return list(units.values()), frozenset(unit_of[number] for number in _needed(context, NO_CONDITIONS, None, parts))


def _parts(context: Context) -> Iterator[_RulePart]:
    """Each rule once; those of one side alone as several, one for each text, where there are few."""
    numbers = {each.key: number for number, each in enumerate(context.new)}
    for number, item in enumerate(context.old):
        if item.key in context.sure.shared:
            yield _RulePart(item, number, numbers[item.key])
        else:
            yield from (_RulePart(each, number, None) for each in _in_texts(item))
    for item in context.added:
        yield from (_RulePart(each, None, numbers[item.key]) for each in _in_texts(item))


def _in_texts(item: Item) -> list[Item]:
    parts = [item.conditions]
    while True:
        smaller = [each for part in parts for each in (list(in_single_texts(part)) or [part])]
        if len(smaller) == len(parts) or len(smaller) > MAX_PARTS:
            return [item.having(each) for each in parts]
        parts = smaller


def _needed(
    context: Context, conditions: Conditions, part: _RulePart | None, parts: Sequence[_RulePart]
) -> frozenset[int]:
    """The numbers of the parts that apply wherever one does."""
    item = None if part is None else part.item
    return frozenset(
        number for number, each in enumerate(parts) if each is part or context.implies(conditions, item, each.item)
    )
