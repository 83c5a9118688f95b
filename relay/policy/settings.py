"""The settings that decide how a message is sealed, as a whole file and each of its rules may have them.
Standard: policies/README.md is the reference and has every setting that stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator

from relay import toml
from relay.config import parse_size
from relay.policy.kems import KEMNames, parse_kems
from relay.policy.strength import SEALING, LevelName, Quantum, parse_level, parse_levels
from relay.policy.units import Duration

Otherwise = Literal["hold", "refuse"]
"""What happens when none of the listed levels can be had."""

Priority = Literal["low", "normal"]
"""Mail of low priority leaves alone what the KME keeps in reserve."""

Sign = Literal["ML-DSA-87"]
"""How level pqc signs."""

MaxSize = tuple[tuple[LevelName, int], ...]
"""The largest message, in octets, for a level; levels without an entry take any."""


def parse_max_size(value: object) -> MaxSize | int:
    """`"256 KiB"` for all levels as a number of octets, `{ otp = "256 KiB" }` as pairs; raises ValueError."""
    if isinstance(value, dict):
        if not value:
            raise ValueError('write a size for at least one level, for instance { otp = "256 KiB" }')
        sizes = [(_sealing_level(level), _size(level, size)) for level, size in value.items()]
        if len(dict(sizes)) < len(sizes):
            raise ValueError("a level has two sizes; leave one out")
        return tuple(sizes)
    return parse_size(value)


def _sealing_level(text: str) -> LevelName:
    level = parse_level(int(text) if text in ("1", "2", "3", "4") else text)
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
    kem: Annotated[KEMNames, BeforeValidator(parse_kems)] | None = None
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

    @field_validator("kem")
    @classmethod
    def _further_kems_go_around_pqc(cls, kem: KEMNames, info: ValidationInfo) -> KEMNames:
        levels = info.data.get("levels")
        if len(kem) > 1 and levels is not None and "pqc" not in levels:
            raise ValueError(
                f"{kem[1]!r} goes around level pqc, which is not listed; add it to levels, or leave this out"
            )
        return kem

    @property
    def limits(self) -> MaxSize:
        """The largest message in octets for each level that has a limit; one size is for all levels."""
        if isinstance(self.max_size, int):
            return tuple((level, self.max_size) for level in SEALING)
        return self.max_size or ()


@dataclass(frozen=True, slots=True)
class Chosen:
    """The settings that hold for one mail to one recipient, whether a file's own or those of a rule.

    `line` is where its `levels` stand; `rule` is the number of the rule, 0 for none.
    """

    levels: tuple[LevelName, ...]
    quantum: Quantum
    kem: KEMNames
    sign: Sign
    max_size: MaxSize
    otherwise: Otherwise
    hold_for: float | None
    priority: Priority
    line: int
    rule: int = 0
