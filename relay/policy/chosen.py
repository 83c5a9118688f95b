"""Chooses the settings for one mail from the file that covers its recipient, and the rules and floors that raise them.
Standard: policies/README.md; the first rule by sender that surely fits takes the place of the file's settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from relay.policy.conditions import MailFacts
from relay.policy.file import PolicyFile
from relay.policy.people import Fit
from relay.policy.raising import Raising, raised
from relay.policy.rules import PlacedRule, When
from relay.policy.settings import Chosen


class RuleLook(NamedTuple):
    """One rule that was looked at: its number (1 is the first), its line, and the result.

    `applies` is True for the rule by sender that takes the file's place, and for all that raise. `because` says what it
    does, or why it does not apply.
    """

    rule: int
    line: int
    applies: bool
    because: str


def choose(
    file: PolicyFile, floors: Sequence[PlacedRule], asked: MailFacts, looks: list[RuleLook] | None = None
) -> Chosen:
    """The settings for this mail, raised by `floors`; appends every rule of the file that was checked to `looks`."""
    chosen, instead = file.own, False
    raising = list(map(Raising.of, floors))
    for number, (rule, line) in enumerate(zip(file.policy.when, file.rule_lines, strict=True), 1):
        fit, why = rule.fit(asked)
        does = ""
        if not fit:
            does = why
        elif rule.only_raises:
            raising.append(Raising.of(PlacedRule(rule, file.source, line, number)))
        elif fit is Fit.MAYBE:
            # The sender is in doubt, so the rule may not lower anything.
            raising.append(Raising.instead(file.own, PlacedRule(rule, file.source, line, number)))
            does = "its sender may be meant, so it raises what holds without it"
        elif instead:
            fit, does = Fit.NOT, "a rule by sender before it applies"
        else:
            chosen, instead = chosen.instead(rule, line, number), True
        if looks is not None:
            looks.append(RuleLook(number, line, fit is not Fit.NOT, does or meaning(rule)))
    if not raising:
        return chosen
    return raised(chosen, raising, asked.content.sealed_size if asked.content is not None else 0)


def meaning(rule: When) -> str:
    """What a rule that applies does."""
    return "raises what holds without it" if rule.only_raises else "its settings hold instead of the file's"
