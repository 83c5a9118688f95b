"""Listens for connections that begin with TLS, and counts each of them before its handshake, which may take its time.
Standard: RFC 8314 3.3 (implicit TLS); asyncio's own server tells of a connection only after its handshake.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from relay.entry.conversation import Conversation
from relay.entry.service import Service
from relay.entry.tls import ServerTLS

log = structlog.get_logger(__name__)

HANDSHAKE_S = 30.0
RETRY_S = 1.0
"""After this time it is tried again where no connection could be accepted: too many open files, for instance."""


class TLSServer:
    """The sockets of one listening address; has what SMTPEntry needs of an asyncio.Server."""

    def __init__(
        self,
        tls: ServerTLS,
        conversation: Callable[[], Conversation],
        service: Service,
        sockets: Sequence[socket.socket],
    ) -> None:
        """`conversation` makes that of one more connection to one of the `sockets`, which listen already."""
        self._tls = tls
        self._conversation = conversation
        self._connections = service.connections
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets = sockets
        for listening in sockets:
            self._run(self._accept(listening))

    def close(self) -> None:
        """Takes no new connection, and ends those whose handshake is not over."""
        for task in self._tasks:
            task.cancel()
        for listening in self._sockets:
            listening.close()

    async def wait_closed(self) -> None:
        """Returns when that is done."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, peer = await loop.sock_accept(listening)
            except OSError as error:
                log.error("connection_not_accepted", cause=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            self._count(accepted, str(peer[0]))

    def _count(self, accepted: socket.socket, client: str) -> None:
        conversation = self._conversation()
        self._connections.add(conversation, client)
        if reason := self._connections.reason_to_refuse(client):
            log.warning("connection_refused", client=client, cause=reason)
            self._connections.discard(conversation, client)
            accepted.close()
            return
        self._run(self._begin(accepted, client, conversation))

    async def _begin(self, accepted: socket.socket, client: str, conversation: Conversation) -> None:
        """The handshake; after it the conversation lives by itself."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: conversation, accepted, ssl=self._tls.context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except BaseException as error:
            self._connections.discard(conversation, client)
            accepted.close()
            if not isinstance(error, OSError):  # TLS errors and timeouts are of this kind
                raise
            log.info("tls_not_begun", client=client, cause=str(error))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
