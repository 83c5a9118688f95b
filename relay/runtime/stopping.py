"""Stops a process at SIGTERM or SIGINT: it ends its work and closes its parts in order.
Keys received from a KME by then are kept, since it delivers a key once. Further signals are ignored.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import inspect
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog

from relay.errors import RelayError

log = structlog.get_logger(__name__)

_T = TypeVar("_T")

ENDS_S, LOG_WAITING_S = 65.0, 60.0
"""Maximum shutdown time, and time after which the log reports what is waited for, in seconds.

A little later the service manager would kill it, without a log entry."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(RelayError):
    """The process was stopped before its work was done."""


class Stop:
    """The request to stop this process; created by `stop_on_signals`."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self.cause = ""
        """Why the process has to stop without a signal, or ""."""

    def request(self, cause: str = "") -> None:
        """Requests a stop, like a signal; with a `cause` the process fails, unless it was requested before."""
        if not self.requested:
            self.cause = cause
        self._requested.set()

    @property
    def requested(self) -> bool:
        """Whether the process has to stop, for work that only stops between its steps."""
        return self._requested.is_set()

    async def wait(self) -> None:
        """Returns once the process has to stop."""
        await self._requested.wait()

    async def or_end(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`. Once the process has to stop, it is cancelled and awaited; then this raises Stopped."""
        doing, signalled = asyncio.create_task(work), asyncio.create_task(self._requested.wait())
        try:
            await asyncio.wait({doing, signalled}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (doing, signalled):
                task.cancel()
            await asyncio.gather(doing, signalled, return_exceptions=True)
        if doing.cancelled():
            raise Stopped("told to stop before it was done; it can be run again")
        return doing.result()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """Within the block, SIGTERM and SIGINT only request a stop.

    It must enclose all other parts, since signals must not interrupt their closing. Needs a running event loop; in
    other threads than the main one there are no signals.
    """
    stop, loop = Stop(), asyncio.get_running_loop()
    signals = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    for number in signals:
        loop.add_signal_handler(number, stop.request)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def end_at_last() -> None:
    """Terminates this process as failed after ENDS_S seconds, even if it hangs; nothing is lost.

    What it waits for is logged, and the stacks of its threads are written to standard error.
    """
    asyncio.get_running_loop().call_later(LOG_WAITING_S, _log_waiting)
    faulthandler.dump_traceback_later(ENDS_S, exit=True, file=2)


def _log_waiting() -> None:
    """Logs all running coroutines with their lines."""
    waits_in = {
        f"{each.__qualname__} ({Path(each.cr_code.co_filename).name}:{frame.f_lineno})"
        for each in gc.get_objects()
        if inspect.iscoroutine(each) and (frame := each.cr_frame) is not None
    }
    log.error("relay_does_not_end", waits_in=sorted(waits_in))
