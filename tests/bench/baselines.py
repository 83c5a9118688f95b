"""What the relay is compared with, each as a process: a mail server that passes on, and a milter that replaces bodies.
Neither seals. The server is aiosmtpd as it comes, whose handler sends on with aiosmtplib as it comes, a connection for
each mail. The milter speaks as much of protocol version 6 as a mail server without mistakes needs, which is the least
that a milter can cost.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from typing import Any

import aiosmtplib
import uvloop
from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.bench.processes import serve

OFFER = (6).to_bytes(4) + (0x02).to_bytes(4) + (0x1 | 0x2 | 0x100 | 0x200 | 0x80 | 0x40000 | 0x80000).to_bytes(4)
"""Version; bodies are replaced; neither connect, helo nor data, no answers to header fields and pieces of a body."""
BODY_OCTETS = 65_535
MOST_OCTETS = 100_000_000
"""Maximum size of a mail that a server passes on, in bytes; a relay in front makes 25 MB a third larger."""
LINE = b"A" * 76 + b"\r\n"


class PassOn:
    """Sends each mail on before it is accepted, as the relay does."""

    def __init__(self, port: int) -> None:
        """`port` is the next hop's, on this host."""
        self._port = port

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """What aiosmtpd calls when it has the whole content."""
        assert envelope.mail_from is not None
        assert isinstance(envelope.content, bytes)
        await aiosmtplib.send(
            envelope.content,
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            hostname="127.0.0.1",
            port=self._port,
            # Without a name of its own aiosmtplib looks one up for each connection: that would measure DNS.
            local_hostname="pass-through.example",
        )
        return "250 OK"


class BareMilter(asyncio.Protocol):
    """One session of the mail server's."""

    def connection_made(self, transport: Any) -> None:
        """`transport` is an asyncio.Transport in all but name where uvloop made it."""
        self._transport: asyncio.Transport = transport
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._buffer = b""
        self._body = 0

    def data_received(self, data: bytes) -> None:
        """Packets, in whatever pieces they come."""
        self._buffer += data
        start, whole = 0, len(self._buffer)
        while start + 4 <= whole:
            end = start + 4 + int.from_bytes(self._buffer[start : start + 4])
            if end > whole:
                break
            self._packet(self._buffer[start + 4 : start + 5], end - start - 5)
            start = end
        self._buffer = self._buffer[start:]
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _packet(self, command: bytes, size: int) -> None:
        if command == b"O":
            self._transport.write(_packet(b"O", OFFER))
        elif command in b"MR":
            self._transport.write(_packet(b"c"))
        elif command == b"B":
            self._body += size
        elif command == b"E":
            body = LINE * (self._body * 4 // 3 // 76 + 1)
            pieces = (body[at : at + BODY_OCTETS] for at in range(0, len(body), BODY_OCTETS))
            self._transport.write(b"".join(_packet(b"b", piece) for piece in pieces) + _packet(b"a"))
            self._body = 0


def _packet(command: bytes, data: bytes = b"") -> bytes:
    return (1 + len(data)).to_bytes(4) + command + data


async def _main(protocol: str, next_hop: str = "0") -> None:
    """`milter`, or a server that passes on to the port `next_hop`: `smtp`, or `lmtp` for one recipient a mail."""
    loop = asyncio.get_running_loop()
    if protocol == "milter":
        await serve(BareMilter)
        return
    server, handler = {"smtp": SMTP, "lmtp": LMTP}[protocol], PassOn(int(next_hop))
    await serve(
        lambda: server(
            handler, hostname="pass-through.example", enable_SMTPUTF8=True, data_size_limit=MOST_OCTETS, loop=loop
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.bench.baselines", description=__doc__)
    parser.add_argument("protocol", help="smtp, lmtp or milter")
    parser.add_argument("next_hop", nargs="?", default="0", help="the port of the next hop, on this host")
    given = parser.parse_args()
    uvloop.run(_main(given.protocol, given.next_hop))
