"""One policy file: its settings beside those of a rule, and their validation.
Standard: policies/README.md is the reference for every setting.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator

from relay.errors import ConfigError
from relay.files import toml
from relay.levels import ONLY_PLAINTEXT, PLAINTEXT, LevelName
from relay.policy.names import Scope, scope_of
from relay.policy.rules import Rules, When
from relay.policy.settings import DEFAULT_KEMS, Chosen, KEMNames, Otherwise, Priority, SealingSettings, Sign, parse_kems
from relay.policy.strength import Quantum, Required, parse_level, parse_levels, raised_quantum, strongest

Unprotected = Literal["refuse", "quarantine", "mark"]
"""What happens to mail that arrives with less than `require`."""

_LEVELS_LINE = re.compile(r"^[ \t]*levels[ \t]*=", re.MULTILINE)
_EMPTY_LINE = re.compile(r"^[ \t]*(?:#[^\r\n]*)?\n", re.MULTILINE)
_RULE_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*when[ \t]*\]\][ \t]*(?=[#\n]|\Z)", re.MULTILINE)


def _required(value: object) -> tuple[Required, ...]:
    """`"aes"` means `["aes"]`, `"none"` nothing; raises ValueError with the fault."""
    if value == "none":
        return ()
    words = tuple(map(_required_word, value if isinstance(value, list) else [value]))
    if not words:
        raise ValueError('write what must all be there, for instance ["pqc", "aes"], or leave the setting out')
    if len(set(words)) < len(words):
        raise ValueError("one of them is listed twice; leave one out")
    return words


def _required_word(item: object) -> Required:
    if item == "sealed":
        return "sealed"
    level = parse_level(item)
    if level == PLAINTEXT:
        raise ValueError('"plaintext" requires nothing; leave the setting out')
    return level


class Policy(SealingSettings):
    """The settings of one file. Read it with `context={"peers": names of peers, "scope": Scope}`."""

    peer: str | None = None
    levels: Annotated[tuple[LevelName, ...], BeforeValidator(parse_levels)]
    quantum: Quantum = "preferred"
    kem: Annotated[KEMNames, BeforeValidator(parse_kems)] = DEFAULT_KEMS
    sign: Sign = "ML-DSA-87"
    otherwise: Otherwise = "hold"
    priority: Priority = "normal"
    subdomains: bool = False
    require: Annotated[tuple[Required, ...], BeforeValidator(_required)] = ()
    unprotected: Unprotected = "refuse"
    when: Rules = ()

    @property
    def drops_require(self) -> bool:
        """Whether it cancels the requirements of files of parent domains."""
        return "require" in self.model_fields_set and not self.require

    @property
    def in_clear(self) -> bool:
        """True if these settings or a rule let mail out unsealed today."""
        return not self.not_now and any(
            each.levels == ONLY_PLAINTEXT and not each.not_now for each in (self, *self.when)
        )

    @property
    def groups(self) -> frozenset[str]:
        """The groups that its rules name."""
        return frozenset(group for rule in self.when for group in rule.groups)

    @property
    def patterns(self) -> int:
        """The number of texts and sizes that the rules compare with a message: a measure of the work."""
        return sum(rule.patterns for rule in self.when)

    @field_validator("peer")
    @classmethod
    def _peer_is_configured(cls, name: str, info: ValidationInfo) -> str:
        peers: Collection[str] = (info.context or {}).get("peers", ())
        if name in peers:
            return name
        close = difflib.get_close_matches(name, peers, n=1)
        configured = f"configured: {', '.join(sorted(peers))}" if peers else "none is configured"
        raise ValueError(f"no peer {name!r}; " + (f"did you mean {close[0]!r}?" if close else configured))

    @field_validator("unprotected")
    @classmethod
    def _only_with_require(cls, value: Unprotected, info: ValidationInfo) -> Unprotected:
        if "require" in info.data and not info.data["require"]:
            raise ValueError("without `require` nothing is unprotected; add it, or leave this out")
        return value

    @field_validator("subdomains")
    @classmethod
    def _only_a_domain_has_subdomains(cls, subdomains: bool, info: ValidationInfo) -> bool:
        scope: Scope = (info.context or {}).get("scope", "domain")
        if scope != "domain":
            raise ValueError(f"only for the file of a domain, and this one is for a {scope}; leave it out")
        return subdomains


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """One policy file, read and checked.

    `name` is its name in the directory (`example.org/alice.toml`), `domain` is "" for the default, `source` is its path
    for messages. `line` is the line of its `levels`; 1 is the first. `rule_lines` are those of each rule's `levels`,
    or of the rule if it has none. `digest` is SHA-256 of name and text. It `looks_inside` if a rule needs the
    message, so that the envelope alone does not decide. It `lists_plaintext` if it or a rule does, on any day.
    """

    name: str
    scope: Scope
    domain: str
    policy: Policy
    source: str
    line: int
    rule_lines: tuple[int, ...]
    own: Chosen
    digest: int
    looks_inside: bool
    lists_plaintext: bool


PolicyCache = MutableMapping[tuple[Scope, str], Policy]
"""Policies by scope and text: equal files share one, which saves time and memory."""

MAX_CACHED = 10_000


def parse_policy(
    name: str, source: str, text: str, digest: int, peers: Collection[str], cache: PolicyCache
) -> PolicyFile:
    """The policy file called `name`, of this text. Raises ConfigError with all its faults.

    `cache` is read and extended; always use it with the same `peers`.
    """
    try:
        scope, domain = scope_of(name)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    meaning = (scope, _without_comments(text))
    policy = cache.get(meaning)
    if policy is None:
        policy = toml.parse(text, Policy, source=source, context={"peers": peers, "scope": scope})
        if faults := [f"{source}:{line}: {fault}" for line, fault in _rules_that_lower(policy, text)]:
            raise ConfigError(faults)
        if len(cache) < MAX_CACHED:
            cache[meaning] = policy
    line, rule_lines = _lines(text, len(policy.when))
    own = Chosen(policy.levels, source=source).instead(policy, line)
    in_clear = any(each.levels == ONLY_PLAINTEXT for each in (policy, *policy.when))
    return PolicyFile(name, scope, domain, policy, source, line, rule_lines, own, digest, policy.patterns > 0, in_clear)


def _without_comments(text: str) -> str:
    """The text without lines that are plainly comments or empty."""
    if '"""' in text or "'''" in text:
        return text
    return _EMPTY_LINE.sub("", text)


def _rules_that_lower(policy: Policy, text: str) -> Iterator[tuple[int, str]]:
    """Rules that look into the message and set less than the file itself, each with its line."""
    for number, rule in enumerate(policy.when):
        if rule.looks_inside:
            for setting, fault in _lowered(policy, rule):
                yield _line(text, "when", number, setting), f"when.{number}.{setting}: {fault}"


def _lowered(policy: Policy, rule: When) -> Iterator[tuple[str, str]]:
    may = "a rule that looks into the message may only raise the level, and"
    raised = strongest((policy.levels, rule.levels or policy.levels))
    for level in rule.levels or ():
        if level not in raised or raised == policy.levels != rule.levels:
            yield "levels", f"{may} {level!r} is weaker than what it would be without; leave it out"
    if rule.quantum is not None and raised_quantum(policy.quantum, rule.quantum) != rule.quantum:
        yield "quantum", f"{may} {rule.quantum!r} is less than the file's own {policy.quantum!r}; leave it out"
    if rule.kem is not None and (dropped := set(policy.kem) - set(rule.kem)):
        yield "kem", f"{may} this one leaves out {', '.join(sorted(dropped))}; list it, too"
    if rule.max_size is not None and rule.levels is None:
        yield "max_size", f"{may} a size counts there only together with levels; add them"
    if rule.priority == "low" and policy.priority != "low":
        yield "priority", f'{may} "low" leaves it fewer keys; leave it out'


def _line(text: str, *location: str | int) -> int:
    return toml.line_of(text, location) or 1


def _lines(text: str, rules: int) -> tuple[int, tuple[int, ...]]:
    """The line of the file's own levels, and for each rule that of its levels, or else of its header.

    Plain text is scanned once; anything ambiguous is parsed as TOML instead.
    """
    headers = list(_RULE_HEADER.finditer(text))
    own, *others = _parts(text, [match.start() for match in headers])
    lines = [_levels_line(text, *part) for part in (own, *others)]
    if len(headers) != rules or not lines[0] or None in lines or '"""' in text or "'''" in text:
        rule_lines = tuple(_line(text, "when", number, "levels") for number in range(rules))
        return _line(text, "levels"), rule_lines
    at_headers = [_line_at(text, match.start()) for match in headers]
    return lines[0], tuple(line or header for line, header in zip(lines[1:], at_headers, strict=True))


def _parts(text: str, starts: list[int]) -> list[tuple[int, int]]:
    return list(zip([0, *starts], [*starts, len(text)], strict=True))


def _levels_line(text: str, start: int, end: int) -> int | None:
    """The line of the one `levels` between two offsets; 0 if there is none, None if there are several."""
    matches = list(_LEVELS_LINE.finditer(text, start, end))
    if len(matches) > 1:
        return None
    return _line_at(text, matches[0].end()) if matches else 0


def _line_at(text: str, offset: int) -> int:
    return text.count("\n", 0, offset) + 1
