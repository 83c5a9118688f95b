"""Measures the processor time of each callback of the event loop, and of each piece of work that threads do.
Standard: time.thread_time of the thread itself, so that a busy machine adds nothing; the garbage collector rests.

Only what the relay does counts: callbacks of tasks that the test, its sinks and its key servers run are left out.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import thread as pool
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tests.testlib.speed import slowness

CALLBACK_S = 0.05
"""No callback may take longer for an input, whatever that is; more where the machine is slow (speed.py)."""
TIMES = 3
"""Number of consecutive slow runs that count: a single one has another cause."""
SAMPLED_S = 0.02

_NOT_OURS = ("/tests/", "/relay/kme/", "/_pytest/", "/pytest_asyncio/")


@dataclass
class LoopClock:
    """`slowest` is the longest callback (seconds) and where it was; `worked` is what threads did (seconds).

    `held` is what all callbacks took (seconds).
    """

    slowest: float = 0.0
    where: str = ""
    worked: float = 0.0
    held: float = 0.0
    _began: float = 0.0
    _loop_thread: int = field(default_factory=threading.get_ident)
    _frame: str = ""

    def reset(self) -> None:
        """Forgets what was measured before."""
        self.slowest, self.where, self.worked, self.held = 0.0, "", 0.0, 0.0

    def _callback(self, took: float, handle: asyncio.Handle) -> None:
        if not _is_ours(handle):
            return
        self.held += took
        if took > self.slowest:
            self.slowest, self.where = took, self._frame or repr(handle)

    def _sample(self) -> None:
        """Looks where the loop is, if it has been there for long."""
        if self._began and not self._frame and time.monotonic() - self._began > SAMPLED_S:
            frame = sys._current_frames().get(self._loop_thread)
            if frame is not None:
                self._frame = _described(frame)


def _described(frame: FrameType) -> str:
    return "".join(traceback.format_stack(frame)[-8:])


def _is_ours(handle: asyncio.Handle) -> bool:
    """Whether a callback may be the relay's: no task of a test, of its sinks, or of its key servers."""
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    if not isinstance(owner, asyncio.Task):
        return True
    code = getattr(owner.get_coro(), "cr_code", None)
    return code is None or not any(place in code.co_filename for place in _NOT_OURS)


@contextmanager
def loop_clock() -> Iterator[LoopClock]:
    """Measures the running loop, and all threads that work for it, until the end."""
    clock = LoopClock()
    over = threading.Event()
    real_run: Callable[[Any], None] = asyncio.Handle._run
    real_work: Callable[[Any], None] = pool._WorkItem.run

    def run(handle: asyncio.Handle) -> None:
        if threading.get_ident() != clock._loop_thread:
            real_run(handle)
            return
        clock._frame, clock._began = "", time.monotonic()
        began = time.thread_time()
        try:
            real_run(handle)
        finally:
            took = time.thread_time() - began
            clock._began = 0.0
            clock._callback(took, handle)

    def work(item: Any) -> None:
        function = item.fn

        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:  # before the loop hears of the result
                clock.worked += time.thread_time() - began

        item.fn = timed
        real_work(item)

    def watch() -> None:
        while not over.wait(SAMPLED_S):
            clock._sample()

    asyncio.Handle._run = run  # type: ignore[method-assign,assignment]
    pool._WorkItem.run = work  # type: ignore[method-assign,assignment]
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    gc.collect()
    gc.disable()
    try:
        yield clock
    finally:
        gc.enable()
        over.set()
        watcher.join()
        asyncio.Handle._run = real_run  # type: ignore[method-assign,assignment]
        pool._WorkItem.run = real_work  # type: ignore[method-assign,assignment]


@dataclass(frozen=True)
class Slow:
    """An input that held the loop, or cost threads too much, each time that it was tried."""

    name: str
    callback: float
    worked: float
    where: str

    def __str__(self) -> str:
        return f"{self.name}: {self.callback * 1000:.0f} ms on the loop, {self.worked * 1000:.0f} ms in threads\n{self.where}"


async def slow(clock: LoopClock, name: str, run: Callable[[], Awaitable[object]], allowed: float) -> Slow | None:
    """Whether an input is slow: each of several times over CALLBACK_S on the loop, or over `allowed` s in threads.

    Both are longer where the machine is slow at that moment.
    """
    found: Slow | None = None
    for _ in range(TIMES):
        clock.reset()
        await run()
        if clock.slowest <= CALLBACK_S and clock.worked <= allowed:
            return None
        factor = slowness()
        if clock.slowest <= CALLBACK_S * factor and clock.worked <= allowed * factor:
            return None
        if found is None or clock.slowest < found.callback:
            found = Slow(name, clock.slowest, clock.worked, clock.where)
    return found
