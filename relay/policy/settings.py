"""The settings that decide how a message is sealed: those of files, and those that rules raise.
Standard: policies/README.md is the reference for every setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BeforeValidator

from relay.config import parse_size
from relay.files import toml
from relay.levels import LEVELS, PLAINTEXT, LevelName
from relay.policy.strength import parse_level, parse_levels
from relay.policy.units import Day, duration_text, parse_duration

Otherwise = str
"""What happens while none of the levels can be had: "hold", "refuse", or "hold 12 h", which refuses after that time."""
HOLD: Otherwise = "hold"
REFUSE: Otherwise = "refuse"

Priority = Literal["low", "normal"]
"""Mail of low priority gets none of the reserved keys."""

MAX_CAUSES = 3
"""Maximum number of causes of doubt in one line of the log."""

_BY_NUMBER = {str(level.number): level.name for level in LEVELS}
"""Levels by number, written as a key of a TOML table."""

MaxSize = tuple[tuple[LevelName, int], ...]
"""The largest message, in bytes, for a level; levels without an entry take any."""


def parse_otherwise(value: object) -> Otherwise:
    """`"hold"`, `"refuse"`, or `"hold 12 h"` as that; raises ValueError."""
    if value in (HOLD, REFUSE):
        return str(value)
    word, _, time = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if word != HOLD:
        raise ValueError('write "hold", "refuse", or how long it is held, such as "hold 12 h"')
    return f"{HOLD} {duration_text(parse_duration(time))}"


@lru_cache(maxsize=1000)
def held_for(otherwise: Otherwise) -> float:
    """The time in seconds for which mail is held before it is refused: 0 for "refuse", infinite for "hold"."""
    if otherwise == REFUSE:
        return 0.0
    return math.inf if otherwise == HOLD else parse_duration(otherwise.partition(" ")[2])


def parse_max_size(value: object) -> MaxSize:
    """`{ otp = "256 KiB" }` as pairs of a level and a number of bytes; raises ValueError."""
    if not isinstance(value, dict) or not value:
        raise ValueError('write a size for at least one level, for instance { otp = "256 KiB" }')
    sizes = [(_sealing_level(level), _size(level, size)) for level, size in value.items()]
    if len(dict(sizes)) < len(sizes):
        raise ValueError("a level has two sizes; leave one out")
    return tuple(sizes)


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


class SealingSettings(toml.Table):
    """The settings common to files and rules; in a rule, None means that it raises nothing there."""

    levels: Annotated[tuple[LevelName, ...], BeforeValidator(parse_levels)] | None = None
    otherwise: Annotated[Otherwise, BeforeValidator(parse_otherwise)] | None = None
    priority: Priority | None = None
    until: Day | None = None

    @property
    def ended(self) -> bool:
        """Whether the last day of validity is over."""
        return self.until is not None and self.until < today()

    @property
    def not_now(self) -> str:
        """Why this is not in effect today, or ""."""
        return f"it ended on {self.until}" if self.ended else ""


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


@dataclass(frozen=True, slots=True)
class DoubtfulMatch:
    """What counted as matching because it was in doubt: `causes` are sentences without their end.

    `changed` says what it did, each as "levels: otp instead of aes"; `where` is the file and line that would decide
    without it.
    """

    causes: tuple[str, ...]
    changed: tuple[str, ...]
    where: str

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
    """The effective settings for mail to one recipient: a file's own, or raised ones.

    `levels` are tried in order. `peer` is None where no peer's keys are known. `max_size` has the largest message
    (bytes) for levels that have a limit. `otherwise` is for mail that can have none of the levels now; what never can
    is refused. `reason` is the file's reason for mail in clear. `source` and `line` locate the list whose guarantee
    counts; `rule` is the number of the rule there, 0 for none. `doubt` is what raised them because it could not be
    read beyond doubt.
    """

    levels: tuple[LevelName, ...]
    peer: str | None = None
    max_size: MaxSize = ()
    otherwise: Otherwise = HOLD
    priority: Priority = "normal"
    reason: str = ""
    source: str = ""
    line: int = 0
    rule: int = 0
    doubt: DoubtfulMatch | None = None
