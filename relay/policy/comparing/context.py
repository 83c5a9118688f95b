"""A class of mails that two sides distinguish only by their rules: two bases, and the rules that may raise them.
Standard: policies/README.md; for lists in descending order, what is shown of each rule alone holds of all (proof.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from relay.levels import ONLY_PLAINTEXT, OTP, PQC, RSA, SIGNED, LevelName, strength
from relay.policy.comparing.implied import Assumptions, implies
from relay.policy.comparing.items import Conditions, Item
from relay.policy.comparing.languages import may_be_rewritten
from relay.policy.comparing.outcomes import (
    ComparedMail,
    TriedLevels,
    bare_levels,
    descending,
    outcome,
    seals,
    weaker,
    weaker_with_more,
)
from relay.policy.comparing.sides import Side
from relay.policy.comparing.time_limit import check_time
from relay.policy.settings import Chosen

NO_CONDITIONS = Conditions()


class Coverage(Enum):
    """Whether a rule is covered: shown, not shown, or decided only by all combinations of rules."""

    SHOWN = "shown"
    WEAKER = "weaker"
    UNSURE = "unsure"


class Judged(NamedTuple):
    """A verdict, and what is weaker."""

    verdict: Coverage
    why: str = ""


SHOWN = Judged(Coverage.SHOWN)


@dataclass(frozen=True, slots=True)
class Sure:
    """Facts shared by all contexts of one proof.

    `shared` are the keys of rules of both sides, which apply to the same mails. `a_lattice` says that all lists of
    levels are in descending order. `comparable` has pqc where both sides may come to it, for its KEMs. It has rsa where
    both may come to pqc or rsa, for the layer around either.
    """

    shared: frozenset[object]
    a_lattice: bool
    comparable: frozenset[LevelName]

    @classmethod
    def of(cls, old: Side, new: Side) -> Sure:
        """The facts that two sides have in common."""
        one, other = _lists(old), _lists(new)
        mine, others = ({level for levels in each for level in levels} for each in (one, other))
        comparable: set[LevelName] = {RSA.name} if SIGNED & mine and SIGNED & others else set()
        if PQC.name in mine and PQC.name in others:
            comparable.add(PQC.name)
        keys = (frozenset(each.key for each in (*side.raising, *side.maybe)) for side in (old, new))
        return cls(frozenset.intersection(*keys), all(map(descending, (*one, *other))), frozenset(comparable))


def _lists(side: Side) -> list[tuple[LevelName, ...]]:
    """All lists of levels of a side."""
    rules = (each.effect.raising.levels or () for each in (*side.raising, *side.maybe))
    return [*(base.levels for base in side.bases if base is not None), *rules]


class Context:
    """Mails for which two bases hold, and which any of some rules may raise.

    `added` are the new rules that are not among the old ones; `same_base` says that both sides say the same but for
    their rules. `unsure` are the keys of new rules by sender that are surely meant by none of these senders: where they
    fit, they raise.
    """

    def __init__(
        self,
        bases: tuple[Chosen | None, Chosen | None],
        rules: tuple[tuple[Item, ...], tuple[Item, ...]],
        mails: tuple[ComparedMail, ComparedMail],
        assumed: Assumptions,
        sure: Sure,
        unsure: frozenset[object] = frozenset(),
    ) -> None:
        self.old_base, self.new_base = bases
        self.old, self.new = rules
        self.old_mail, self.new_mail = mails
        self.assumed, self.sure, self.unsure = assumed, sure, unsure
        self.same_base = bases[0] == bases[1] and mails[0] == mails[1]
        self.added = tuple(each for each in self.new if each.key not in sure.shared)

    def assuming(self, assumed: Assumptions) -> Context:
        """The same context under further assumptions about the mails."""
        bases, mails = (self.old_base, self.new_base), (self.old_mail, self.new_mail)
        return Context(bases, (self.old, self.new), mails, assumed, self.sure, self.unsure)

    def before(self, rules: Iterable[Item]) -> TriedLevels:
        """The old side's outcome for a mail to which these of its rules apply."""
        return outcome(self.old_base, tuple(each.effect for each in rules), self.old_mail)

    def after(self, rules: Iterable[Item]) -> TriedLevels:
        """The new side's outcome for it."""
        return outcome(self.new_base, tuple(each.effect for each in rules), self.new_mail)

    def to_be_shown(self) -> list[Item | None]:
        """The old rules that must be covered, and None for what holds without any rule."""
        if not self.same_base:
            return [None, *self.old]
        if not self.added:
            return [each for each in self.old if each.key not in self.sure.shared]
        # A mail that is held for a rule of both sides may leave because of one that is added.
        gone = [each for each in self.old if each.key not in self.sure.shared]
        held = (each for each in self.old if self._before(each, each.conditions).held)
        return [None, *gone, *(each for each in held if each.key in self.sure.shared)]

    def implies(self, conditions: Conditions, item: Item | None, other: Item) -> bool:
        """Whether a rule of either side applies to every mail to which this one does, under these conditions."""
        check_time()
        if item is not None and item.key == other.key:
            return True
        if item is not None and item.maybe and other.maybe and _same_people(item, other):
            return True
        if other.maybe and not self._counts_if_maybe(other):
            return False
        return implies(conditions, other.conditions, self.assumed)

    def _counts_if_maybe(self, item: Item) -> bool:
        """Whether a rule by sender that may be meant is never surely meant, where it would be no rule that raises."""
        if "sender" in self.assumed.holds or item.key in self.unsure:  # in doubt, no such rule is surely meant
            return True
        people = item.conditions.people
        if "sender" not in people:
            return False
        globs = (*people["sender"], *people.get("not_sender", ()))
        return not any(may_be_rewritten(glob, self.assumed.separators) for glob in globs)

    def judged(self, item: Item | None, conditions: Conditions) -> Judged:
        """Whether, for mails that fit, the new side is never weaker than the outcome of the old rule.

        The old rules that apply to all of these are no more than what holds of each rule that applies.
        """
        implied = [each for each in self.new if self.implies(conditions, item, each)]
        old, new = self._before(item, conditions), self.after(implied)
        if why := weaker(new, old):
            return Judged(Coverage.WEAKER, why)
        tied = self.same_base and (item is None or item.key in self.sure.shared)
        if new.held and not self._stays_held(implied, self.added if tied else self.new):
            return Judged(Coverage.UNSURE, "held as long as no further rule applies")
        if not new.held and (why := weaker_with_more(new, old, self.sure.comparable)):
            return Judged(Coverage.UNSURE, why)
        return SHOWN

    def _before(self, item: Item | None, conditions: Conditions) -> TriedLevels:
        """The old side's outcome for a mail to which an old rule applies, and all that apply wherever it does."""
        return self.before(each for each in self.old if each is item or self.implies(conditions, item, each))

    def _stays_held(self, rules: Collection[Item], others: Collection[Item]) -> bool:
        """Whether mail that the new side holds where these rules apply is held where others apply as well."""
        base, mail, effects = self.new_base, self.new_mail, [each.effect for each in rules]
        if base is None:
            return True
        anybody = ComparedMail(mail.size, None, "anybody", guarded=False)
        sealing = [each for each in others if seals(each.effect.raising.levels)]
        if seals(base.levels) and outcome(base, (), anybody).held:  # too large for all that the base lists
            return True
        never_clear = seals(base.levels) or any(seals(each.raising.levels) for each in effects)
        if mail.peer is None and never_clear:
            return True
        too_large = [each for each in effects if seals(each.raising.levels) and outcome(base, (each,), anybody).held]
        least = max(map(_weakest, (base.levels, *(each.effect.raising.levels or () for each in sealing))))
        if any(_strongest(each.raising.levels or ()) >= least for each in too_large):  # a rule has a say up to there
            return True
        bounce_too_large = mail.max_bounce is not None and mail.size > mail.max_bounce
        if bounce_too_large and outcome(base, tuple(effects), anybody).levels == (OTP.name,):
            return True
        if mail.guarded and bare_levels(base, effects) == ONLY_PLAINTEXT:
            return not any(each.effect.by_envelope for each in sealing)
        return not never_clear and not sealing  # plaintext that needs a quantum key


def _same_people(one: Item, other: Item) -> bool:
    """Whether two rules by sender may be meant by the same addresses."""
    mine, others = ({name: frozenset(globs) for name, globs in each.conditions.people.items()} for each in (one, other))
    return mine == others


def _weakest(levels: Collection[LevelName]) -> int:
    return min(map(strength, levels), default=0)


def _strongest(levels: Collection[LevelName]) -> int:
    return max(map(strength, levels), default=0)
