"""Raises the settings for a mail by all rules that only raise: it never leaves weaker than any of them demands.
Standard: policies/README.md; lists of levels are compared for the size of each message, after their limits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from relay.levels import PQC, LevelName, strength
from relay.policy.rules import PlacedRule
from relay.policy.settings import Chosen, KEMNames, MaxSize, Otherwise, Priority, with_kems
from relay.policy.strength import Quantum, raised_quantum, strongest

T = TypeVar("T")

_Lists = Sequence[tuple[tuple[LevelName, ...], dict[LevelName, int]]]
"""Levels that are tried in turn, and their size limits."""


class Raising(NamedTuple):
    """The settings of one rule that raises, and its location; None: not set."""

    levels: tuple[LevelName, ...] | None
    limits: MaxSize | None
    quantum: Quantum | None
    kem: KEMNames | None
    priority: Priority | None
    otherwise: Otherwise | None
    impossible: Otherwise | None
    hold_for: float | None
    source: str
    line: int
    number: int

    @classmethod
    def of(cls, rule: PlacedRule) -> Raising:
        """The settings of a rule that only raises."""
        when = rule.when
        limits = when.limits if when.max_size is not None else None
        return cls(
            when.levels, limits, when.quantum, when.kem, when.priority,
            when.otherwise, when.impossible, when.hold_for, rule.source, rule.line, rule.number,
        )  # fmt: skip

    @classmethod
    def instead(cls, own: Chosen, rule: PlacedRule) -> Raising:
        """The settings of a rule by sender that may apply: all that would hold with it in the file's place."""
        would, when = own.instead(rule.when, rule.line, rule.number), rule.when
        return cls(
            would.levels, would.max_size, would.quantum, would.kem, would.priority,
            when.otherwise, when.impossible, when.hold_for, rule.source, rule.line, rule.number,
        )  # fmt: skip


def raised(base: Chosen, rules: Sequence[Raising], size: int) -> Chosen:
    """The settings `base`, raised by all rules, for a message of `size` bytes.

    A rule whose levels are all weaker than the result does not decide what happens to mail without a level. Its sizes
    still count: else a mail that is too large for it would leave because of one more rule.
    """
    whole = strongest((base.levels, *(rule.levels for rule in rules if rule.levels)))
    counting = [rule for rule in rules if not rule.levels or not set(whole).isdisjoint(rule.levels)]
    levels, max_size = _for_size(base, [rule for rule in rules if rule.levels], whole, size)
    quantum, kem, priority = base.quantum, base.kem, base.priority
    for rule in rules:
        quantum = raised_quantum(quantum, rule.quantum or quantum)
        kem = with_kems(kem, rule.kem) if rule.kem else kem
        priority = "normal" if rule.priority == "normal" else priority
    if not set(kem) <= set(base.kem):
        levels, max_size = _down_to_pqc(levels, max_size, size)
    result = replace(
        base,
        levels=levels,
        quantum=quantum,
        kem=kem,
        max_size=max_size,
        otherwise=_first([rule.otherwise for rule in counting], base.otherwise),
        impossible=_first([rule.impossible for rule in counting], base.impossible),
        hold_for=_first([rule.hold_for for rule in counting], base.hold_for),
        priority=priority,
    )
    decides = _deciding(base, result, counting, size)
    return result if decides is None else replace(result, source=decides.source, line=decides.line, rule=decides.number)


def _for_size(
    base: Chosen, rules: Sequence[Raising], whole: tuple[LevelName, ...], size: int
) -> tuple[tuple[LevelName, ...], MaxSize]:
    """The levels for a message of this size, including those whose limit is too small, and the limits.

    A size for which one of the lists has no level at all is too large for every level. The mail must not leave because
    of a rule, nor weaker than the rule demands.
    """
    if not rules:
        return base.levels, base.max_size
    if not base.max_size and not any(rule.limits for rule in rules):  # the common case
        return whole, ()
    own = dict(base.max_size)
    lists = [(base.levels, own), *((rule.levels or (), _limits(base, rule, own)) for rule in rules)]
    most = min((most for levels, limits in lists if (most := _most(levels, limits)) is not None), default=None)
    fitting = [tuple(level for level in levels if size <= limits.get(level, size)) for levels, limits in lists]
    # If one list has no level left, `most` limits all levels.
    chosen = strongest(tuple(fitting)) if all(fitting) else whole
    too_small = {level for level in whole if all(level not in each for each in fitting)}
    listed = tuple(level for level in whole if level in chosen or level in too_small)
    if tuple(level for level in listed if level in chosen) != chosen:
        listed = (*chosen, *(level for level in listed if level not in chosen))
    limits = _together(listed, lists, most)
    return listed, base.max_size if dict(limits) == {level: own[level] for level in listed if level in own} else limits


def _down_to_pqc(levels: tuple[LevelName, ...], max_size: MaxSize, size: int) -> tuple[tuple[LevelName, ...], MaxSize]:
    """The levels without those below pqc, if pqc is listed: a further KEM may be unavailable while pqc without it is
    available.
    """
    if PQC.name not in levels or size > dict(max_size).get(PQC.name, size):
        return levels, max_size
    kept = tuple(level for level in levels if strength(level) >= strength(PQC.name))
    return kept, tuple((level, limit) for level, limit in max_size if level in kept)


def _limits(base: Chosen, rule: Raising, own: dict[LevelName, int]) -> dict[LevelName, int]:
    """The limits of a rule's list: for levels that the file also lists, the file's own limit applies."""
    if rule.limits is None:
        return own
    limits = dict(rule.limits)
    for level in base.levels:
        if level in own:
            limits[level] = min(own[level], limits.get(level, own[level]))
    return limits


def _most(levels: Sequence[LevelName], limits: dict[LevelName, int]) -> int | None:
    """The largest message for which a list has a level; None without a limit."""
    sizes = [limits.get(level) for level in levels]
    return None if None in sizes else max(size for size in sizes if size is not None)


def _together(listed: Sequence[LevelName], lists: _Lists, most: int | None) -> MaxSize:
    """The largest message for each level: what the most generous list allows, capped by `most`."""
    joined: list[tuple[LevelName, int]] = []
    for level in listed:
        sizes = [limits.get(level) for levels, limits in lists if level in levels]
        largest = None if None in sizes else max(size for size in sizes if size is not None)
        limit = min((each for each in (largest, most) if each is not None), default=None)
        if limit is not None:
            joined.append((level, limit))
    return tuple(joined)


def _deciding(base: Chosen, result: Chosen, rules: Sequence[Raising], size: int) -> Raising | None:
    """The rule reported as the decider: one that added the level tried first, or forbids clear text."""
    if result.forbids_clear and not base.forbids_clear:
        return next((rule for rule in rules if rule.quantum == "required"), None)
    if result.levels == base.levels:
        return None
    with_levels = [rule for rule in rules if rule.levels]
    limits = dict(result.max_size)
    first = next((level for level in result.levels if size <= limits.get(level, size)), result.levels[0])
    return min(with_levels, key=lambda rule: first not in (rule.levels or ()), default=None)


def _first(values: Sequence[T | None], otherwise: T) -> T:
    return next((each for each in values if each is not None), otherwise)
