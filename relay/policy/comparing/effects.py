"""What holds for the mails that some rules fit, and which of two such outcomes is weaker.
Standard: policies/README.md; lists with the union cut at the strictest guarantee are a lattice (a test tries all).

So what several rules say together is never weaker than before, if what each of them says alone is not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from relay.levels import ONLY_PLAINTEXT, PLAINTEXT, QUANTUM, SMIME, LevelName, strength
from relay.policy.chosen import raised
from relay.policy.comparing.conditions import Conditions
from relay.policy.rules import PlacedRule
from relay.policy.settings import Chosen
from relay.policy.strength import never_weaker


@dataclass(frozen=True, slots=True, eq=False)
class Effect:
    """A rule that counts for some recipients, and its conditions as far as they distinguish mail to them."""

    rule: PlacedRule
    conditions: Conditions

    @property
    def key(self) -> tuple[object, ...]:
        """The same for rules that fit the same mails and raise the same."""
        when = self.rule.when
        return self.conditions, when.levels, when.otherwise, when.priority


MailOutcome = Chosen | None
"""What is decided; None where the mail is held because no file covers the recipient."""


def ways(outcome: MailOutcome) -> tuple[LevelName, ...]:
    """The levels by which the mail can leave, if any: without a peer, those that need none."""
    if outcome is None:
        return ()
    return tuple(each for each in outcome.levels if outcome.peer is not None or each in (SMIME, PLAINTEXT))


@dataclass(frozen=True, slots=True)
class Side:
    """What one set says of some recipients on a day: the file's own settings, None without one, and all that raises."""

    own: MailOutcome
    effects: tuple[Effect, ...]

    def outcome(self, conditions: Conditions) -> MailOutcome:
        """What holds at least for all mail of these conditions: all rules that surely fit it raise."""
        if self.own is None:
            return None
        return raised(self.own, [each.rule for each in self.effects if conditions.imply(each.conditions)])

    @property
    def listed(self) -> set[LevelName]:
        """All levels that the file and the rules list."""
        own = self.own.levels if self.own is not None else ()
        return {*own, *(level for each in self.effects for level in each.rule.when.levels or ())}

    @property
    def needs_reserve(self) -> bool:
        """Whether some mail may leave by a weaker level, because a quantum key is not there for it."""
        if self.own is None or self.own.peer is None:
            return False
        least = min(map(strength, self.listed))
        return any(level.rpartition("+")[2] in QUANTUM and strength(level) > least for level in self.listed)


def weaker(new: MailOutcome, old: MailOutcome, *, keys: bool, beside: Collection[LevelName]) -> bool:
    """Whether mail may leave weaker than before, or where it could not leave, or be read by another peer.

    `keys` says whether reserved keys make a difference. They may beside plaintext, too: an outcome says what holds at
    least, and another rule that fits may list levels: one of those `beside`.
    """
    after, before = ways(new), ways(old)
    if new is None or not after:
        return False
    if old is None or not before:
        return True
    if keys and (new.priority, old.priority) == ("low", "normal"):
        return True
    if before == ONLY_PLAINTEXT:
        return False
    if new.peer != old.peer and after != (SMIME,):
        return True
    if not never_weaker(after, before):
        return True
    sizes = {limit + 1 for _, limit in (*new.max_size, *old.max_size)}
    return any(_weaker_at(size, new, old, beside) for size in sizes)


def _weaker_at(octets: int, new: Chosen, old: Chosen, beside: Collection[LevelName]) -> bool:
    """Whether a mail of this size may leave weaker. One that was too large for all levels may leave.

    If the old set limits sizes, a new level must be as strong as all that another rule may list. The limited levels
    may have been all that was weaker.
    """
    after, before = _at(octets, ways(new), new), _at(octets, ways(old), old)
    if before and after and not never_weaker(after, before):
        return True
    others = _at(octets, (*beside, *ways(old)), old)
    limited = any(limit < octets for _, limit in old.max_size)
    return limited and any(strength(each) < strength(other) for each in {*after} - {*before} for other in others)


def _at(octets: int, levels: Iterable[LevelName], outcome: Chosen) -> tuple[LevelName, ...]:
    """Those of the levels for which a mail of this size is not too large."""
    limits = dict(outcome.max_size)
    return tuple(each for each in levels if octets <= limits.get(each, octets))
