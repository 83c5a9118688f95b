"""The wire that tests cut: no connection outlives it, in whatever state of being made.
Standard: a connection is accepted by the kernel before any code hears of it.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import pytest

from tests.testlib.sink import Sink
from tests.testlib.wire import Wire


@pytest.mark.parametrize("turns", range(8))
async def test_a_connection_that_is_being_made_when_the_wire_is_cut_ends_with_it(turns: int) -> None:
    async with Sink() as sink, Wire(sink.address) as wire:
        wire.stop_after(0)
        with socket.create_connection(wire.address, timeout=10) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            async with asyncio.timeout(10):
                await wire.cut()
            await asyncio.to_thread(_until_it_ends, client)


def _until_it_ends(client: socket.socket) -> None:
    with suppress(ConnectionResetError):
        while client.recv(4096):
            pass
