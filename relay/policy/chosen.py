"""Chooses the settings for one mail: those of the file that covers its recipient, raised by all that fits.
Standard: policies/README.md; no rule replaces another, and their order does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from relay.levels import strength
from relay.policy.conditions import MailFacts
from relay.policy.file import PolicyFile
from relay.policy.rules import PlacedRule
from relay.policy.settings import Chosen, DoubtfulMatch, held_for
from relay.policy.strength import guarantee, united

RAISES = "raises what holds without it"


@dataclass(frozen=True, slots=True)
class RuleLook:
    """One rule that was looked at: its number (1 is the first), its line, and the result.

    `because` says what it does, or why it does not apply.
    """

    rule: int
    line: int
    applies: bool
    because: str


AppliedRule = tuple[PlacedRule, str]
"""A rule or floor that applies to a mail, and what is in doubt about that, or ""."""


def choose(
    file: PolicyFile, floors: Sequence[AppliedRule], asked: MailFacts, looks: list[RuleLook] | None = None
) -> Chosen:
    """The settings for this mail, raised by `floors` and the file's rules; appends every rule looked at to `looks`."""
    raising = list(floors)
    for number, (rule, line) in enumerate(zip(file.policy.when, file.rule_lines, strict=True), 1):
        fit, why = rule.fit(asked)
        if fit:
            raising.append((PlacedRule(rule, file.source, line, number), why))
        if looks is not None:
            looks.append(RuleLook(number, line, bool(fit), meaning(why) if fit else why))
    causes = tuple(dict.fromkeys(doubt for _, doubt in raising if doubt))
    result = raised(file.own, [rule for rule, _ in raising])
    if not causes:
        return result
    without = raised(file.own, [rule for rule, doubt in raising if not doubt])
    changed = differences(without, result)
    if not changed:
        return result
    return replace(result, doubt=DoubtfulMatch(causes, changed, f"{without.source}:{without.line}"))


def raised(base: Chosen, rules: Sequence[PlacedRule]) -> Chosen:
    """The settings `base`, raised by all rules: of everything the strictest counts."""
    result = base
    for rule in rules:
        when = rule.when
        if when.levels and strength(guarantee(when.levels)) > strength(guarantee(result.levels)):
            result = replace(result, source=rule.source, line=rule.line, rule=rule.number)
        result = replace(
            result,
            levels=united((result.levels, when.levels)) if when.levels else result.levels,
            otherwise=min(result.otherwise, when.otherwise or result.otherwise, key=held_for),
            priority=when.priority or result.priority,
        )
    return result


def meaning(doubt: str = "") -> str:
    """What a rule that applies does, and what is in doubt about that."""
    return f"{RAISES}, as {doubt}" if doubt else RAISES


def differences(before: Chosen, after: Chosen) -> tuple[str, ...]:
    """What rules have changed, each as "levels: otp instead of aes"."""
    values = ((name, _said(name, before), _said(name, after)) for name in ("levels", "otherwise", "priority"))
    return tuple(f"{name}: {new} instead of {old}" for name, old, new in values if old != new)


def _said(name: str, settings: Chosen) -> str:
    """A setting in the syntax of policy files."""
    value = getattr(settings, name)
    return ", ".join(value) if isinstance(value, tuple) else str(value)
