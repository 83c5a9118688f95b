"""Next hops built as relay.toml would have them, closed after the test.
Standard: everything goes over real sockets on loopback.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import dns.asyncresolver
import pytest
import structlog
from structlog.testing import LogCapture

from relay.config import DirectionSettings, TCPAddress
from relay.forward import NextHop
from relay.forward.client import Timeouts
from tests.testlib.hop import Hop

Build = Callable[..., NextHop]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    """Makes a NextHop: `build(hop, other, next_hop_tls="none", timeout=5)`."""
    async with AsyncExitStack() as stack:

        def make(*hops: Hop | str, resolver: dns.asyncresolver.Resolver | None = None, **settings: Any) -> NextHop:
            places = [hop if isinstance(hop, str) else hop.next_hop for hop in hops]
            values = {"listen": "127.0.0.1:0", "next_hop": places, "timeout": 60, **settings}
            next_hop = NextHop(DirectionSettings.model_validate(values), "relay.example", resolver)
            stack.push_async_callback(next_hop.close)
            return next_hop

        yield make


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next hops have one second for each reply, but as long as ever for a connection: a busy machine fails no test."""

    class Impatient(Timeouts):
        def __init__(self, timeout: float) -> None:
            super().__init__(timeout)
            self.reply = self.data = self.piece = self.content_reply = 1.0

    monkeypatch.setattr("relay.forward.Timeouts", Impatient)


@pytest.fixture
def nobody() -> Iterator[TCPAddress]:
    """An address that refuses connections; it is taken, so that nobody else gets it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield TCPAddress(*taken.getsockname())


@pytest.fixture
def log() -> LogCapture:
    """What is logged."""
    capture = LogCapture()
    structlog.configure(processors=[capture], cache_logger_on_first_use=False)
    return capture
