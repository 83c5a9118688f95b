"""The settings that decide how a message is sealed, common to files and rules.
Standard: policies/README.md is the reference for every setting.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from relay.config import parse_size
from relay.files import toml
from relay.formats.cms import FURTHER_KEMS, ML_KEM_1024
from relay.levels import LEVELS, ONLY_PLAINTEXT, PLAINTEXT, PQC, SEALING, LevelName
from relay.policy.strength import Quantum, parse_level, parse_levels
from relay.policy.units import Duration

Otherwise = Literal["hold", "refuse"]
"""What happens when none of the listed levels is available, or can ever be (`impossible`)."""

Priority = Literal["low", "normal"]
"""Mail of low priority gets none of the reserved keys."""

Sign = Literal["ML-DSA-87"]
"""How level pqc signs."""

KEMNames = tuple[str, ...]
"""The KEMs of level pqc: ML-KEM-1024 first, then the further ones in the order of their layers, from the inside out."""

MAX_CAUSES = 3
"""Maximum number of causes of doubt in one line of the log."""

DEFAULT_KEMS: KEMNames = (ML_KEM_1024,)
_KEMS = (ML_KEM_1024, *FURTHER_KEMS)

_BY_NUMBER = {str(level.number): level.name for level in LEVELS}
"""Levels by number, written as a key of a TOML table."""

MaxSize = tuple[tuple[LevelName, int], ...]
"""The largest message, in bytes, for a level; levels without an entry take any."""


def parse_max_size(value: object) -> MaxSize | int:
    """`"256 KiB"` for all levels as a number of bytes, `{ otp = "256 KiB" }` as pairs; raises ValueError."""
    if isinstance(value, dict):
        if not value:
            raise ValueError('write a size for at least one level, for instance { otp = "256 KiB" }')
        sizes = [(_sealing_level(level), _size(level, size)) for level, size in value.items()]
        if len(dict(sizes)) < len(sizes):
            raise ValueError("a level has two sizes; leave one out")
        return tuple(sizes)
    return parse_size(value)


def _sealing_level(text: str) -> LevelName:
    level = parse_level(_BY_NUMBER.get(text, text))
    if level == PLAINTEXT:
        raise ValueError("a size for plaintext decides nothing; leave it out")
    return level


def _size(level: object, size: object) -> int:
    try:
        return parse_size(size)
    except ValueError as error:
        raise ValueError(f"{level}: {error}") from error


def parse_kems(value: object) -> KEMNames:
    """`["ml-kem-1024", "hqc-256"]`, or one name alone; raises ValueError with the fault and the correct spelling."""
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise ValueError('write a list of KEMs, for instance ["ml-kem-1024", "hqc-256"]')
    kems = tuple(_parse_kem(name) for name in names)
    if len(set(kems)) != len(kems):
        raise ValueError("a KEM is listed twice; leave one out")
    if ML_KEM_1024 not in kems:
        raise ValueError(f"{ML_KEM_1024!r} is missing; further KEMs go around it, never in its place")
    return with_kems(DEFAULT_KEMS, kems)


def with_kems(kems: KEMNames, more: KEMNames) -> KEMNames:
    """The KEMs, with those of `more` appended that are missing."""
    return (*kems, *(kem for kem in more if kem not in kems))


def _parse_kem(name: object) -> str:
    if isinstance(name, str) and name.lower() in _KEMS:
        return name.lower()
    close = difflib.get_close_matches(name.lower(), _KEMS, n=1) if isinstance(name, str) else ()
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(_KEMS)}"
    raise ValueError(f"{name!r} is not a KEM that is known here; {hint}")


class SealingSettings(toml.Table):
    """The settings common to files and rules; in a rule, None means the file's value."""

    levels: Annotated[tuple[LevelName, ...], BeforeValidator(parse_levels)] | None = None
    quantum: Quantum | None = None
    kem: Annotated[KEMNames, BeforeValidator(parse_kems)] | None = None
    sign: Sign | None = None
    max_size: Annotated[MaxSize | int, BeforeValidator(parse_max_size)] | None = None
    otherwise: Otherwise | None = None
    impossible: Otherwise | None = None
    hold_for: Duration | None = None
    priority: Priority | None = None
    since: date | None = None
    until: date | None = None
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = None

    @field_validator("until")
    @classmethod
    def _ends_after_it_begins(cls, until: date, info: ValidationInfo) -> date:
        if (since := info.data.get("since")) is not None and until < since:
            raise ValueError(f"it would end before it begins, on {since}; fix one of them")
        return until

    @field_validator("quantum")
    @classmethod
    def _nothing_quantum_in_clear(cls, quantum: Quantum, info: ValidationInfo) -> Quantum:
        if quantum == "required" and info.data.get("levels") == ONLY_PLAINTEXT:
            raise ValueError('"required" contradicts levels = ["plaintext"]; leave one of them out')
        return quantum

    @field_validator("kem")
    @classmethod
    def _further_kems_go_around_pqc(cls, kem: KEMNames, info: ValidationInfo) -> KEMNames:
        levels = info.data.get("levels")
        if len(kem) > 1 and levels is not None and PQC.name not in levels:
            raise ValueError(
                f"{kem[1]!r} goes around level pqc, which is not listed; add it to levels, or leave this out"
            )
        return kem

    @property
    def ended(self) -> bool:
        """Whether the last day of validity is over."""
        return self.until is not None and self.until < today()

    @property
    def not_now(self) -> str:
        """Why this is not in effect today, or ""."""
        if self.since is not None and today() < self.since:
            return f"it begins on {self.since}"
        return f"it ended on {self.until}" if self.ended else ""

    @property
    def limits(self) -> MaxSize:
        """The largest message in bytes for each level that has a limit; one size is for all levels."""
        if isinstance(self.max_size, int):
            return tuple((level, self.max_size) for level in SEALING)
        return self.max_size or ()


_day: ContextVar[date | None] = ContextVar("policy_day", default=None)


def today() -> date:
    """The day in UTC, or the one set by `on_day`."""
    return _day.get() or datetime.now(UTC).date()


@contextmanager
def on_day(day: date) -> Iterator[None]:
    """Context in which policies decide as on another day."""
    token = _day.set(day)
    try:
        yield
    finally:
        _day.reset(token)


class DoubtfulMatch(NamedTuple):
    """What counted as matching because it was in doubt: `causes` are sentences without their end.

    `changed` says what it did, each as "levels: otp instead of aes"; `where` is the file and line that would decide
    without it.
    """

    causes: tuple[str, ...]
    changed: tuple[str, ...]
    where: str

    def as_dict(self) -> dict[str, Any]:
        """JSON's types, with stable names."""
        return {"causes": list(self.causes), "changed": list(self.changed), "where": self.where}

    def __str__(self) -> str:
        """For log, ledger and explanations."""
        return f"{self._told(self.causes)} (without that doubt: {self.where})"

    @property
    def public(self) -> str:
        """For the client, in ASCII: what is in doubt, and what it did, but not why or by which file."""
        return self._told(tuple(cause.partition(" (")[0] for cause in self.causes))

    def _told(self, causes: tuple[str, ...]) -> str:
        more = f" and {len(causes) - MAX_CAUSES} more" if len(causes) > MAX_CAUSES else ""
        return f"{', '.join(causes[:MAX_CAUSES])}{more}, which counts as matching: {'; '.join(self.changed)}"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The effective settings for one mail to one recipient: a file's own, those of a rule, or raised ones.

    `source` and `line` locate its `levels`; `rule` is the number of the rule there, 0 for none. `doubt` is what raised
    them beside what surely fits.
    """

    levels: tuple[LevelName, ...]
    quantum: Quantum = "preferred"
    kem: KEMNames = DEFAULT_KEMS
    sign: Sign = "ML-DSA-87"
    max_size: MaxSize = ()
    otherwise: Otherwise = "hold"
    impossible: Otherwise | None = None
    hold_for: float | None = None
    priority: Priority = "normal"
    reason: str = ""
    source: str = ""
    line: int = 0
    rule: int = 0
    doubt: DoubtfulMatch | None = None

    @property
    def forbids_clear(self) -> bool:
        """Whether a quantum key is required for mail that would leave in clear: it is then held."""
        return self.levels == ONLY_PLAINTEXT and self.quantum == "required"

    def instead(self, settings: SealingSettings, line: int, rule: int = 0) -> Chosen:
        """A copy with those of these settings that are set."""
        values = {name: value for name in _REPLACED if (value := getattr(settings, name)) is not None}
        max_size = self.max_size if settings.max_size is None else settings.limits
        return replace(self, **values, max_size=max_size, line=line, rule=rule)


_REPLACED = ("levels", "quantum", "kem", "sign", "otherwise", "impossible", "hold_for", "priority", "reason")
