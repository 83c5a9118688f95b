"""The rules and floors of one set as proofs need them: conditions with groups resolved, and effects.
Standard: policies/README.md; two items that say the same are equal, whatever the order of their texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from relay.policy.comparing.languages import contains
from relay.policy.patterns import Glob, Groups
from relay.policy.raising import Raising
from relay.policy.rules import LookedFor, PlacedRule, When
from relay.policy.settings import Chosen

MAX_SORTED = 50
"""Maximum number of patterns from which redundant ones are removed."""
People = Mapping[str, tuple[Glob, ...]]
"""The patterns of each condition on people."""


_NOTHING = LookedFor()


@dataclass(frozen=True, slots=True)
class Conditions:
    """The conditions of a rule: each that is not empty must hold. `larger_than` and `smaller_than` are in bytes."""

    people: People = field(default_factory=dict)
    looked_for: LookedFor = _NOTHING
    larger_than: int | None = None
    smaller_than: int | None = None

    def for_size(self, size: int) -> bool:
        """Whether the conditions on the size hold for this size, in bytes."""
        return (self.larger_than is None or size > self.larger_than) and (
            self.smaller_than is None or size < self.smaller_than
        )

    def with_people(self, **people: tuple[Glob, ...] | None) -> Conditions:
        """With other patterns in some conditions on people, and without those for which there is None."""
        changed = {**self.people, **people}
        return replace(self, people={name: globs for name, globs in changed.items() if globs is not None})

    @property
    def senders(self) -> bool:
        """Whether a condition is on the envelope sender."""
        return "sender" in self.people or "not_sender" in self.people


class Effect(NamedTuple):
    """The effect of a rule, as far as strength goes."""

    raising: Raising
    by_envelope: bool
    """It applies before the message is received."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One rule that raises, or a rule by sender that may.

    `rule` is its location (`source` is "" in a file, since files share rules). `maybe` marks a rule by sender that
    raises because its sender is in doubt.
    """

    rule: PlacedRule
    conditions: Conditions
    effect: Effect
    maybe: bool = False
    key: object = None
    """The same for items of the same meaning."""

    @classmethod
    def of(cls, rule: PlacedRule, groups: Groups) -> Item:
        """A rule with its groups resolved, which raises."""
        raising = _bare(Raising.of(rule))
        if rule.when.only_raises and raising.levels is not None and raising.limits is not None:
            raising = raising._replace(limits=tuple(each for each in raising.limits if each[0] in raising.levels))
        effect = Effect(raising, not rule.when.looks_inside)
        return cls._of(rule, conditions_of(rule.when, groups), effect)

    @classmethod
    def _of(cls, rule: PlacedRule, conditions: Conditions, effect: Effect, *, maybe: bool = False) -> Item:
        people = frozenset((name, frozenset(globs)) for name, globs in conditions.people.items())
        texts = tuple(frozenset(each) for each in conditions.looked_for)
        key = (maybe, people, texts, conditions.larger_than, conditions.smaller_than, effect)
        return cls(rule, conditions, effect, maybe, key)

    def having(self, conditions: Conditions) -> Item:
        """Returns the same item under other conditions."""
        return Item._of(self.rule, conditions, self.effect, maybe=self.maybe)

    def that_may(self, own: Chosen) -> Item:
        """A rule by sender as it applies to a sender in doubt; `own` is what its file says without it."""
        effect = Effect(_bare(Raising.instead(own, self.rule)), by_envelope=True)
        return Item._of(self.rule, self.conditions, effect, maybe=True)


def conditions_of(when: When, groups: Groups) -> Conditions:
    """The conditions of a rule, but not its time."""
    people = {name: _fewest(patterns.all(groups)) for name, patterns in when.people.items()}
    tags, fields, types, names = when.looked_for
    looked_for = LookedFor(tags, fields, _fewest(types), _fewest(names))
    return Conditions(people, looked_for, when.larger_than, when.smaller_than)


def _fewest(globs: Iterable[Glob]) -> tuple[Glob, ...]:
    """The same patterns without needless stars and, up to MAX_SORTED, without redundant ones."""
    plain = list(dict.fromkeys(map(_plain, globs)))
    if len(plain) > MAX_SORTED:
        return tuple(plain)
    return tuple(each for each in plain if not any(other != each and contains(other, each) for other in plain))


def _plain(glob: Glob) -> Glob:
    first, *rest = glob.parts
    return Glob((first, *(part for part in rest[:-1] if part), rest[-1])) if rest else glob


def _bare(raising: Raising) -> Raising:
    """Only the settings about strength, so that more items are equal."""
    limits = None if raising.limits is None else tuple(sorted(raising.limits))
    return Raising(raising.levels, limits, raising.quantum, raising.kem, raising.priority, None, None, None, "", 0, 0)


def bare(chosen: Chosen) -> Chosen:
    """What a file or a rule by sender says, as far as strength goes.

    Limits stay of levels that it does not list: a rule without limits has these.
    """
    limits = tuple(sorted(chosen.max_size))
    return Chosen(chosen.levels, chosen.quantum, chosen.kem, max_size=limits, priority=chosen.priority)
