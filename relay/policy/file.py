"""One policy file: its settings beside those of a rule, and their validation.
Standard: policies/README.md is the reference for every setting.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from relay.errors import ConfigError
from relay.files import toml
from relay.levels import ONLY_PLAINTEXT, PLAINTEXT, LevelName
from relay.policy.names import Scope, scope_of
from relay.policy.rules import Rules
from relay.policy.settings import (
    HOLD,
    Chosen,
    MaxSize,
    Otherwise,
    Priority,
    SealingSettings,
    held_for,
    parse_max_size,
    parse_otherwise,
)
from relay.policy.strength import Required, parse_level, parse_levels, united

Unprotected = Literal["refuse", "quarantine", "mark"]
"""What happens to mail that arrives with less than `require`."""

_LEVELS_LINE = re.compile(r"^[ \t]*levels[ \t]*=", re.MULTILINE)
_EMPTY_LINE = re.compile(r"^[ \t]*(?:#[^\r\n]*)?\n", re.MULTILINE)


def _required(value: object) -> Required | None:
    """A level, "sealed", or None for "none"; raises ValueError with the fault."""
    if value == "none":
        return None
    if value == "sealed":
        return "sealed"
    if value is None or isinstance(value, bool | list | dict):
        raise ValueError('write one level, the weakest that mail may arrive with, for instance "pqc+aes", or "sealed"')
    if (level := parse_level(value)) == PLAINTEXT:
        raise ValueError('"plaintext" requires nothing; leave the setting out')
    return level


class Policy(SealingSettings):
    """The settings of one file. Read it with `context={"peers": names of peers, "scope": Scope}`."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "rule": "rules are [[when]] tables",
        "rules": "rules are [[when]] tables",
        "floor": "[[floor]] tables stand in floors.toml",
    }

    peer: str | None = None
    levels: Annotated[tuple[LevelName, ...], BeforeValidator(parse_levels)]
    max_size: Annotated[MaxSize, BeforeValidator(parse_max_size)] = ()
    otherwise: Annotated[Otherwise, BeforeValidator(parse_otherwise)] = HOLD
    priority: Priority = "normal"
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    subdomains: bool = False
    require: Annotated[Required | None, BeforeValidator(_required)] = None
    unprotected: Unprotected = "refuse"
    when: Rules = ()

    @property
    def drops_require(self) -> bool:
        """Whether it cancels the requirements of files of parent domains."""
        return "require" in self.model_fields_set and not self.require

    @property
    def in_clear(self) -> bool:
        """True if mail leaves unsealed by this file today, where no rule or floor raises that."""
        return self.levels == ONLY_PLAINTEXT and not self.not_now

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
    message, so that the envelope alone does not decide.
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
        if faults := [f"{source}:{line}: {fault}" for line, fault in _rules_in_vain(policy, text)]:
            raise ConfigError(faults)
        if len(cache) < MAX_CACHED:
            cache[meaning] = policy
    line, rule_lines = _lines(text, len(policy.when))
    policy_values = policy.levels, policy.peer, policy.max_size, policy.otherwise, policy.priority
    own = Chosen(*policy_values, policy.reason or "", source, line)
    return PolicyFile(name, scope, domain, policy, source, line, rule_lines, own, digest, policy.patterns > 0)


def _without_comments(text: str) -> str:
    """The text without lines that are plainly comments or empty: files that differ by these alone are parsed once."""
    if '"""' in text or "'''" in text:
        return text
    return _EMPTY_LINE.sub("", text)


def _rules_in_vain(policy: Policy, text: str) -> Iterator[tuple[int, str]]:
    """Rules that raise nothing of what the file says itself, each with its line."""
    for number, rule in enumerate(policy.when):
        raises = {
            "levels": rule.levels is not None and united((policy.levels, rule.levels)) != policy.levels,
            "otherwise": rule.otherwise is not None and held_for(rule.otherwise) < held_for(policy.otherwise),
            "priority": rule.priority == "normal" and policy.priority == "low",
        }
        if not any(raises.values()):
            setting = next(name for name in raises if getattr(rule, name) is not None)
            what = "a rule only raises, and the file says as much already"
            remedy = "an exception is a more specific file, or not_sender in a rule that raises"
            yield _line(text, "when", number, setting), f"when.{number}.{setting}: {what}; {remedy}"


def _line(text: str, *location: str | int) -> int:
    return toml.line_of(text, location) or 1


def _lines(text: str, rules: int) -> tuple[int, tuple[int, ...]]:
    """The line of the file's own levels, and for each rule that of its levels, or else of its header.

    Most files have no rules, and one such line: 100,000 of them are not searched as TOML.
    """
    found = [] if rules or '"""' in text or "'''" in text else list(_LEVELS_LINE.finditer(text))
    if len(found) == 1:
        return text.count("\n", 0, found[0].end()) + 1, ()
    return _line(text, "levels"), tuple(_line(text, "when", number, "levels") for number in range(rules))
