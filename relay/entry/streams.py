"""Base class of a connection served with asyncio streams: it is counted, can be closed, and ends in one way.
Standard: ClientConnection in relay/entry/listening.py; the protocol is the subclass's.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

import structlog

from relay.entry.listening import SocketServer

log = structlog.get_logger(__name__)


class StreamConnection(ABC):
    """One connection. A subclass clears `idle` while a mail is in flight, and ends between two mails once `ending`."""

    def __init__(self, server: SocketServer) -> None:
        self.server = server
        self.ending = False
        self.idle = asyncio.Event()
        self.idle.set()
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Returns, or raises ConnectionError, TimeoutError or EOFError, when the connection is to be closed."""

    def client(self, writer: asyncio.StreamWriter) -> str:
        """The IP address that counts as the client, "" for a Unix socket."""
        peer = writer.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else ""

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves one connection, unless there are too many; called by asyncio in its own task."""
        self._task = asyncio.current_task()
        try:
            if reason := self.server.add(self, self.client(writer)):
                log.warning("connection_refused", cause=reason)
            else:
                await self.serve(reader, writer)
        except (asyncio.CancelledError, ConnectionError, TimeoutError, EOFError):
            pass  # the relay stops, or the client has gone
        finally:
            self.server.discard(self)
            self.idle.set()
            writer.close()

    def protocol(self, limit: int = 2**16) -> asyncio.StreamReaderProtocol:
        """A protocol for `SocketServer.listen`; `limit` is the maximum line length, in bytes."""
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(limit=limit), self.connected)

    def close_when_idle(self) -> None:
        """Closes now, or after the reply to the mail in flight."""
        self.ending = True
        if self.idle.is_set():
            self.abort()

    def abort(self) -> None:
        """Closes at once."""
        if self._task is not None:
            self._task.cancel()
