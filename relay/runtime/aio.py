"""Helpers for the event loop: slow work runs in threads, and long work yields.

Nothing that a client sends blocks the loop for more than a few milliseconds.
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
from typing import Any, ParamSpec, TypeGuard, TypeVar
from weakref import WeakKeyDictionary

import structlog

log = structlog.get_logger(__name__)

SMALL_OCTETS = 256 * 1024
"""Maximum size, in bytes, of work done in the event loop; a thread would take longer."""
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
AGAIN_S = 5.0
"""Pause before background work that failed begins anew, in seconds."""
TURN_S = 0.005
"""Maximum time of one connection before it yields, in seconds."""

P = ParamSpec("P")
T = TypeVar("T")


async def off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `work` here if `size`, in bytes, is small, else in a thread."""
    if size <= SMALL_OCTETS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


async def off_loop_in_turn(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """As `off_loop`, for pure Python work, one thread at a time.

    Several threads would only compete with the loop for the interpreter lock.
    """
    if size <= SMALL_OCTETS:
        return work(*args, **kwargs)
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        return await asyncio.to_thread(work, *args, **kwargs)


class InDaemon:
    """Work that may block for ever, for instance on NFS: the process does not wait for its thread at exit."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._running: Future[None] | None = None

    async def run(self) -> None:
        """Waits for the work, and starts it unless it is already running. Raises what the work raised."""
        if self._running is None or self._running.done():
            running: Future[None] = Future()
            running.set_running_or_notify_cancel()  # so that a cancelled waiter does not cancel it for others
            threading.Thread(target=self._run, args=(running,), daemon=True).start()
            self._running = running
        await asyncio.wrap_future(self._running)

    def _run(self, running: Future[None]) -> None:
        try:
            self._work()
        except Exception as error:  # noqa: BLE001 - passed to the waiters
            running.set_exception(error)
        else:
            running.set_result(None)


async def in_thread(items: Generator[T]) -> AsyncGenerator[T]:
    """Runs a blocking generator in threads, one step for each item. Must be closed (`aclosing`)."""
    looking: asyncio.Task[T | None] | None = None
    try:
        while True:
            looking = asyncio.create_task(asyncio.to_thread(next, items, None))
            if (item := await asyncio.shield(looking)) is None:
                return
            yield item
    finally:
        # A running generator cannot be closed, and a cancelled task must not leak its resources.
        if looking is not None:
            await asyncio.wait([looking])
        items.close()


class Turns:
    """Turns of one connection with pipelined commands: `give` is awaited between two of them."""

    def __init__(self) -> None:
        """The first turn begins now."""
        self._began = time.monotonic()

    async def give(self) -> None:
        """Yields if this turn has taken TURN_S."""
        if time.monotonic() - self._began > TURN_S:
            await asyncio.sleep(0)
            self._began = time.monotonic()


class FairQueue:
    """A queue of busy connections; one of them continues in each pass of the event loop."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._moves = False

    async def turn(self) -> None:
        """Returns when it is the caller's turn, first come, first served."""
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
            if not turn.done():  # else cancelled meanwhile
                turn.set_result(None)
                break
        self._moves = bool(self._waiting)
        if self._moves:
            asyncio.get_running_loop().call_soon(self._next)


class FairTurns:
    """A few turns at a time: those that come first do, and else one party has a turn after the other.

    So a crowd of one party holds up no other.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting = dict[str, deque[asyncio.Future[None]]](), dict[str, deque[asyncio.Future[None]]]()

    def waiting(self, party: str) -> int:
        """The number of turns for which this party waits."""
        return sum(len(waiting.get(party, ())) for waiting in self._waiting)

    @asynccontextmanager
    async def turn(self, party: str, *, first: bool = False) -> AsyncIterator[None]:
        """Waits for a turn, and has it until the end of the block."""
        if self._free:
            self._free -= 1
        else:
            granted = asyncio.get_running_loop().create_future()
            self._waiting[not first].setdefault(party, deque()).append(granted)
            try:
                await granted
            except asyncio.CancelledError:
                if not granted.cancelled():  # it was granted at the same moment
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        for waiting in self._waiting:
            while waiting:
                party = next(iter(waiting))
                turns = waiting.pop(party)
                granted = turns.popleft()
                if turns:
                    waiting[party] = turns  # at the end
                if not granted.done():
                    granted.set_result(None)
                    return
        self._free += 1


async def readable(connection: socket.socket) -> None:
    """Returns once the socket is readable or closed by the other side."""
    loop, came = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(connection)


def boot_time() -> float:
    """Seconds since boot, including time suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def clock_offset() -> float:
    """Wall clock minus boot time; changes only if the clock is set."""
    return time.time() - boot_time()


@asynccontextmanager
async def in_background(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs `work` until the block ends. If it fails, that is logged, and it begins anew after a pause."""
    task = asyncio.create_task(_again_and_again(name, work), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _again_and_again(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            return await work()
        except Exception as error:  # what failed once would be missing until a restart
            log.error("background_work_failed", work=name, cause=repr(error), exc_info=error)
        await asyncio.sleep(AGAIN_S)


def goes_on(task: asyncio.Task[T] | None) -> TypeGuard[asyncio.Task[T]]:
    """Whether a task is still running, in an event loop that is not closed."""
    return task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop()


def begun(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Starts a task whose error is retrieved even if nobody awaits it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda task: None if task.cancelled() else task.exception())
    return task
