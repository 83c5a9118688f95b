"""Compares two sets of policies: the decisions that differ.
Standard: policies/README.md; what is weaker for any mail, now or later, is among them, marked as such.

Recipients for whom no file differs are left out, unless floors, groups, peers or the site differ.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from relay.policy.comparing.differences import ARRIVING, ORDER, Difference, Direction
from relay.policy.comparing.expectations import weakened_tests
from relay.policy.comparing.pointwise import Pointwise, renamed
from relay.policy.comparing.time_limit import OutOfTimeError, at_most, check_time
from relay.policy.decide import PolicySet
from relay.runtime import heap

__all__ = ["ORDER", "Comparison", "Difference", "Direction", "compare"]

KINDS_AT_ONCE = 50
"""Number of kinds of recipients between two pauses, where time is limited."""
PAUSE_S = 0.002
"""Pause between them, in seconds, for other threads."""
SET_ASIDE = 1000
"""Number of kinds after which results are frozen for the garbage collector, where time is limited."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences, the most important first.

    Of the `kinds` of recipients that may be treated otherwise, `done` were compared.
    """

    differences: tuple[Difference, ...]
    done: int
    kinds: int

    @property
    def weaker(self) -> bool:
        """Whether any mail may be weaker or newly leave, or arriving mail or tests must meet less."""
        return any(each.weaker for each in self.differences)

    @property
    def whole(self) -> bool:
        """Whether there was time for all recipients."""
        return self.done == self.kinds

    @property
    def proven(self) -> bool:
        """Whether it is proven that nothing is weaker for any mail, now or later."""
        return self.whole and not self.weaker


def compare(old: PolicySet, new: PolicySet, seconds: float | None = None) -> Comparison:
    """Every decision and test that differs between the two, today or later.

    Blocks, for these seconds at most, and gives way to other threads then; a kind that was not finished is left out.
    """
    whole = Pointwise(old, new)
    found = list(weakened_tests(old.tests, new.tests))
    if old.site != new.site:
        why = ("the two sets are not for one site",)
        found.append(Difference("everybody", "anybody", "any message", why, "down"))
    done = 0
    try:
        with at_most(seconds):
            for kind in whole.kinds:
                check_time()
                found += [renamed(each, kind) for each in whole.of_kind(kind)]
                done += 1
                if seconds is not None:
                    _give_way(done)
    except OutOfTimeError:
        pass
    if not any(each.weaker and each.message.startswith(ARRIVING) for each in found):
        found += whole.in_doubt()
    found = list({(each.recipients, each.direction, each.changed): each for each in reversed(found)}.values())[::-1]
    found.sort(key=lambda each: ORDER.index(each.direction))
    return Comparison(tuple(found), done, len(whole.kinds))


def _give_way(done: int) -> None:
    if done % KINDS_AT_ONCE == 0:
        time.sleep(PAUSE_S)
    if done % SET_ASIDE == 0:
        heap.set_aside()
