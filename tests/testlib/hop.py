"""A next hop that offers what it is told to, remembers every command, and misbehaves at any point.
Standard: RFC 5321, RFC 2033 (LMTP), RFC 3207 (STARTTLS), by hand, because no server library errs on purpose.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from relay.config import TCPAddress
from tests.testlib.acceptor import Acceptor, streams
from tests.testlib.ports import free_address
from tests.testlib.sink import Got

HANG_UP = b""
"""In place of a reply: the connection is closed."""
SILENCE = None
"""In place of a reply: nothing is ever said."""

Answer = bytes | str | None
Instead = dict[str, list[Answer] | Answer]

EVERYTHING = ("PIPELINING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")


@dataclass
class Hop:
    """Listens on a free port of `host`, or on the Unix socket `path`.

    `instead` says what is answered in place of success: to commands that begin with a key ("MAIL", or
    "RCPT TO:<ben@bob.example>"), to "greeting", to "content" (as soon as some of it has come) and to "." (its end);
    bytes are sent as they are. Of a list each answer is used once. `connections` has the commands of each connection.
    """

    extensions: tuple[str, ...] = EVERYTHING
    lmtp: bool = False
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    path: Path | None = None
    instead: Instead = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)
    connections: list[list[str]] = field(default_factory=list)
    address: TCPAddress = TCPAddress("", 0)
    _acceptor: Acceptor | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def next_hop(self) -> str:
        """How relay.toml names it."""
        return f"lmtp:{self.path}" if self.path else f"{'lmtp' if self.lmtp else 'smtp'}://{self.address}"

    @property
    def commands(self) -> list[str]:
        """All commands, of all connections one after the other."""
        return [command for connection in self.connections for command in connection]

    @property
    def open(self) -> int:
        """How many connections stand."""
        return len(self._tasks)

    async def changed(self) -> None:
        """Waits until a command has come or a connection has gone."""
        self._changed.clear()
        async with asyncio.timeout(30):
            await self._changed.wait()

    async def until_closed(self) -> None:
        """Waits until no connection stands any more."""
        while self._tasks:
            await self.changed()

    async def __aenter__(self) -> Self:
        self._acceptor = streams(self._connection)
        if self.path:
            self._acceptor.listen_at(self.path)
        else:
            port = self.address.port or free_address().port
            self.address = self._acceptor.listen(TCPAddress(self.host, port))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._acceptor is not None
        await self._acceptor.close()

    async def hang_up(self) -> None:
        """Breaks all connections, as a restart does."""
        for task in self._tasks:
            task.cancel()
        await self.until_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        commands: list[str] = []
        self.connections.append(commands)
        try:
            await _Session(self, reader, writer, commands).run()
        except (asyncio.CancelledError, ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            writer.transport.abort()
        finally:
            writer.close()
            self._tasks.discard(task)
            self.notice()

    def notice(self) -> None:
        """Something has happened."""
        self._changed.set()

    def told(self, command: str) -> Answer:
        """What is to be answered instead, or "" where all is well."""
        for beginning, what in self.instead.items():
            if command.startswith(beginning):
                if not isinstance(what, list):
                    return what
                if what:
                    return what.pop(0)
        return ""


@dataclass
class _Session:
    hop: Hop
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    commands: list[str]
    sender: str = ""
    options: str = ""
    recipients: list[str] = field(default_factory=list)

    async def run(self) -> None:
        await self._say("greeting", "220 hop.example ESMTP")
        while line := await self.reader.readline():
            command = line.decode().rstrip("\r\n")
            self.commands.append(command)
            self.hop.notice()
            await self._answer(command)

    async def _answer(self, command: str) -> None:
        verb = command.partition(" ")[0].upper()
        match verb:
            case "EHLO" | "LHLO":
                starttls = ("STARTTLS",) if self.hop.tls and not self._secure else ()
                lines = ["hop.example", *self.hop.extensions, *starttls]
                await self._say(command, "".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}")
            case "STARTTLS":
                if await self._say(command, "220 2.0.0 go on"):
                    assert self.hop.tls is not None
                    await self.writer.start_tls(self.hop.tls)
            case "MAIL":
                self.sender, _, self.options = command.removeprefix("MAIL FROM:<").partition(">")
                self.recipients = []
                await self._say(command, "250 2.1.0 Ok")
            case "RCPT":
                if await self._say(command, "250 2.1.5 Ok"):
                    self.recipients.append(command.removeprefix("RCPT TO:<").partition(">")[0])
            case "DATA":
                if await self._say(command, "354 go on" if self.recipients else "503 5.5.1 no recipients"):
                    await self._content()
            case "QUIT":
                await self._say(command, "221 2.0.0 bye")
                raise ConnectionError
            case _:
                await self._say(command, "250 2.0.0 Ok")

    async def _content(self) -> None:
        if not self.recipients:
            return
        message = bytearray()
        while (line := await self.reader.readuntil(b"\r\n")) != b".\r\n":
            if not message:
                await self._say("content", "")
            message += line.removeprefix(b".")
        asked = self.recipients if self.hop.lmtp else [""]
        accepted = [each for each in asked if await self._say(f". {each}", "250 2.0.0 Ok: sunk")]
        if accepted:
            recipients = tuple(accepted if self.hop.lmtp else self.recipients)
            self.hop.got.append(Got(self.sender, recipients, bytes(message), tuple(self.options.split())))

    async def _say(self, command: str, reply: str) -> bool:
        """Whether all was well."""
        told = self.hop.told(command)
        if told is SILENCE:
            await asyncio.Event().wait()
        if told == HANG_UP:
            raise ConnectionError
        said = told or reply
        if said:
            self.writer.write(said if isinstance(said, bytes) else said.encode() + b"\r\n")
            await self.writer.drain()
        return not told

    @property
    def _secure(self) -> bool:
        return self.writer.get_extra_info("ssl_object") is not None
