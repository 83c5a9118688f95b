"""One address for several servers, as a load balancer has it: each connection goes to the next one that answers.
Standard: octets pass unchanged and in order, both ways; what breaks on one side breaks on the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from types import TracebackType
from typing import Self

from relay.config import TCPAddress
from tests.testlib.ports import free_address


class Spread:
    """Listens on a free port and forwards to `targets` in turn."""

    def __init__(self, targets: Sequence[TCPAddress]) -> None:
        self.targets = list(targets)
        self.address = free_address()
        self._turn = count()
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, *self.address)
        self.address = TCPAddress(*self._server.sockets[0].getsockname()[:2])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        first = next(self._turn)
        try:
            for target in range(first, first + len(self.targets)):
                with suppress(OSError):
                    there, to_there = await asyncio.open_connection(*self.targets[target % len(self.targets)])
                    break
            else:
                return
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(_pass(reader, to_there))
                    both.create_task(_pass(there, writer))
            finally:
                to_there.transport.abort()
        except (asyncio.CancelledError, OSError, ExceptionGroup):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
