"""Bounds how long two sets are compared: each part that does much work asks whether there is time left.
Standard: what was not compared for want of time is said (policy/compare_within.py), and never taken for proven.
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
def at_most(seconds: float) -> Iterator[None]:
    """Within it, what compares raises OutOfTimeError after so many seconds."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def check_time() -> None:
    """Raises OutOfTimeError where there is no time left; without a limit there always is."""
    until = _until.get()
    if until is not None and time.monotonic() > until:
        raise OutOfTimeError
