"""One listening address: starts a conversation for each connection and lets mails in flight end when it stops.
Standard: RFC 5321 3.8 (a server that shuts down says 421); what has been received is answered before that.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Literal

from relay.config import TCPAddress
from relay.entry.conversation import Conversation, Service
from relay.entry.listening import BACKLOG, address_of, bound
from relay.entry.tls import ServerTLS
from relay.entry.tls_server import TLSServer


class SMTPEntry:
    """One listening address whose mails all go to one recipe."""

    def __init__(
        self,
        setting: str,
        listen: TCPAddress,
        service: Service,
        conversation: Callable[[Service], Conversation] = Conversation,
        tls: ServerTLS | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """`setting` is where relay.toml names the address, for messages; with `tls` a connection begins with TLS.

        `sockets` are those of the address where they listen already.
        """
        self._setting = setting
        self._listen = listen
        self._service = service
        self._conversation = conversation
        self._tls = tls
        self._sockets = sockets
        self._servers: list[asyncio.Server | TLSServer] = []

    async def start(self) -> TCPAddress:
        """Takes connections; gives the real address (port 0 became a free one). Raises ConfigError."""
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd logs addresses and content
        sockets = self._sockets or await bound(self._setting, self._listen)
        address = address_of(sockets)
        if self._tls is not None:
            self._servers.append(TLSServer(self._tls, self._one_more, self._service, sockets))
            return address
        loop = asyncio.get_running_loop()
        for each in sockets:
            self._servers.append(await loop.create_server(self._one_more, sock=each, backlog=BACKLOG))
        return address

    def _one_more(self) -> Conversation:
        return self._conversation(self._service)

    async def stop(self, grace: float = 30.0) -> None:
        """Takes no new connection, lets mails in flight end within `grace` seconds, closes what is left."""
        if not self._servers:
            return
        for server in self._servers:
            server.close()
        connections = self._service.connections
        busy = [asyncio.create_task(each.idle.wait()) for each in connections.all() if not each.idle.is_set()]
        for each in connections.all():
            each.close_when_idle()
        await self._ended(busy, grace)
        late = {*busy, *self._service.deliveries}
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for each in connections.all():
            each.abort()
        for server in self._servers:
            await server.wait_closed()

    async def _ended(self, busy: list[asyncio.Task[Literal[True]]], grace: float) -> None:
        """Waits until all connections are idle and all mails delivered, also those that are complete only now."""
        loop = asyncio.get_running_loop()
        end = loop.time() + grace
        while (waited_for := {*(task for task in busy if not task.done()), *self._service.deliveries}) and (
            left := end - loop.time()
        ) > 0:
            await asyncio.wait(waited_for, timeout=left)
