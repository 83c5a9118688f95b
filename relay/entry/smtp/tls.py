"""Implicit TLS for mail programs.
Standard: RFC 8314 (3.3, implicit TLS).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from relay.entry.listening import SocketServer
from relay.entry.server_tls import ServerTLS
from relay.entry.smtp.session import SMTPSession

log = structlog.get_logger(__name__)

HANDSHAKE_S = 30.0
RETRY_S = 1.0
"""Retry interval after a failed accept (too many open files, for instance), in seconds."""


class TLSServer:
    """Accepts TLS connections and counts each before its handshake.

    asyncio's own server reports a connection only after its handshake.
    """

    def __init__(
        self,
        tls: ServerTLS,
        server: SocketServer,
        session: Callable[[], SMTPSession],
        sockets: Sequence[socket.socket],
    ) -> None:
        """`session` creates the session of a connection; `sockets` listen already."""
        self._tls = tls
        self._server = server
        self._session = session
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets = sockets
        for listening in sockets:
            self._run(self._accept(listening))

    def close(self) -> None:
        """Stops accepting, and closes connections whose handshake has not finished."""
        for task in self._tasks:
            task.cancel()
        for listening in self._sockets:
            listening.close()

    async def wait_closed(self) -> None:
        """Returns when they are closed."""
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
            client, session = str(peer[0]), self._session()
            if reason := self._server.add(session, client):
                log.warning("connection_refused", client=client, cause=reason)
                self._server.discard(session)
                accepted.close()
            else:
                self._run(self._shake_hands(accepted, client, session))

    async def _shake_hands(self, accepted: socket.socket, client: str, session: SMTPSession) -> None:
        """Does the handshake; after it the session runs by itself."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: session, accepted, ssl=self._tls.context, ssl_handshake_timeout=HANDSHAKE_S
            )
        except BaseException as error:
            self._server.discard(session)
            accepted.close()
            if not isinstance(error, OSError):  # includes TLS errors and timeouts
                raise
            log.info("tls_not_begun", client=client, cause=str(error))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
