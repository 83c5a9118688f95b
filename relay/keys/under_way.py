"""The calls to one KME that are under way; those for which nobody waits any more give way to new ones.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a KME that answers late has given keys away: it is listened to if it can be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

Call = Callable[[Callable[[], None]], Coroutine[None, None, None]]
"""Makes one call, and calls what it is given when the request goes out."""


class CallsUnderWay:
    """At least half of the connections are for calls that somebody waits for."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._all: set[asyncio.Task[None]] = set()
        self._counted: set[asyncio.Task[None]] = set()
        self._sent: set[asyncio.Task[None]] = set()
        self._late: list[asyncio.Task[None]] = []

    def begin(self, call: Call, patience: float) -> None:
        """Begins a call for which somebody waits `patience` seconds; it ends by itself."""
        task = asyncio.create_task(call(lambda: self._sent.add(task)))
        self._all.add(task)
        self._counted.add(task)
        timer = asyncio.get_running_loop().call_later(patience, self._nobody_waits, task)
        task.add_done_callback(lambda _: timer.cancel())
        task.add_done_callback(self._ended)
        self._make_way()

    async def ended(self) -> None:
        """Waits for those that have begun."""
        await asyncio.gather(*self._all, return_exceptions=True)

    def _nobody_waits(self, task: asyncio.Task[None]) -> None:
        if task in self._sent:
            self._late.append(task)
            self._make_way()
        else:  # it has cost no key yet, and will be asked for once more
            self._give_up(task)

    def _make_way(self) -> None:
        """The latest comer first: what has been waited for longest is likeliest to come yet."""
        while len(self._counted) > self._connections and len(self._late) > self._connections // 2:
            self._give_up(self._late[-1])

    def _give_up(self, task: asyncio.Task[None]) -> None:
        self._forget(task)
        task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._all.discard(task)
        self._forget(task)
        if not task.cancelled():
            task.exception()  # whoever waits has been told

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._counted.discard(task)
        self._sent.discard(task)
        if task in self._late:
            self._late.remove(task)
