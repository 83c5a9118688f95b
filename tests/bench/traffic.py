"""The mails of a benchmark, and a client that sends them, over many connections at once, one mail each.
Standard: RFC 5322 and MIME for the mails, which need no dot-stuffing; RFC 5321 and 2033, command by command.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

MARKER = b"this-line-is-not-for-the-wire"
"""First line of every body; where it is seen on the wire, a mail was not sealed."""

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


_SERIALS = itertools.count()
TIMEOUT_S = 120.0
"""Timeout for a batch of mails to be accepted and to arrive, in seconds."""
TOO_SLOW = f"not within {TIMEOUT_S:.0f} s"


def mails_of(size: int) -> Iterator[bytes]:
    """Mails without end, of `size` bytes with the header, from 1000 on; no two have the same Message-ID."""
    body = _body(size)
    for serial in _SERIALS:
        yield (_HEADER % serial).encode() + body


@cache
def _body(size: int) -> bytes:
    """Random base64 for a mail of `size` bytes."""
    room = size - len(_HEADER % 0) - len(MARKER) - 2
    data = base64.encodebytes(random.Random(1).randbytes(room)).replace(b"\n", b"\r\n")
    return MARKER + b"\r\n" + data[: room - 2].rstrip(b"\r\n").ljust(room - 2, b"=") + b"\r\n"


@dataclass
class Handover:
    """How many mails were accepted, in how many seconds; `fault` is the first reply that was not."""

    mails: int = 0
    seconds: float = 0.0
    fault: str = ""


async def send(
    port: int, messages: Iterable[bytes], *, connections: int, recipient: str, lmtp: bool = False
) -> Handover:
    """Sends messages over `connections` at once, until all are sent, one was not accepted, or time is over."""
    waiting, sent = iter(messages), Handover()

    async def keep_sending() -> None:
        for message in waiting:
            try:
                fault = await send_one(port, message, recipient=recipient, lmtp=lmtp)
            except OSError as error:
                fault = f"{type(error).__name__}: {error}"
            if fault or sent.fault:
                sent.fault = sent.fault or fault
                return
            sent.mails += 1

    started = time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(keep_sending() for _ in range(connections)))
    except TimeoutError:
        sent.fault = TOO_SLOW
    sent.seconds = time.perf_counter() - started
    return sent


async def send_one(port: int, message: bytes, *, recipient: str, lmtp: bool = False) -> str:
    """Sends one mail over a connection of its own; gives the first reply that was not as expected, or ""."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    envelope = (
        (b"", b"220"),
        (b"%sHLO sender.example\r\n" % (b"L" if lmtp else b"E"), b"250"),
        (b"MAIL FROM:<ann@alice.example>\r\n", b"250"),
        (b"RCPT TO:<%s>\r\n" % recipient.encode(), b"250"),
        (b"DATA\r\n", b"354"),
    )
    try:
        for command, expected in envelope:
            writer.write(command)
            if not (reply := await _reply(reader)).startswith(expected):
                return reply.decode("utf-8", "replace") or "the connection was closed"
        writer.writelines((message, b".\r\n"))
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
