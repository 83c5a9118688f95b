"""Limits the time of a comparison: each expensive part checks whether time is left.
Standard: what was not compared in time is reported (policy/compare.py), never taken for proven.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_until: ContextVar[float | None] = ContextVar("compared_until", default=None)


class OutOfTimeError(Exception):
    """There is no time left."""


@contextmanager
def at_most(seconds: float | None) -> Iterator[None]:
    """Context in which a comparison raises OutOfTimeError after this many seconds; None: never."""
    token = _until.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def check_time() -> None:
    """Raises OutOfTimeError if no time is left."""
    until = _until.get()
    if until is not None and time.monotonic() > until:
        raise OutOfTimeError
