"""What the milter is compared with: one that seals nothing, and replaces each body by one of a sealed one's size.
Standard: milter protocol 6, as far as a mail server without mistakes needs it; no milter that seals can cost less.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvloop

from relay.bench.processes import serve

OFFER = (6).to_bytes(4) + (0x02).to_bytes(4) + (0x1 | 0x2 | 0x100 | 0x200 | 0x80 | 0x40000 | 0x80000).to_bytes(4)
"""Version; bodies are replaced; neither connect, helo nor data, no answers to header fields and pieces of a body."""
BODY_OCTETS = 65_535
LINE = b"A" * 76 + b"\r\n"


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

    def _packet(self, command: bytes, octets: int) -> None:
        if command == b"O":
            self._transport.write(_packet(b"O", OFFER))
        elif command in b"MR":
            self._transport.write(_packet(b"c"))
        elif command == b"B":
            self._body += octets
        elif command == b"E":
            body = LINE * (self._body * 4 // 3 // 76 + 1)
            pieces = (body[at : at + BODY_OCTETS] for at in range(0, len(body), BODY_OCTETS))
            self._transport.write(b"".join(_packet(b"b", piece) for piece in pieces) + _packet(b"a"))
            self._body = 0


def _packet(command: bytes, data: bytes = b"") -> bytes:
    return (1 + len(data)).to_bytes(4) + command + data


if __name__ == "__main__":
    uvloop.run(serve(BareMilter))
