"""What holds for the mails that some rules fit, and which of two such outcomes is weaker.
Standard: policies/README.md; lists with the union cut at the strictest guarantee are a lattice (a test tries all).

So what several rules say together is never weaker than before, if what each of them says alone is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from relay.levels import ONLY_PLAINTEXT, PLAINTEXT, QUANTUM, SMIME, LevelName, strength
from relay.policy.chosen import raised
from relay.policy.comparing.conditions import Conditions
from relay.policy.rules import PlacedRule
from relay.policy.settings import Chosen
from relay.policy.strength import guarantee, never_weaker


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
    def needs_reserve(self) -> bool:
        """Whether some mail may leave by a weaker level, because a quantum key is not there for it."""
        if self.own is None or self.own.peer is None:
            return False
        levels = {*self.own.levels, *(level for each in self.effects for level in each.rule.when.levels or ())}
        least = min(map(strength, levels))
        return any(level.rpartition("+")[2] in QUANTUM and strength(level) > least for level in levels)


def weaker(new: MailOutcome, old: MailOutcome, *, keys: bool = True) -> bool:
    """Whether mail may leave weaker than before, or where it could not leave, or be read by another peer.

    `keys` says whether reserved keys make a difference. They may beside plaintext, too: an outcome says what holds at
    least, and another rule that fits may list levels.
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
    least = strength(guarantee(after))
    larger, limits = dict(old.max_size), dict(new.max_size)
    smaller = (each for each in limits if limits[each] < larger.get(each, math.inf))
    return not never_weaker(after, before) or any(each in before and strength(each) > least for each in smaller)
