"""Handles SIGHUP, SIGUSR1 and SIGUSR2, which must never terminate the relay.
Standard: signal(7): their default action terminates the process.
"""

from __future__ import annotations

import asyncio
import atexit
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

_early: set[int] = set()
"""Signals received before a handler was set; they are handled then."""


def end_nothing() -> None:
    """Ignores these signals from the start; SIGHUP is kept for `on_signal`: files read before may be old."""
    signal.signal(signal.SIGHUP, _remember)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # At exit Python restores the default actions, and a signal would terminate it.
    atexit.register(_ignore)


def _ignore() -> None:
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def on_signal(number: signal.Signals, callback: Callable[[], None]) -> None:
    """Calls `callback` in the running event loop at this signal, and now if it was received before.

    Once the loop is closed the signal does nothing; with loop.add_signal_handler it would terminate the process.
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
