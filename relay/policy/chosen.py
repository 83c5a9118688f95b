"""Chooses, within the file that covers a recipient, the first rule that applies, or else the file's own settings.
Standard: a rule that looks into the message raises what would hold without it, and never lowers it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from relay.policy.content import Content
from relay.policy.file import PolicyFile
from relay.policy.kems import with_kems
from relay.policy.rules import Sender, When
from relay.policy.settings import Chosen
from relay.policy.strength import raised, raised_quantum


class RuleLook(NamedTuple):
    """One rule that was looked at: its number (1 is the first), its line, and what came of it.

    `applies` is True for the rule that decides, and for the one by sender that it raises; else `because` says why not.
    """

    rule: int
    line: int
    applies: bool
    because: str


def choose(file: PolicyFile, sender: str, content: Content | None, looks: list[RuleLook] | None = None) -> Chosen:
    """What the file says for this mail; every rule looked at is put into `looks`."""
    if not file.policy.when:
        return file.own
    if content is None or looks is not None:
        return _by_rules(file, sender, content, looks)
    return content.once((file.digest, sender), lambda: _by_rules(file, sender, content, None))


def _by_rules(file: PolicyFile, sender: str, content: Content | None, looks: list[RuleLook] | None) -> Chosen:
    by_envelope = Sender.of(sender)
    trigger = 0
    base = file.own
    for number, (rule, line) in enumerate(zip(file.policy.when, file.rule_lines, strict=True), 1):
        second = bool(trigger) and rule.looks_inside
        mismatch = "a rule before it applies" if second else rule.mismatch(by_envelope, content)
        if looks is not None:
            looks.append(RuleLook(number, line, not mismatch, mismatch or _meaning(rule)))
        if mismatch:
            continue
        if rule.looks_inside:
            trigger = number
            continue
        base = _instead(base, rule, number, line)
        break
    return _raised(base, file.policy.when[trigger - 1], trigger, file.rule_lines[trigger - 1]) if trigger else base


def _meaning(rule: When) -> str:
    return "raises what holds without it" if rule.looks_inside else "its settings hold instead of the file's"


def _instead(base: Chosen, rule: When, number: int, line: int) -> Chosen:
    """The rule's settings in place of those of the file."""
    return Chosen(
        rule.levels or base.levels,
        rule.quantum or base.quantum,
        rule.kem or base.kem,
        rule.sign or base.sign,
        base.max_size if rule.max_size is None else rule.limits,
        rule.otherwise or base.otherwise,
        rule.hold_for or base.hold_for,
        rule.priority or base.priority,
        line,
        number,
    )


def _raised(base: Chosen, rule: When, number: int, line: int) -> Chosen:
    """The rule's settings as far as they are not less than what holds without it.

    Its sizes count only with levels of its own: those are no weaker than any that the base could give, so that
    passing over one of them cannot lead to less.
    """
    result = _instead(base, rule, number, line)
    levels = raised(base.levels, rule.levels) if rule.levels else ()
    return replace(
        result,
        levels=levels or base.levels,
        quantum=raised_quantum(base.quantum, result.quantum),
        kem=with_kems(base.kem, result.kem),
        max_size=result.max_size if levels else base.max_size,
        priority="normal" if "normal" in (base.priority, result.priority) else "low",
        line=line if levels or not rule.levels else base.line,
    )
