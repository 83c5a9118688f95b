"""What holds for the mails that some rules fit, and which of two such outcomes is weaker.
Standard: policies/README.md; lists with the union cut at the strictest guarantee are a lattice (a test tries all).

So what several rules say together is never weaker than before, if what each of them says alone is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relay.levels import ONLY_PLAINTEXT, QUANTUM, SMIME, strength
from relay.policy.chosen import raised
from relay.policy.comparing.conditions import Conditions
from relay.policy.rules import PlacedRule
from relay.policy.settings import Chosen
from relay.policy.strength import guarantee, united


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


def stays(outcome: MailOutcome) -> bool:
    """Whether the mail never leaves."""
    return outcome is None or (outcome.peer is None and not _in_clear(outcome) and SMIME not in outcome.levels)


def _in_clear(outcome: Chosen) -> bool:
    return outcome.levels == ONLY_PLAINTEXT


@dataclass(frozen=True, slots=True)
class Side:
    """What one set says of some recipients on a day: the file's own settings, None without one, and all that raises."""

    own: MailOutcome
    effects: tuple[Effect, ...]

    def outcome(self, effects: Iterable[Effect]) -> MailOutcome:
        """The outcome for mail that these rules fit."""
        return raised(self.own, [each.rule for each in effects]) if self.own is not None else None

    def implied(self, conditions: Conditions | None) -> Sequence[Effect]:
        """The rules that surely fit all mail of these conditions."""
        return [] if conditions is None else [each for each in self.effects if conditions.imply(each.conditions)]

    @property
    def needs_reserve(self) -> bool:
        """Whether some mail may leave by a weaker level, because a quantum key is not there for it."""
        lists = (self.own.levels if self.own else (), *(each.rule.when.levels or () for each in self.effects))
        levels = {level for some in lists for level in some}
        least = min(map(strength, levels), default=0)
        return any(level.rpartition("+")[2] in QUANTUM and strength(level) > least for level in levels)


def weaker(new: MailOutcome, old: MailOutcome, *, keys: bool = True) -> str:
    """Why mail may leave weaker than before, or where it could not leave, or be read by another peer; or "".

    `keys` says whether reserved keys make a difference.
    """
    if new is None or stays(new) or (old is not None and _in_clear(old)):
        return ""
    if old is None or stays(old):
        return "it could not leave before"
    if _in_clear(new):
        return "it leaves in clear"
    if new.peer != old.peer:
        return f"peer {new.peer!r} can read it, instead of {old.peer!r}"
    if united((new.levels, old.levels)) != new.levels:
        return f"levels: {', '.join(new.levels)} instead of {', '.join(old.levels)}"
    least = strength(guarantee(new.levels))
    before, after = dict(old.max_size), dict(new.max_size)
    for level in old.levels:
        if strength(level) > least and level in after and after[level] < before.get(level, after[level] + 1):
            return f"max_size of {level}: {after[level]} instead of {before.get(level, 'none')}"
    return lower_priority(new, old) if keys else ""


def lower_priority(new: MailOutcome, old: MailOutcome) -> str:
    """Why a key kept in reserve is not for mail that had one, or "".

    It counts beside plaintext too, where it says what holds at least: another rule that fits may list levels.
    """
    if new is None or old is None or (new.priority, old.priority) != ("low", "normal"):
        return ""
    return "priority: low instead of normal"
