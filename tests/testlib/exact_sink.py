"""The end of a path where every octet counts: it takes all mail and remembers command lines and content as they came.
Standard: RFC 5321 with PIPELINING, SIZE, 8BITMIME, SMTPUTF8 and DSN offered; only CRLF.CRLF ends content.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from relay.config import TCPAddress
from tests.testlib import mails
from tests.testlib.acceptor import Acceptor
from tests.testlib.ports import free_address

END_OF_DATA = b"\r\n.\r\n"
EXTENSIONS = ("PIPELINING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")


@dataclass(frozen=True)
class Arrived:
    """One mail: what followed MAIL and each RCPT, and the content with its dots unstuffed."""

    mail: str
    rcpts: tuple[str, ...]
    message: bytes = field(repr=False)

    @property
    def sender(self) -> str:
        """The reverse-path, "" for the null one."""
        return _address(self.mail)

    @property
    def recipients(self) -> tuple[str, ...]:
        return tuple(map(_address, self.rcpts))

    @property
    def opened(self) -> tuple[str, bytes]:
        """The value of X-QuMail-Protection on top, and the message under it."""
        mark, _, original = mails.untraced(self.message).partition(b"\r\n")
        name, _, value = mark.partition(b": ")
        assert name == b"X-QuMail-Protection", mark
        return value.decode(), original


def _address(path: str) -> str:
    return path.partition("<")[2].rpartition(">")[0]


@dataclass
class ExactSink:
    """Listens on a free port of loopback; `arrived` has every mail in its order, `on_rcpt` replies to give instead."""

    on_rcpt: Mapping[str, str] = field(default_factory=dict)
    arrived: list[Arrived] = field(default_factory=list)
    address: TCPAddress = field(default_factory=free_address)
    _acceptor: Acceptor | None = None
    _open: set[_Connection] = field(default_factory=set)

    async def __aenter__(self) -> Self:
        self._acceptor = Acceptor(self._connected)
        self.address = self._acceptor.listen(self.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._acceptor is not None
        await self._acceptor.close()
        for connection in list(self._open):
            connection.transport.abort()

    async def _connected(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: _Connection(self), connection)


class _Connection(asyncio.Protocol):
    """One client, which makes no mistakes."""

    def __init__(self, sink: ExactSink) -> None:
        self._sink = sink
        self._data = bytearray()
        self._searched = 0
        self._in_content = False
        self._mail, self._rcpts = "", list[str]()

    def connection_made(self, transport: Any) -> None:
        self.transport: asyncio.Transport = transport
        self._sink._open.add(self)
        transport.write(b"220 sink.example ESMTP\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self._sink._open.discard(self)

    def data_received(self, data: bytes) -> None:
        self._data += data
        while self._content() if self._in_content else self._command():
            pass

    def _command(self) -> bool:
        """Answers one line; False where none is complete."""
        line, end, rest = self._data.partition(b"\r\n")
        if not end:
            return False
        self._data = rest
        verb, _, argument = line.decode("utf-8", "surrogateescape").partition(" ")
        match verb.upper():
            case "EHLO":
                lines = ("sink.example", *EXTENSIONS)
                self._say("\r\n".join(f"250-{each}" for each in lines[:-1]) + f"\r\n250 {lines[-1]}")
            case "DATA":
                self._in_content = True
                self._data[:0] = b"\r\n"  # so that a dot in the first line stands at a line start too
                self._searched = 0
                self._say("354 go")
            case "QUIT":
                self._say("221 bye")
                self.transport.close()
            case "MAIL":
                self._mail, self._rcpts = argument, []
                self._say("250 ok")
            case "RCPT":
                reply = self._sink.on_rcpt.get(_address(argument), "250 ok")
                self._rcpts += [argument] if reply.startswith("250") else []
                self._say(reply)
            case _:
                self._say("250 ok")
        return True

    def _content(self) -> bool:
        end = self._data.find(END_OF_DATA, max(0, self._searched - len(END_OF_DATA)))
        if end < 0:
            self._searched = len(self._data)
            return False
        message = bytes(self._data[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]
        del self._data[: end + len(END_OF_DATA)]
        self._in_content = False
        self._sink.arrived.append(Arrived(self._mail, tuple(self._rcpts), message))
        self._say("250 2.0.0 sunk")
        return True

    def _say(self, reply: str) -> None:
        self.transport.write(f"{reply}\r\n".encode())
