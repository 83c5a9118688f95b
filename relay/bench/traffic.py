"""The mails of a benchmark, and who sends them, over many connections at once, one mail each, as fast as they go.
Standard: RFC 5322 and MIME for the mails, which need no dot-stuffing; RFC 5321 for the client, command by command.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import time
from dataclasses import dataclass
from functools import cache

MARKER = b"this-line-is-not-for-the-wire"
"""Stands at the beginning of every body: where it is seen, a mail was not sealed."""

_HEADER = """\
From: Ann <ann@alice.example>\r
To: Ben <ben@bob.example>\r
Subject: Quarterly figures\r
Date: Wed, 25 Nov 2026 10:00:00 +0000\r
Message-ID: <%012d@alice.example>\r
MIME-Version: 1.0\r
Content-Type: application/octet-stream; name="figures.bin"\r
Content-Transfer-Encoding: base64\r
User-Agent: A mail program of the usual kind 102.4\r
\r
"""


@dataclass(frozen=True, slots=True)
class Mails:
    """Mails of one size that differ in their Message-ID: `size` octets with the header."""

    size: int
    body: bytes

    def mail(self, serial: int) -> tuple[bytes, bytes]:
        """Header and body of one of them."""
        return (_HEADER % serial).encode(), self.body


@cache
def mails_of(size: int) -> Mails:
    """Mails of `size` octets, from 1000 on; the body is random base64."""
    room = size - len(_HEADER % 0) - len(MARKER) - 2
    data = base64.encodebytes(random.Random(1).randbytes(room)).replace(b"\n", b"\r\n")  # noqa: S311
    return Mails(size, MARKER + b"\r\n" + data[: room - 2].rstrip(b"\r\n").ljust(room - 2, b"=") + b"\r\n")


_ENVELOPE = (
    (b"", b"220"),
    (b"EHLO sender.example\r\n", b"250"),
    (b"MAIL FROM:<ann@alice.example>\r\n", b"250"),
    (b"RCPT TO:<ben@bob.example>\r\n", b"250"),
    (b"DATA\r\n", b"354"),
)


@dataclass
class Handover:
    """How many mails were accepted, in how many seconds; `fault` is the first reply that was not."""

    mails: int = 0
    seconds: float = 0.0
    fault: str = ""


class Traffic:
    """Sends mails; serial numbers are never used twice."""

    def __init__(self) -> None:
        self._serials = itertools.count()

    async def send(self, port: int, size: int, *, connections: int, seconds: float) -> Handover:
        """Mails of `size` octets to a local `port` over so many `connections` at once.

        Each sends one mail at least; none is begun when `seconds` have passed, and those begun come to their end.
        """
        mails, sent = mails_of(size), Handover()
        started = time.perf_counter()
        until = started + seconds
        await asyncio.gather(*(self._keep_sending(port, mails, sent, until) for _ in range(connections)))
        sent.seconds = time.perf_counter() - started
        return sent

    async def _keep_sending(self, port: int, mails: Mails, sent: Handover, until: float) -> None:
        """One of the connections: at least one mail, more until time is over or something went wrong."""
        while not sent.fault:
            try:
                fault = await _send(port, *mails.mail(next(self._serials)))
            except OSError as error:
                fault = f"{type(error).__name__}: {error}"
            if fault:
                sent.fault = sent.fault or fault
                return
            sent.mails += 1
            if time.perf_counter() >= until:
                return


async def _send(port: int, header: bytes, body: bytes) -> str:
    """Sends one mail; gives the first reply that was not as expected, or ""."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for command, expected in _ENVELOPE:
            writer.write(command)
            if not (reply := await _reply(reader)).startswith(expected):
                return reply.decode("utf-8", "replace") or "the connection was closed"
        writer.writelines((header, body, b".\r\n"))
        await writer.drain()
        reply = await _reply(reader)
        writer.write(b"QUIT\r\n")
        return "" if reply.startswith(b"250") else reply.decode("utf-8", "replace") or "no reply to the mail"
    finally:
        writer.close()


async def _reply(reader: asyncio.StreamReader) -> bytes:
    """The last line of one reply."""
    line = await reader.readline()
    while line[3:4] == b"-":
        line = await reader.readline()
    return line
