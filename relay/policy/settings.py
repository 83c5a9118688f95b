"""The settings that decide how a message is sealed, as a whole file and each of its rules may have them.
Standard: policies/README.md is the reference and has every setting that stands here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator

from relay import toml
from relay.config import parse_size
from relay.policy.strength import LevelName, Quantum, parse_level, parse_levels
from relay.policy.units import Duration

Otherwise = Literal["hold", "refuse"]
"""What happens when none of the listed levels can be had."""

Priority = Literal["low", "normal"]
"""Mail of low priority leaves alone what the KME keeps in reserve."""

KEM = Literal["ML-KEM-1024"]
"""How level pqc agrees on a key; every one that a level of this relay can do."""

Sign = Literal["ML-DSA-87"]
"""How level pqc signs."""

MaxSize = tuple[tuple[LevelName, int], ...]
"""The largest message, in octets, for a level; levels without an entry take any."""


def parse_max_size(value: object) -> MaxSize | int:
    """`"256 KiB"` for all levels as a number of octets, `{ otp = "256 KiB" }` as pairs; raises ValueError."""
    if isinstance(value, dict):
        if not value:
            raise ValueError('write a size for at least one level, for instance { otp = "256 KiB" }')
        return tuple((_sealing_level(level), _size(level, size)) for level, size in value.items())
    return parse_size(value)


def _sealing_level(text: object) -> LevelName:
    level = parse_level(text)
    if level == "plaintext":
        raise ValueError("a size for plaintext decides nothing; leave it out")
    return level


def _size(level: object, size: object) -> int:
    try:
        return parse_size(size)
    except ValueError as error:
        raise ValueError(f"{level}: {error}") from error


class Settings(toml.Table):
    """What may stand in a file and in a rule; in a rule, None means: as the file has it."""

    levels: Annotated[tuple[LevelName, ...], BeforeValidator(parse_levels)] | None = None
    quantum: Quantum | None = None
    kem: KEM | None = None
    sign: Sign | None = None
    max_size: Annotated[MaxSize | int, BeforeValidator(parse_max_size)] | None = None
    otherwise: Otherwise | None = None
    hold_for: Duration | None = None
    priority: Priority | None = None

    @field_validator("quantum")
    @classmethod
    def _nothing_quantum_in_clear(cls, quantum: Quantum, info: ValidationInfo) -> Quantum:
        if quantum == "required" and info.data.get("levels") == ("plaintext",):
            raise ValueError('"required" contradicts levels = ["plaintext"]; leave one of them out')
        return quantum

    def limits(self, levels: tuple[LevelName, ...]) -> dict[LevelName, int]:
        """The largest message in octets for each of `levels` that has a limit."""
        if self.max_size is None:
            return {}
        if isinstance(self.max_size, int):
            return dict.fromkeys(levels, self.max_size)
        return dict(self.max_size)
