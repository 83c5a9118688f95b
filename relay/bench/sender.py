"""Sends the mails of a benchmark over many connections at once, one mail a connection, as fast as they go.
Standard: RFC 5321 (SMTP client), command by command, whatever the server offers.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import uvloop

from relay.bench.children import serve_parent
from relay.bench.mails import Template, template

_ENVELOPE = (
    (b"", b"220"),
    (b"EHLO sender.example\r\n", b"250"),
    (b"MAIL FROM:<ann@alice.example>\r\n", b"250"),
    (b"RCPT TO:<ben@bob.example>\r\n", b"250"),
    (b"DATA\r\n", b"354"),
)


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: mails of `size` octets to a local `port` over `connections` at once.

    Each sends one mail at least; none is begun when `seconds` have passed, and those begun come to their end.
    """

    port: int
    size: int
    connections: int
    seconds: float


@dataclass
class Sent:
    """How many mails were accepted, in how many seconds; `fault` is the first reply that was not."""

    mails: int = 0
    seconds: float = 0.0
    fault: str = ""


class Sender:
    """Keeps its mails between rounds; serial numbers are never used twice."""

    def __init__(self) -> None:
        self._templates: dict[int, Template] = {}
        self._serials = itertools.count()

    async def answer(self, question: dict[str, Any]) -> dict[str, object]:
        """Sends one load; what came of it."""
        load = Load(**question)
        if load.size not in self._templates:
            self._templates[load.size] = template(load.size)
        sent = Sent()
        started = time.perf_counter()
        connections = (
            _keep_sending(load, self._templates[load.size], self._serials, sent, started + load.seconds)
            for _ in range(load.connections)
        )
        await asyncio.gather(*connections)
        sent.seconds = time.perf_counter() - started
        return asdict(sent)


async def _keep_sending(load: Load, mails: Template, serials: Iterator[int], sent: Sent, until: float) -> None:
    """One of the connections: at least one mail, more until time is over or something went wrong."""
    while not sent.fault:
        try:
            fault = await _send(load.port, *mails.mail(next(serials)))
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


if __name__ == "__main__":
    uvloop.run(serve_parent(None, Sender().answer))
