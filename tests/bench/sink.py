"""Where the mails of a benchmark end: it accepts each at once, counts, looks at it, and throws it away.
Standard: RFC 5321 (SMTP server) as far as a sender that makes no mistakes needs it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self

from relay.errors import RelayError
from relay.formats import mime
from tests.bench.traffic import MARKER

END_OF_DATA = b"\r\n.\r\n"
KEPT_OCTETS = 64 * 1024
"""Number of bytes checked of each mail; the first of a round is checked whole."""
CHECKED_WHOLE = 50
"""Number of mails of a round taken apart as far as the CMS; of the others only the header is read."""
AUTH_ENVELOPED_DATA = bytes.fromhex("060b2a864886f70d0109100117")
"""The object identifier id-ct-authEnvelopedData in DER (RFC 5083)."""


@dataclass
class SinkCount:
    """What came since the last question: mails, their bytes on the wire, and how many of them are sealed."""

    mails: int = 0
    size: int = 0
    sealed: int = 0
    in_clear: int = 0
    kept: list[tuple[bytes, bool]] = field(default_factory=list)
    """The beginning of each mail, and whether it is the whole."""

    def look(self) -> None:
        """At what was kept, which is then thrown away."""
        checked = 0
        for message, whole in self.kept:
            check_structure = whole and checked < CHECKED_WHOLE
            checked += check_structure
            self.sealed += _is_sealed(message, check_structure)
            self.in_clear += MARKER in message
        self.kept.clear()

    def add(self, later: SinkCount) -> None:
        """Those too that were counted later."""
        self.mails += later.mails
        self.size += later.size
        self.sealed += later.sealed
        self.in_clear += later.in_clear


def _is_sealed(message: bytes, check_structure: bool) -> bool:
    """Judged without the code that seals: an outer Content-Type, and where it can be read the CMS in base64."""
    try:
        if not mime.is_sealed(message):
            return False
        return not check_structure or AUTH_ENVELOPED_DATA in mime.sealed_content(message)[:32]
    except RelayError:
        return False


class SinkConnection(asyncio.Protocol):
    """One client."""

    def __init__(self, sink: BenchSink) -> None:
        self._sink = sink
        self._lines = b""
        self._in_data = False
        self._tail = b""
        self._octets = 0
        self._pieces: list[bytes] = []
        self._keep: float = KEPT_OCTETS

    def connection_made(self, transport: Any) -> None:
        """Greets; `transport` is an asyncio.Transport in all but name where uvloop made it."""
        self._transport: asyncio.Transport = transport
        self._sink.connections.add(self)
        transport.write(b"220 sink.example ESMTP\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        """The client has gone."""
        self._sink.connections.discard(self)

    def close(self) -> None:
        """At once."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Commands or content, in whatever pieces they come."""
        while data:
            data = self._content(data) if self._in_data else self._commands(data)

    def _commands(self, data: bytes) -> bytes:
        """Answers each whole line; what follows DATA is given back."""
        data = self._lines + data
        while (end := data.find(b"\r\n")) >= 0:
            verb, data = data[:4].upper(), data[end + 2 :]
            if verb == b"EHLO":
                self._transport.write(b"250-sink.example\r\n250-8BITMIME\r\n250 SIZE 1000000000\r\n")
            elif verb == b"DATA":
                self._transport.write(b"354 go\r\n")
                self._in_data, self._tail, self._octets = True, b"\r\n", 0
                self._keep = self._sink.octets_to_keep()
                self._lines = b""
                return data
            elif verb == b"QUIT":
                self._transport.write(b"221 bye\r\n")
                self._transport.close()
                return b""
            else:
                self._transport.write(b"250 ok\r\n")
        self._lines = data
        return b""

    def _content(self, data: bytes) -> bytes:
        """Takes content up to CRLF.CRLF; what follows is given back."""
        seen = self._tail + data
        end = seen.find(END_OF_DATA)
        piece = data if end < 0 else data[: max(0, end + 2 - len(self._tail))]
        if self._octets < self._keep:
            self._pieces.append(piece)
        if end < 0:
            self._octets += len(data)
            self._tail = seen[-(len(END_OF_DATA) - 1) :]
            return b""
        self._octets += end + 2 - len(self._tail)
        message = b"".join(self._pieces)
        self._sink.accept(message, self._octets, whole=len(message) == self._octets)
        self._pieces.clear()
        self._in_data = False
        self._transport.write(b"250 2.0.0 sunk\r\n")
        return seen[end + len(END_OF_DATA) :]


class BenchSink:
    """The server, as an async context manager, and what has arrived at it."""

    def __init__(self, port: int = 0, *, whole: bool = False) -> None:
        """Listens at `port`, or any; `whole` mails are kept for `taken`, and not counted."""
        self._port = port
        self._whole = whole
        self._messages: list[bytes] = []
        self._count = SinkCount()
        self._first = True
        self.connections: set[SinkConnection] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: SinkConnection(self), "127.0.0.1", self._port, backlog=512
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Also ends kept connections, over which mail would still come here, and not to who listens there next."""
        self._server.close()
        for connection in [*self.connections]:
            connection.close()

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self._server.sockets[0].getsockname()[1])

    def octets_to_keep(self) -> float:
        """How much of the mail that now begins is looked at later."""
        first, self._first = self._first, False
        return float("inf") if first or self._whole else KEPT_OCTETS

    def accept(self, message: bytes, size: int, *, whole: bool) -> None:
        """Notes one mail, of which `message` was kept."""
        if self._whole:
            self._messages.append(message)
            return
        self._count.mails += 1
        self._count.size += size
        self._count.kept.append((message, whole))

    def taken(self) -> list[bytes]:
        """The whole mails that have come since the last question."""
        taken, self._messages = self._messages, []
        return taken

    def count(self) -> SinkCount:
        """What has arrived since the last question, looked at; the next counts from nothing."""
        count, self._count, self._first = self._count, SinkCount(), True
        count.look()
        return count
