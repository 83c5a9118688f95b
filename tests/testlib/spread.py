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
from tests.testlib.acceptor import streams
from tests.testlib.ports import free_address


class Spread:
    """Listens on a free port and forwards to `targets` in turn."""

    def __init__(self, targets: Sequence[TCPAddress]) -> None:
        self.targets = list(targets)
        self.address = free_address()
        self._turn = count()
        self._acceptor = streams(self._connection)

    async def __aenter__(self) -> Self:
        self.address = self._acceptor.listen(self.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._acceptor.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
            writer.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while piece := await reader.read(65536):
        writer.write(piece)
        await writer.drain()
    writer.write_eof()
