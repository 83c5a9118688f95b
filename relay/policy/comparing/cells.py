"""Senders by which rule by sender holds for them, in either side: those for whom one pair of rules does are one cell.
Standard: policies/README.md; the first rule that surely fits takes the file's place.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from relay.policy.comparing.languages import address
from relay.policy.comparing.search import RuleScope, TooHard
from relay.policy.comparing.sides import Side
from relay.policy.comparing.time_limit import check_time
from relay.policy.patterns import Glob


class SenderCell(NamedTuple):
    """The senders for whom one rule of each side holds (0 for none), and patterns that each fits.

    Of each set of patterns in `senders` one fits.
    """

    bases: tuple[int, int]
    wanted: tuple[RuleScope, ...] = ()
    unwanted: tuple[RuleScope, ...] = ()
    senders: tuple[tuple[Glob, ...], ...] = ()

    @property
    def of_all(self) -> bool:
        """Whether any sender may be in it."""
        return not self.wanted and not self.unwanted

    def address(self, separators: str, *more: RuleScope) -> str | None:
        """A sender in the cell who is also in these scopes; None if none is found."""
        try:
            return _address((*self.wanted, *more), self.unwanted, separators)
        except TooHard:
            return None

    def nobody(self, separators: str, *more: RuleScope) -> bool:
        """Whether certainly no sender in the cell is also in these scopes."""
        try:
            return _address((*self.wanted, *more), self.unwanted, separators) is None
        except TooHard:
            return False


@lru_cache(maxsize=20_000)
def _address(wanted: tuple[RuleScope, ...], unwanted: tuple[RuleScope, ...], separators: str) -> str | None:
    return address(wanted, unwanted, separators)


def cells(old: Side, new: Side, *, rewritten: bool = False) -> Iterator[SenderCell]:
    """Each pair of rules by sender that may hold; a rule of both sides leaves nothing to those behind it.

    A `rewritten` sender may stand for somebody whom a rule excepts. Such a rule does not surely apply, and leaves them
    all to the rules behind it.
    """
    before, after = ([each.key for each in side.replacing] for side in (old, new))
    in_old, in_new = ({key: number for number, key in enumerate(some, 1)} for some in (before, after))
    for number in range(len(before) + 1):
        last = in_new.get(before[number - 1], len(after)) if number else len(after)
        none = () if number and before[number - 1] in in_new else (0,)
        for other in (*none, *range(1, last + 1)):
            check_time()
            place = in_old.get(after[other - 1]) if other else None
            if place is None or (number and place >= number):
                yield _cell(old, new, number, other, rewritten=rewritten)


def _cell(old: Side, new: Side, number: int, other: int, *, rewritten: bool) -> SenderCell:
    wanted: list[RuleScope] = []
    unwanted: list[RuleScope] = []
    for senders, place in ((old.senders, number), (new.senders, other)):
        wanted += senders[place - 1 : place] if place else ()
        before = senders[: place - 1] if place else senders
        unwanted += (each for each in before if not (rewritten and each.misses))
    known = tuple(each.fits for each in wanted if each.fits is not None)
    return SenderCell((number, other), tuple(dict.fromkeys(wanted)), tuple(dict.fromkeys(unwanted)), known)
