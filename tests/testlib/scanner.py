"""Virus scanners, a milter and a content filter, which refuse a signature of the tests' own and remember what they saw.
Standard: the Sendmail milter protocol, version 6 (mfdef.h): 4 octets of length, one of command, its data; FILTER_README.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any

from aiosmtpd.smtp import Envelope, Session

from relay.config import TCPAddress
from tests.testlib.sink import Sink
from tests.testlib.submit import submit

SIGNATURE = b"X5O!P%@AP[4-TEST-SIGNATURE-OF-OUR-OWN"
REFUSAL = b"554 5.7.1 A virus\0"
_NOT_ANSWERED = (b"D", b"A", b"K")
"""Macros, abort, and the end of a connection of which Postfix keeps the socket."""


class Scanner:
    """`async with Scanner() as scanner:`; `seen` has each message's header and body, `refused` those with the signature."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.refused: list[bytes] = []
        self._server: asyncio.Server | None = None

    @property
    def address(self) -> TCPAddress:
        """Where it listens."""
        assert self._server is not None
        return TCPAddress(*self._server.sockets[0].getsockname()[:2])

    async def __aenter__(self) -> Scanner:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            message = b""
            while True:
                length = int.from_bytes(await reader.readexactly(4), "big")
                packet = await reader.readexactly(length)
                command, data = packet[:1], packet[1:]
                answer = b"c"
                if command == b"O":
                    answer = b"O" + (6).to_bytes(4, "big") + bytes(8)
                elif command == b"M":
                    message = b""
                elif command in (b"L", b"B"):
                    message += data
                elif command == b"E":
                    self.seen.append(message)
                    if SIGNATURE in message:
                        self.refused.append(message)
                        answer = b"y" + REFUSAL
                elif command == b"Q":
                    break
                if command not in _NOT_ANSWERED:
                    writer.write(len(answer).to_bytes(4, "big") + answer)
        writer.close()


class ScanningFilter(Sink):
    """A content filter that refuses what has the signature in it, and hands on all else to `back`."""

    def __init__(self, back: TCPAddress) -> None:
        super().__init__()
        self.back = back
        self.refused: list[bytes] = []

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:
        """The reply of the server that takes what is handed on, or that it is a virus."""
        message = envelope.content
        assert isinstance(message, bytes)
        if SIGNATURE in message:
            self.refused.append(message)
            return REFUSAL.decode().rstrip("\0")
        reply = await super().handle_DATA(server, session, envelope)
        if reply.startswith("250"):
            sent = await submit(self.back, message, sender=self.got[-1].sender, recipients=envelope.rcpt_tos)
            reply = str(sent)
        return reply
