"""Chooses what the file that covers a recipient says for one mail, and raises it by the rules that only raise.
The first rule by sender that applies takes the place of the file's settings; then the strongest of all counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

from relay.policy.content import MessageFacts
from relay.policy.file import PolicyFile
from relay.policy.kems import with_kems
from relay.policy.patterns import Groups, spellings
from relay.policy.rules import PlacedRule, When
from relay.policy.settings import Chosen, MaxSize
from relay.policy.strength import LevelName, raised_quantum, strongest

T = TypeVar("T")


class RuleLook(NamedTuple):
    """One rule that was looked at: its number (1 is the first), its line, and what came of it.

    `applies` is True for the rule by sender that takes the file's place, and for all that raise; `because` says what it
    does, or why it does not.
    """

    rule: int
    line: int
    applies: bool
    because: str


def choose(
    file: PolicyFile,
    floors: Sequence[PlacedRule],
    sender: str,
    content: MessageFacts | None,
    groups: Groups,
    looks: list[RuleLook] | None = None,
) -> Chosen:
    """What holds for this mail, raised by `floors`; every rule of the file that was looked at is put into `looks`."""
    chosen, instead = file.own, False
    raising = list(floors)
    spelled = spellings(sender) if file.policy.when else ()
    for number, (rule, line) in enumerate(zip(file.policy.when, file.rule_lines, strict=True), 1):
        mismatch = rule.mismatch(spelled, content, groups)
        if not mismatch and rule.only_raises:
            raising.append(PlacedRule(rule, file.source, line, number))
        elif not mismatch and instead:
            mismatch = "a rule by sender before it applies"
        elif not mismatch:
            chosen, instead = chosen.instead(rule, line, number), True
        if looks is not None:
            looks.append(RuleLook(number, line, not mismatch, mismatch or meaning(rule)))
    return _raised(chosen, raising) if raising else chosen


def meaning(rule: When) -> str:
    """What a rule that applies does."""
    return "raises what holds without it" if rule.only_raises else "its settings hold instead of the file's"


def _raised(base: Chosen, rules: Sequence[PlacedRule]) -> Chosen:
    """What holds without these rules, raised by all of them.

    Of a rule whose levels all turn out too weak nothing else counts that is about levels: sizes, and what happens where
    they cannot be had.
    """
    levels = strongest((base.levels, *(rule.when.levels for rule in rules if rule.when.levels)))
    counting = [rule for rule in rules if not rule.when.levels or set(rule.when.levels) & set(levels)]
    quantum, kem, priority = base.quantum, base.kem, base.priority
    for rule in rules:
        quantum = raised_quantum(quantum, rule.when.quantum or quantum)
        kem = with_kems(kem, rule.when.kem) if rule.when.kem else kem
        priority = "normal" if rule.when.priority == "normal" else priority
    result = replace(
        base,
        levels=levels,
        quantum=quantum,
        kem=kem,
        max_size=_sizes(levels, base, counting),
        otherwise=_first([rule.when.otherwise for rule in counting], base.otherwise),
        impossible=_first([rule.when.impossible for rule in counting], base.impossible),
        hold_for=_first([rule.when.hold_for for rule in counting], base.hold_for),
        priority=priority,
    )
    if result == base:
        return base
    deciding = [rule for rule in counting if rule.when.levels or levels == base.levels] or list(rules)
    decides = min(deciding, key=lambda rule: levels[0] not in (rule.when.levels or ()))
    return replace(result, source=decides.source, line=decides.line, rule=decides.number)


def _sizes(levels: Sequence[LevelName], base: Chosen, rules: Sequence[PlacedRule]) -> MaxSize:
    """The largest message for each level that has a limit: the most that anybody who lists it allows."""
    lists = [
        (rule.when.levels, rule.when.limits if rule.when.max_size else base.max_size)
        for rule in rules
        if rule.when.levels
    ]
    if not lists:
        return base.max_size
    found: list[tuple[LevelName, int]] = []
    for level in levels:
        sizes = [dict(limits).get(level) for named, limits in [(base.levels, base.max_size), *lists] if level in named]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes):
            found.append((level, max(known)))
    unchanged = dict(found) == {level: size for level, size in base.max_size if level in levels}
    return base.max_size if unchanged else tuple(found)


def _first(said: Sequence[T | None], otherwise: T) -> T:
    return next((each for each in said if each is not None), otherwise)
