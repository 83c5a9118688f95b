"""The milter: seals and opens mail inside the mail server, which keeps the mail and gets other content for it.
Standard: the Sendmail milter protocol, version 6, as Postfix and Sendmail speak it; its wire format by kilter-protocol.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from relay.budget import Budget
from relay.config import Address, Listening
from relay.entry.milter.conversation import Conversation
from relay.entry.milter.wire import Packets
from relay.errors import ConfigError
from relay.mail import InPlace, Mail

__all__ = ["InPlaceRecipe", "MilterEntry"]

log = structlog.get_logger(__name__)

SOCKET_MODE = 0o660
"""The mail server's user must be in the group of the socket's directory."""


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
        self, setting: str, listen: Address | Path, recipe: InPlaceRecipe, settings: Listening, budget: Budget
    ) -> None:
        """`setting` is where relay.toml names the address, for messages."""
        self._setting = setting
        self._listen = listen
        self._recipe = recipe
        self._settings = settings
        self._budget = budget
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], Conversation] = {}
        self._deliveries: set[asyncio.Task[InPlace]] = set()

    async def start(self) -> Address | Path:
        """Listens; gives the real address (port 0 became a free one). Raises ConfigError."""
        try:
            if isinstance(self._listen, Path):
                await asyncio.to_thread(_remove_dead_socket, self._listen)
                self._server = await asyncio.start_unix_server(self._connected, self._listen)
                self._listen.chmod(SOCKET_MODE)
                return self._listen
            self._server = await asyncio.start_server(self._connected, *self._listen, backlog=512)
        except OSError as error:
            raise ConfigError(f"{self._setting}: cannot listen on {self._listen}: {error.strerror or error}") from error
        real = self._server.sockets[0].getsockname()
        return Address(real[0], real[1])

    async def stop(self, grace: float = 30.0) -> None:
        """Takes no new connection, lets mails in flight be answered within `grace` seconds, closes what is left."""
        if self._server is None:
            return
        self._server.close()
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
        await self._server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - asyncio starts this in a task
        if self._server is None or not self._server.is_serving():
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


def _remove_dead_socket(path: Path) -> None:
    """A socket that a killed relay has left behind; one at which somebody listens stays. Raises OSError."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise OSError(f"another process listens on {path}")
