"""Compares two sets of policies: the decisions that differ, and what is not shown to be safe.
Standard: policies/README.md; what is weaker for any mail, now or later, is among these two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from relay.policy.comparing.differences import ARRIVING, ORDER, Difference, Direction, Unproven
from relay.policy.comparing.expectations import weakened_tests
from relay.policy.comparing.pointwise import Pointwise, renamed
from relay.policy.decide import PolicySet

__all__ = ["ORDER", "Comparison", "Difference", "Direction", "Unproven", "compare"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences, the most important first; `coarse` lists recipients for whom not all was tried.

    `unproven` lists what may be weaker and is not among the differences.
    """

    differences: tuple[Difference, ...]
    coarse: tuple[str, ...]
    unproven: tuple[Unproven, ...] = ()

    @property
    def weaker(self) -> bool:
        """Whether any outgoing mail is weaker or newly leaves, or arriving mail or tests must meet less."""
        return any(each.weaker for each in self.differences)

    @property
    def proven(self) -> bool:
        """Whether it is proven that nothing is weaker for any mail, now or later."""
        return not self.weaker and not self.unproven


def compare(old: PolicySet, new: PolicySet) -> Comparison:
    """Every decision and test that differs between the two, today or later, and all that may be weaker."""
    whole = Pointwise(old, new)
    found = list(weakened_tests(old.tests, new.tests))
    coarse: list[str] = []
    left: dict[object, Unproven] = {}
    if old.site != new.site:
        left[None] = Unproven("relay.toml", "everybody", "the two sets are not for one site", "", "", "")
    for kind in whole.kinds:
        of_kind = whole.of_kind(kind)
        found += [renamed(each, kind) for each in of_kind.differences]
        coarse += [kind.called] if of_kind.coarse else []
        for each in of_kind.unproven:
            known = left.get((each.rule, each.why))
            left[each.rule, each.why] = each if known is None else replace(known, kinds=known.kinds + 1)
    if not any(each.weaker and each.message.startswith(ARRIVING) for each in found):
        found += whole.in_doubt()
    found = list({(each.recipients, each.direction, each.changed): each for each in reversed(found)}.values())[::-1]
    found.sort(key=lambda each: ORDER.index(each.direction))
    return Comparison(tuple(found), tuple(coarse), tuple(left.values()))
