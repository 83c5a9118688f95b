"""How a command is stopped: at SIGTERM or SIGINT it ends what it does and closes its parts in their order.
Standard: what a KME has handed out by then is kept, for it gives a key once; a further signal changes nothing.
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
"""Maximum time a relay may take to end, mails in flight included, and when it logs what it waits for, in seconds.

A little later the service manager kills it, and nobody would know."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(RelayError):
    """The process was stopped before its work was done."""


class Stop:
    """Whether this process has to stop; made by `stop_on_signals`."""

    def __init__(self) -> None:
        self._requested = asyncio.Event()
        self.cause = ""
        """Why the process has to end without a signal."""

    def request(self, cause: str = "") -> None:
        """As a signal does; with a `cause` it ends as failed, unless it was stopped before."""
        if not self.requested:
            self.cause = cause
        self._requested.set()

    @property
    def requested(self) -> bool:
        """Whether the process has to stop, for work that is only stopped between its steps."""
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
    """Until the end of the block signals only set the result.

    It goes around the parts, since signals must not break their closing.
    Needs a running event loop; in another thread than the main one no signal comes.
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
    """From now on this process has ENDS_S seconds, whatever hangs in it; then it ends as failed. It loses nothing.

    What it waits for then stands in the log, and where its threads are on standard error.
    """
    asyncio.get_running_loop().call_later(LOG_WAITING_S, _log_waiting)
    faulthandler.dump_traceback_later(ENDS_S, exit=True, file=2)


def _log_waiting() -> None:
    """All that has begun and not ended: which of it waits for which is clear beside the code."""
    waits_in = {
        f"{each.__qualname__} ({Path(each.cr_code.co_filename).name}:{frame.f_lineno})"
        for each in gc.get_objects()
        if inspect.iscoroutine(each) and (frame := each.cr_frame) is not None
    }
    log.error("relay_does_not_end", waits_in=sorted(waits_in))
