"""An SMTP server at the end of a path: it remembers what it got and can be told to refuse or break off.
Standard: RFC 5321, by aiosmtpd; messages are kept exactly as they came over the wire.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiosmtpd.smtp import SMTP, Envelope, Session

from relay.config import TCPAddress
from tests.testlib.acceptor import Acceptor
from tests.testlib.ports import free_address


@dataclass(frozen=True)
class Got:
    """One accepted mail; `at` is when, in seconds of time.monotonic()."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes
    mail_options: tuple[str, ...] = ()
    at: float = field(default_factory=time.monotonic, compare=False)


@dataclass
class Sink:
    """Accepts mail on a free port of loopback; `on_rcpt` and `on_data` are replies to give instead.

    `gate`, when it is set, is waited for before the reply to DATA, once `gate_from` mails have been taken;
    `before_content` by the next mail only, before its content may come, and `asked` tells that it waits.
    """

    got: list[Got] = field(default_factory=list)
    on_rcpt: dict[str, str] = field(default_factory=dict)
    on_data: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None
    gate_from: int = 0
    before_content: asyncio.Event | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    address: TCPAddress = field(default_factory=free_address)
    _acceptor: Acceptor | None = None
    _arrived: asyncio.Condition = field(default_factory=asyncio.Condition)
    _connections: list[_Server] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        self._acceptor = Acceptor(self._connected)
        self.address = self._acceptor.listen(self.address)

    async def stop(self) -> None:
        assert self._acceptor is not None
        await self._acceptor.close()
        for connection in self._connections:
            if connection.transport is not None:
                connection.transport.abort()  # type: ignore[attr-defined]

    async def messages(self, number: int, timeout: float = 60) -> list[Got]:
        """Waits until at least `number` mails are there."""
        async with asyncio.timeout(timeout), self._arrived:
            await self._arrived.wait_for(lambda: len(self.got) >= number)
        return self.got

    async def _connected(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(self._connection, connection)

    def _connection(self) -> _Server:
        connection = _Server(
            self, hostname="sink.example", enable_SMTPUTF8=True, data_size_limit=None,
            loop=asyncio.get_running_loop(),
        )  # fmt: skip
        connection.line_length_limit = 2**20
        self._connections.append(connection)
        return connection

    async def handle_RCPT(
        self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if reply := self.on_rcpt.get(address):
            return reply
        envelope.rcpt_tos.append(address)
        return "250 Ok"

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        if len(self.got) >= self.gate_from:
            self.reached.set()
            if self.gate is not None:
                await self.gate.wait()
        if self.on_data:
            return self.on_data.pop(0)
        content = envelope.content
        assert isinstance(content, bytes)
        sender = "" if envelope.mail_from == "<>" else envelope.mail_from or ""
        async with self._arrived:
            self.got.append(Got(sender, tuple(envelope.rcpt_tos), content, tuple(envelope.mail_options)))
            self._arrived.notify_all()
        return "250 sunk"


class _Server(SMTP):
    line_length_limit = 2**20
    event_handler: Sink

    async def smtp_DATA(self, arg: str) -> None:
        sink = self.event_handler
        if (gate := sink.before_content) is not None:
            sink.before_content = None
            sink.asked.set()
            await gate.wait()
        await super().smtp_DATA(arg)
