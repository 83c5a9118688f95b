"""Times and lists of texts in policy files; doubtful values are refused with the correct spelling."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated

from pydantic import BeforeValidator, Field

MAX_HOLD_S = 30 * 86400
"""Maximum time that mail is held, in seconds."""
MAX_TEXTS = 1000
MAX_TEXT = 1000

_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def parse_duration(value: object) -> float:
    """`"4 h"`, `"30 min"`, `"2 d"` or a number of seconds, as seconds; raises ValueError."""
    seconds = 0.0
    if isinstance(value, int) and not isinstance(value, bool):
        seconds = float(min(value, 2 * MAX_HOLD_S))  # a number may be too large for a float
    elif isinstance(value, str) and (match := re.fullmatch(r"(\d{1,9})\s*(s|min|h|d)", value.strip())):
        seconds = float(match[1]) * _UNITS[match[2]]
    if not 0 < seconds <= MAX_HOLD_S:
        raise ValueError('write a time such as "30 min", "4 h" or "2 d" (at most 30 d), or a number of seconds')
    return seconds


def duration_text(seconds: float) -> str:
    """Seconds in the largest unit that needs no fraction: "12 h" for 43200."""
    unit = max((unit for unit, length in _UNITS.items() if seconds % length == 0), key=_UNITS.__getitem__, default="s")
    return f"{seconds / _UNITS[unit]:g} {unit}"


def parse_day(value: object) -> date:
    """A TOML date; raises ValueError."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise ValueError("write a day without quotes and time, such as 2027-01-31")


def list_as_tuple(value: object) -> object:
    """A list of TOML tables as a tuple, for immutable models; raises ValueError for one table alone."""
    if isinstance(value, dict):
        raise ValueError("write its name in double brackets, [[...]]: there may be several")  # noqa: TRY004
    return tuple(value) if isinstance(value, list) else value


def parse_texts(value: object) -> tuple[str, ...]:
    """One text, or a list of them, as a tuple; raises ValueError."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("write a text in quotes, or a list of them")
    if len(texts) > MAX_TEXTS or any(len(text) > MAX_TEXT for text in texts):
        raise ValueError(f"at most {MAX_TEXTS} texts of at most {MAX_TEXT} characters")
    return tuple(texts)


Day = Annotated[date, BeforeValidator(parse_day)]
Texts = Annotated[tuple[str, ...], BeforeValidator(parse_texts), Field(min_length=1)]
