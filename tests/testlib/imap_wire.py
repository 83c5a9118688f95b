"""A TLS connection to an IMAP server that a test can stop at any command: before it, in its middle, after it.
Standard: RFC 3501 commands, literals included; octets pass unchanged until the point where everything stops.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from relay.config import TCPAddress
from tests.testlib.acceptor import Acceptor, streams
from tests.testlib.dovecot import Dovecot

_LITERAL = re.compile(rb"\{(\d+)\}\r\n$")


@dataclass(frozen=True)
class Point:
    """The `number`th command of this name: not yet sent, sent in half, or done at the server but not answered."""

    command: str
    number: int
    when: Literal["before", "middle", "after"]

    def __str__(self) -> str:
        return f"{self.when} {self.command} {self.number}"


@dataclass
class IMAPWire:
    """Forwards to `server`. At `point`, `reached` is called, and nothing passes any more on that connection.

    `commands` counts the names of all that have passed.
    """

    server: Dovecot
    point: Point | None = None
    reached: Callable[[], None] = lambda: None
    commands: Counter[str] = field(default_factory=Counter)
    address: TCPAddress = TCPAddress("127.0.0.1", 0)
    _acceptor: Acceptor | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)
    _gate: asyncio.Event | None = None
    _at_gate: asyncio.Event = field(default_factory=asyncio.Event)
    _passed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def __aenter__(self) -> Self:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(self.server.directory / "certificate.pem", self.server.directory / "key.pem")
        self._acceptor = streams(self._connection, tls)
        self.address = self._acceptor.listen(self.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._acceptor is not None
        await self._acceptor.close()

    def cut(self) -> None:
        """Open connections break."""
        for connection in self._connections:
            connection.cancel()

    def hold(self) -> asyncio.Event:
        """From now on the connection only waits at `point`, until the event is set."""
        self._gate = asyncio.Event()
        return self._gate

    async def held(self) -> None:
        """Waits until the connection waits."""
        async with asyncio.timeout(30):
            await self._at_gate.wait()

    async def passed(self, command: str, number: int) -> None:
        """Waits until so many commands of this name have passed."""
        async with asyncio.timeout(30), self._passed:
            await self._passed.wait_for(lambda: self.commands[command] >= number)

    async def count(self, command: str) -> None:
        """One more has passed."""
        async with self._passed:
            self.commands[command] += 1
            self._passed.notify_all()

    async def at_point(self) -> None:
        """The point is reached: ends the connection, or waits."""
        self.point = None
        self.reached()
        if self._gate is None:
            raise ConnectionError("the test wanted it to end here")
        self._at_gate.set()
        await self._gate.wait()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        writers = [writer]
        try:
            tls = ssl.create_default_context(cafile=str(self.server.ca))
            there, to_there = await asyncio.open_connection("localhost", self.server.tls.port, ssl=tls)
            writers.append(to_there)
            passing = _Passing(self)
            ways = [
                asyncio.create_task(passing.commands(reader, to_there)),
                asyncio.create_task(passing.answers(there, writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (asyncio.CancelledError, OSError):
            pass
        finally:
            self._connections.discard(task)
            for each in writers:
                each.transport.abort()


class _Passing:
    """What one connection has seen."""

    def __init__(self, wire: IMAPWire) -> None:
        self._wire = wire
        self._seen: Counter[str] = Counter()
        self._awaited = b""
        self._tail = b""

    async def commands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            name, tag = _name(line), line.split(b" ")[0]
            self._seen[name] += 1
            await self._wire.count(name)
            if self._is("before", name):
                await self._wire.at_point()
            if self._is("after", name):
                self._awaited = b"\r\n" + tag + b" "
            writer.write(line)
            await writer.drain()
            if match := _LITERAL.search(line):
                content = await reader.readexactly(int(match[1]) + 2)
                if self._is("middle", name):
                    writer.write(content[: len(content) // 2])
                    await writer.drain()
                    await self._wire.at_point()
                writer.write(content)
                await writer.drain()

    async def answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tail = b"\r\n"
        while piece := await reader.read(65536):
            self._tail = (self._tail + piece)[-2 * 65536 :]
            if self._awaited and self._awaited in self._tail:
                await self._wire.at_point()
            writer.write(piece)
            await writer.drain()

    def _is(self, when: str, name: str) -> bool:
        point = self._wire.point
        return point is not None and (point.when, point.command) == (when, name) and self._seen[name] == point.number


def _name(line: bytes) -> str:
    words = line.split()[1:3]
    return b" ".join(words if words and words[0] == b"UID" else words[:1]).decode()
