"""Takes connections at an address, each in a task that is known from the moment the connection is accepted.
Standard: asyncio's own server loses sight of a connection that it accepted right before `close`, and waits for it without end.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

from relay.config import TCPAddress

BACKLOG = 100
Coro = Coroutine[Any, Any, None]


class Acceptor:
    """Has `take` called for each connection; what it does is cancelled when the acceptor closes."""

    def __init__(self, take: Callable[[socket.socket], Coro]) -> None:
        self._take = take
        self._listening: socket.socket | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def open(self) -> bool:
        """Whether it listens."""
        return self._listening is not None

    def listen(self, address: TCPAddress) -> TCPAddress:
        """Begins; gives the address, with the port that was found where `address` has port 0."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listening = socket.create_server(address, family=family, backlog=BACKLOG)
        self._begin(listening)
        return TCPAddress(*listening.getsockname()[:2])

    def listen_at(self, path: Path) -> None:
        """Begins at a Unix socket."""
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen(BACKLOG)
        self._begin(listening)

    async def close(self) -> None:
        """New connections are refused from now on, and all that was taken is over."""
        if self._listening is None:
            return
        asyncio.get_running_loop().remove_reader(self._listening)
        self._listening.close()
        self._listening = None
        await asyncio.sleep(0)  # each task has begun, and so closes its connection when it is cancelled
        for each in self._connections:
            each.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _begin(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        self._listening = listening
        # Not sock_accept: where that is cancelled, the connection that it has just accepted is lost.
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionError):
            connection, _ = listening.accept()
            connection.setblocking(False)
            task = asyncio.create_task(self._take(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)


def streams(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coro],
    tls: ssl.SSLContext | None = None,
    limit: int = 2**16,
) -> Acceptor:
    """One that gives `serve` each connection as asyncio.start_server does, after the TLS handshake."""

    async def take(connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connected: asyncio.Future[asyncio.StreamWriter] = loop.create_future()
        reader = asyncio.StreamReader(limit, loop)
        protocol = asyncio.StreamReaderProtocol(reader, lambda _, writer: connected.set_result(writer), loop)
        try:
            await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
        except (OSError, asyncio.CancelledError):  # the client went away, or does not trust the certificate
            connection.close()
            return
        await serve(reader, await connected)

    return Acceptor(take)
