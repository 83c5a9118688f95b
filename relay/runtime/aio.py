"""The event loop and time: slow work goes beside the loop, and long work gives others turns.
Nothing that a client sends holds the loop for more than a few milliseconds.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import structlog

log = structlog.get_logger(__name__)

SMALL_OCTETS = 256 * 1024
"""Maximum size, in bytes, of work done in the event loop; a hand-over to a thread would take longer."""
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
TURN_S = 0.005
"""Time one connection may take before all others have had their turn, in seconds."""

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` here when `size` bytes are few, else in a thread, so that the event loop stays free."""
    if size <= SMALL_OCTETS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def off_loop_in_turn(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `off_loop`, for work that is all Python: one thread at a time does it.

    Several could not go on at once, and each would keep the loop waiting for the interpreter lock.
    """
    if size <= SMALL_OCTETS:
        return work(*args, **kwargs)
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        return await asyncio.to_thread(work, *args, **kwargs)


class InDaemon:
    """Work that may never end, on a file server for instance: its thread is not waited for when the process ends."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._running: Future[None] | None = None

    async def run(self) -> None:
        """Returns once it is done; begins it where it is not under way already. Raises what the work raised."""
        if self._running is None or self._running.done():
            running: Future[None] = Future()
            running.set_running_or_notify_cancel()  # now nobody who gives up waiting for it ends it for others
            threading.Thread(target=self._run, args=(running,), daemon=True).start()
            self._running = running
        await asyncio.wrap_future(self._running)

    def _run(self, running: Future[None]) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - for those who wait
            running.set_exception(error)
        else:
            running.set_result(None)


async def in_thread(items: Generator[T]) -> AsyncGenerator[T]:
    """What a generator gives that blocks; it goes on only when the next one is asked for. To be closed (`aclosing`)."""
    looking: asyncio.Task[T | None] | None = None
    try:
        while True:
            looking = asyncio.create_task(asyncio.to_thread(next, items, None))
            if (item := await asyncio.shield(looking)) is None:
                return
            yield item
    finally:
        # One that runs in a thread cannot be closed, and a cancelled task must not leave what it holds.
        if looking is not None:
            await asyncio.wait([looking])
        items.close()


class Turns:
    """For one connection, whose commands may all have come at once: `give` is awaited between two of them."""

    def __init__(self) -> None:
        """The first turn begins now."""
        self._began = time.monotonic()

    async def give(self) -> None:
        """Lets everybody else go on, if this turn has been long."""
        if time.monotonic() - self._began > TURN_S:
            await asyncio.sleep(0)
            self._began = time.monotonic()


class Lane:
    """Those who have much to do at once go on one after the other, one in each pass of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._moves = False

    async def turn(self) -> None:
        """Returns when it is this one's turn; the first to come are the first to go on."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if not self._moves:
            self._moves = True
            loop.call_soon(self._next)
        await turn

    def _next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # who has gone meanwhile has none
                turn.set_result(None)
                break
        self._moves = bool(self._waiting)
        if self._moves:
            asyncio.get_running_loop().call_soon(self._next)


async def readable(connection: socket.socket) -> None:
    """Returns once there is something to be read, or the other side has ended."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(connection)


def boot_time() -> float:
    """Seconds since this host was started, those that it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def clock_offset() -> float:
    """What the clock shows beyond the time since the host was started: it changes only where the clock is set."""
    return time.time() - boot_time()


@asynccontextmanager
async def in_background(name: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work` until the block ends; should it end by itself, the log says so."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_ended)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("background_work_ended", work=task.get_name(), cause=repr(error), exc_info=error)
