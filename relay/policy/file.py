"""One policy file: which settings it may have, what they mean, and what is wrong with them.
Standard: policies/README.md is the reference and has every setting that stands here.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BeforeValidator, ValidationInfo, field_validator

from relay import toml
from relay.errors import ConfigError
from relay.policy.names import Scope, printable, scope_of

LevelName = Literal["otp", "aes", "pqc", "rsa", "plaintext"]
"""How a message is sealed; `plaintext` is not at all."""

Quantum = Literal["off", "preferred", "required"]
"""Whether pqc and rsa get one more layer under a quantum key."""

Otherwise = Literal["hold", "refuse"]
"""What happens when none of the listed levels can be had."""

_NAMES: tuple[LevelName, ...] = get_args(LevelName)
_NUMBERED = _NAMES[:4]


def parse_levels(value: object) -> tuple[LevelName, ...]:
    """`["otp", 2]` as ("otp", "aes"); raises ValueError saying what is wrong and how to write it.

    There is no number for plaintext, and it stands alone: nobody shall get it by a slip, nor as the last
    resort of a list.
    """
    if not isinstance(value, list) or not value:
        raise ValueError('write a list with at least one level, for instance ["otp", "aes"]')
    levels = tuple(_level(item) for item in value)
    for place, level in enumerate(levels):
        if level in levels[:place]:
            raise ValueError(f"{level!r} is listed twice; leave one out")
    if "plaintext" in levels and len(levels) > 1:
        raise ValueError(
            '"plaintext" stands alone: levels = ["plaintext"] lets this mail out in clear; '
            "leave it out to have the mail sealed"
        )
    return levels


def _level(item: object) -> LevelName:
    for number, name in enumerate(_NAMES, 1):
        if item == name or (name in _NUMBERED and type(item) is int and item == number):
            return name
    close = difflib.get_close_matches(item.lower(), _NAMES, n=1) if isinstance(item, str) else ()
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_NAMES)}, or 1 to {len(_NUMBERED)}"
    raise ValueError(f"{item!r} is not a level; {hint}")


class Policy(toml.Table):
    """The settings of one file. Read it with `context={"peers": names of peers, "scope": Scope}`."""

    peer: str | None = None
    levels: Annotated[tuple[LevelName, ...], BeforeValidator(parse_levels)]
    quantum: Quantum = "preferred"
    otherwise: Otherwise = "hold"
    subdomains: bool = False

    @property
    def in_clear(self) -> bool:
        """True where these settings let mail out unsealed."""
        return self.levels == ("plaintext",)

    @field_validator("peer")
    @classmethod
    def _peer_is_configured(cls, name: str, info: ValidationInfo) -> str:
        peers: Collection[str] = (info.context or {}).get("peers", ())
        if name in peers:
            return name
        close = difflib.get_close_matches(name, peers, n=1)
        known = f"configured: {', '.join(sorted(peers))}" if peers else "none is configured"
        raise ValueError(f"no peer {name!r}; " + (f"did you mean {close[0]!r}?" if close else known))

    @field_validator("quantum")
    @classmethod
    def _nothing_quantum_in_clear(cls, quantum: Quantum, info: ValidationInfo) -> Quantum:
        if quantum == "required" and info.data.get("levels") == ("plaintext",):
            raise ValueError('"required" contradicts levels = ["plaintext"]; leave one of them out')
        return quantum

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

    `name` is its name in the directory (`example.org/alice.toml`), `domain` is "" for the default,
    `source` is its path for messages, `line` (1 is the first) is where its `levels` stand.
    """

    name: str
    scope: Scope
    domain: str
    policy: Policy
    source: str
    line: int


def read_policy(directory: Path, name: str, peers: Collection[str]) -> tuple[PolicyFile, str]:
    """Read the file `name` in `directory`; also gives its text. Raises ConfigError with all its faults."""
    path = directory / name
    source = printable(str(path))
    try:
        scope, domain = scope_of(name)
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error
    _expect_regular(path, source)
    text = toml.read(path)
    policy = toml.parse(text, Policy, source=source, context={"peers": peers, "scope": scope})
    line = toml.line_of(text, ("levels",)) or 1
    return PolicyFile(name, scope, domain, policy, source, line), text


def _expect_regular(path: Path, source: str) -> None:
    """Raise ConfigError for a pipe or device, which would never end, and for a link that leads nowhere."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read: {error.strerror}") from error
    if not regular:
        raise ConfigError(f"{source}: not a regular file; a policy is a file (or a link to one)")
