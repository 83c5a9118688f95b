"""The milter: seals and opens mail inside the mail server, which keeps the mail and gets other content for it.
Standard: the Sendmail milter protocol, version 6, as Postfix and Sendmail speak it; its wire format by kilter-protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import structlog

from relay.budget import Budget
from relay.config import ListenerSettings, TCPAddress
from relay.entry.listening import BACKLOG, address_of, bound
from relay.entry.milter.conversation import Conversation
from relay.entry.milter.wire import Packets
from relay.mail import InPlace, Mail

__all__ = ["InPlaceRecipe", "MilterEntry"]

log = structlog.get_logger(__name__)


class InPlaceRecipe(Protocol):
    """outgoing.py or incoming.py, as the milter sees them."""

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Raises the TryLater or Refuse that this recipient is to be answered with."""

    async def in_place(self, mail: Mail, fits: Callable[[bytes], bool]) -> InPlace:
        """What takes the mail's place in the mail server. Raises TryLater or Refuse, for all recipients.

        A message that does not fit there goes to the next hop.
        """


class MilterEntry:
    """One listening address, TCP or a Unix socket, whose mails all go to one recipe."""

    def __init__(
        self,
        setting: str,
        listen: TCPAddress | Path,
        recipe: InPlaceRecipe,
        settings: ListenerSettings,
        budget: Budget,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """`setting` is where relay.toml names the address, for messages.

        `sockets` are those of the address where they listen already.
        """
        self._setting = setting
        self._listen = listen
        self._recipe = recipe
        self._settings = settings
        self._budget = budget
        self._sockets = sockets
        self._servers: list[asyncio.Server] = []
        self._stopping = False
        self._connections: dict[asyncio.Task[None], Conversation] = {}
        self._deliveries: set[asyncio.Task[InPlace]] = set()

    async def start(self) -> TCPAddress | Path:
        """Takes connections; gives the real address (port 0 became a free one). Raises ConfigError."""
        sockets = self._sockets or await bound(self._setting, self._listen)
        if isinstance(self._listen, Path):
            self._servers.append(await asyncio.start_unix_server(self._connected, sock=sockets[0], backlog=BACKLOG))
            return self._listen
        address = address_of(sockets)
        for each in sockets:
            self._servers.append(await asyncio.start_server(self._connected, sock=each, backlog=BACKLOG))
        return address

    async def stop(self, grace: float = 30.0) -> None:
        """Takes no new connection, lets mails in flight be answered within `grace` seconds, closes what is left."""
        self._stopping = True
        for server in self._servers:
            server.close()
        for task, conversation in list(self._connections.items()):
            if conversation.idle:
                task.cancel()
            else:
                conversation.ending = True
        if waited_for := {*self._connections, *self._deliveries}:
            await asyncio.wait(waited_for, timeout=grace)
        late = {*self._connections, *self._deliveries}
        for each in late:
            each.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio starts this in a task
        if self._stopping:
            writer.close()  # it came while we were stopping
            return
        if len(self._connections) >= self._settings.connections:
            log.warning("connection_refused", cause=f"more than {self._settings.connections} milter connections")
            writer.close()
            return
        packets = Packets(reader, writer, self._settings.timeout)
        conversation = Conversation(packets, self._recipe, self._settings, self._budget, self._deliveries)
        self._connections[task] = conversation
        try:
            await conversation.run()
        except asyncio.CancelledError:
            pass  # the relay stops; the mail server tries again
        finally:
            del self._connections[task]
            writer.close()
