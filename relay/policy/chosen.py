"""Chooses the settings for one mail from the file that covers its recipient, and the rules and floors that raise them.
Standard: policies/README.md; the first rule by sender that surely fits takes the place of the file's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from relay.policy.conditions import MailFacts
from relay.policy.file import PolicyFile
from relay.policy.people import Fit
from relay.policy.raising import Raising, raised
from relay.policy.rules import PlacedRule, When
from relay.policy.settings import Chosen, DoubtfulMatch
from relay.policy.units import duration_text

if TYPE_CHECKING:
    from relay.policy.decide import Decision


class RuleLook(NamedTuple):
    """One rule that was looked at: its number (1 is the first), its line, and the result.

    `applies` is True for the rule by sender that takes the file's place, and for all that raise. `because` says what it
    does, or why it does not apply.
    """

    rule: int
    line: int
    applies: bool
    because: str


AppliedFloor = tuple[PlacedRule, str]
"""A floor that applies to a mail, and what is in doubt about that, or ""."""


def choose(
    file: PolicyFile, floors: Sequence[AppliedFloor], asked: MailFacts, looks: list[RuleLook] | None = None
) -> Chosen:
    """The settings for this mail, raised by `floors`; appends every rule of the file that was checked to `looks`."""
    chosen, instead = file.own, False
    raising = [(Raising.of(floor), doubt) for floor, doubt in floors]
    for number, (rule, line) in enumerate(zip(file.policy.when, file.rule_lines, strict=True), 1):
        fit, why = rule.fit(asked)
        does = ""
        if not fit:
            does = why
        elif rule.only_raises:
            raising.append((Raising.of(PlacedRule(rule, file.source, line, number)), why))
            does = meaning(rule, why)
        elif fit is Fit.MAYBE:
            # The sender is in doubt, so the rule may not lower anything.
            raising.append((Raising.instead(file.own, PlacedRule(rule, file.source, line, number)), why))
            does = "its sender may be meant, so it raises what holds without it"
        elif instead:
            fit, does = Fit.NOT, "a rule by sender before it applies"
        else:
            chosen, instead = chosen.instead(rule, line, number), True
        if looks is not None:
            looks.append(RuleLook(number, line, fit is not Fit.NOT, does or meaning(rule)))
    return _raised(chosen, raising, asked)


def _raised(base: Chosen, raising: Sequence[tuple[Raising, str]], asked: MailFacts) -> Chosen:
    """The settings raised by all rules, and what those did that apply because something is in doubt."""
    if not raising:
        return base
    size = asked.content.sealed_size if asked.content is not None else 0
    result = raised(base, [rule for rule, _ in raising], size)
    causes = tuple(dict.fromkeys(doubt for _, doubt in raising if doubt))
    if not causes:
        return result
    certain = [rule for rule, doubt in raising if not doubt]
    without = raised(base, certain, size) if certain else base
    changed = differences(without, result)
    return (
        replace(result, doubt=DoubtfulMatch(causes, changed, f"{without.source}:{without.line}")) if changed else result
    )


def meaning(rule: When, doubt: str = "") -> str:
    """What a rule that applies does, and what is in doubt about that."""
    does = "raises what holds without it" if rule.only_raises else "its settings hold instead of the file's"
    return f"{does}, as {doubt}" if doubt else does


def differences(before: Chosen | Decision, after: Chosen | Decision) -> tuple[str, ...]:
    """What is different, each as "levels: otp instead of aes"."""
    names = ("levels", "quantum", "kem", "max_size", "otherwise", "impossible", "hold_for", "priority")
    values = ((name, _said(name, before), _said(name, after)) for name in names)
    return tuple(f"{name}: {new} instead of {old}" for name, old, new in values if old != new)


def _said(name: str, settings: Chosen | Decision) -> str:
    """A setting in the syntax of policy files; an unset one takes the value of another."""
    if name == "max_size":
        limits = sorted(each for each in settings.max_size if each[0] in settings.levels)
        return ", ".join(f"{level} {size}" for level, size in limits) or "none"
    if name == "hold_for":
        return "none" if settings.hold_for is None else duration_text(settings.hold_for)
    if name == "impossible":
        return settings.impossible or settings.otherwise
    value = getattr(settings, name)
    return ", ".join(value) if isinstance(value, tuple) else str(value)
