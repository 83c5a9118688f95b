"""A TCP connection that can be listened to, cut and stopped half-way: networks and processes fail like that.
Standard: octets pass unchanged and in order; whatever passed is kept for asserting on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from relay.config import TCPAddress
from tests.testlib.acceptor import streams
from tests.testlib.ports import free_address


class Wire:
    """Forwards connections to `target` (a Unix socket where it is a path); `sent` is all that went there, `answered` all that came back.

    It listens on a free port that stays the same while it is cut and mended. With a `watch`, nothing is kept: it is
    called for each connection, and what it gives sees the pieces that go to the target, in order.
    """

    def __init__(self, target: TCPAddress | Path, watch: Callable[[], Callable[[bytes], None]] | None = None) -> None:
        self.target = target
        self.watch = watch
        self.address = free_address()
        self.sent = bytearray()
        self.answered = bytearray()
        self._stop_after: int | None = None
        self._stopped = asyncio.Event()
        self._answers = asyncio.Event()
        self._answers.set()
        self._held = [self._answers]
        self._holding = asyncio.Event()
        self._acceptor = streams(self._connection)
        self._connections = 0

    async def __aenter__(self) -> Self:
        await self.mend()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.cut()

    async def mend(self) -> None:
        """New connections are taken and stop nowhere from now on; those that had to stop break."""
        if self._stop_after is not None:
            await self.cut()
        self._stop_after = None
        if not self._acceptor.open:
            self.address = self._acceptor.listen(self.address)

    async def cut(self) -> None:
        """Open connections break, new ones are refused."""
        await self._acceptor.close()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        return self._connections

    def stop_after(self, octets: int) -> None:
        """Each connection stays open but passes at most so many octets to the target."""
        self._stopped.clear()
        self._stop_after = octets

    def hold_answers(self) -> None:
        """What comes back stays on its way, until `let_answers_go`."""
        self._answers.clear()
        self._holding.clear()

    async def holding(self) -> None:
        """Waits until there is one that is held."""
        async with asyncio.timeout(30):
            await self._holding.wait()

    def let_answers_go(self) -> None:
        """What was held goes on."""
        for each in self._held:
            each.set()

    def let_new_answers_go(self) -> None:
        """What is held stays on its way; what comes from now on passes."""
        self._answers = asyncio.Event()
        self._answers.set()
        self._held.append(self._answers)

    async def stopped(self) -> None:
        """Waits until a connection has come to the point where it stops."""
        async with asyncio.timeout(30):
            await self._stopped.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        writers = [writer]
        try:
            there, to_there = await self._connect()
            writers.append(to_there)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._there(reader, to_there))
                both.create_task(self._back(there, writer))
        except (asyncio.CancelledError, OSError, ExceptionGroup):
            for each in writers:
                each.transport.abort()
        finally:
            self._connections -= 1
            for each in writers:
                each.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, Path):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection(*self.target)

    async def _there(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = 0
        look = self.watch() if self.watch is not None else None
        while piece := await reader.read(65536):
            if self._stop_after is not None and passed + len(piece) > self._stop_after:
                self._stopped.set()
                await asyncio.Event().wait()
            passed += len(piece)
            if look is None:
                self.sent += piece
            else:
                look(piece)
            writer.write(piece)
            await writer.drain()
        writer.write_eof()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            if self.watch is None:
                self.answered += piece
            if not self._answers.is_set():
                self._holding.set()
            await self._answers.wait()
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
