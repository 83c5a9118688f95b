"""Signals that are meant for a relay that serves: from its first step to its last none of them ends it.
Standard: signal(7): SIGHUP, SIGUSR1 and SIGUSR2 end a process that says nothing about them.
"""

from __future__ import annotations

import asyncio
import atexit
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

_early: set[int] = set()
"""What came before anybody listened to it, and still counts."""


def end_nothing() -> None:
    """To be called first. SIGHUP is remembered until `on_signal`: what was read before it came may be old."""
    signal.signal(signal.SIGHUP, _remember)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # Python, as it ends, puts the system's own handling in the place of its handlers, and the signal would end it.
    atexit.register(_ignore)


def _ignore() -> None:
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def on_signal(number: signal.Signals, callback: Callable[[], None]) -> None:
    """From now on the running event loop calls `callback` at this signal, and at once where it came before.

    Once the loop is closed the signal does nothing; an event loop's own handler would leave it to end the process.
    """
    loop = asyncio.get_running_loop()

    def handler(_number: int, _frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(callback)

    signal.signal(number, handler)
    if number in _early:
        _early.discard(number)
        callback()


def _remember(number: int, _frame: FrameType | None) -> None:
    _early.add(number)
