"""One connection to a next hop as commands and replies, bounded in memory and time whatever the other side sends.
Standard: RFC 5321 4.2 (replies), RFC 2920 (replies come in the order of the commands), RFC 3207 (STARTTLS).
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.config import TCPAddress

REPLY_OCTETS = 32 * 1024
"""The longest reply that is read, all its lines together; real ones have a few hundred octets."""
PIECE_OCTETS = 256 * 1024
"""Content is written in pieces of this size, and each must get away in time."""

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?", re.DOTALL)
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class ChannelLost(Exception):
    """The connection is over; says why."""


class NoReply(ChannelLost):
    """The other side was silent, or did not read what we send, for too long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: its code and the text of each of its lines, control characters replaced."""

    code: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.code} {self.text}"

    @property
    def text(self) -> str:
        """All lines as one."""
        return " ".join(self.lines)

    @property
    def status(self) -> str | None:
        """The enhanced status code (RFC 2034), or None where it has none."""
        match = _STATUS.match(self.lines[0])
        return match[0] if match else None

    @property
    def positive(self) -> bool:
        """Whether it is 2yz."""
        return 200 <= self.code < 300


class Channel(asyncio.Protocol):
    """Sends commands, gives the replies one by one; a reply that nobody waits for ends the connection."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._unread = b""
        self._lines: list[bytes] = []
        self._octets = 0
        self._replies: deque[Reply] = deque()
        self._outstanding = 1  # the greeting
        self._lost: ChannelLost | None = None
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self.deadline = float("inf")
        """The loop's time at which every wait ends."""

    @classmethod
    async def connect(cls, address: TCPAddress | Path, seconds: float) -> Channel:
        """A connection to a TCP address or a Unix socket, within `seconds` seconds. Raises ChannelLost."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                if isinstance(address, Path):
                    _, channel = await loop.create_unix_connection(cls, str(address))
                else:
                    _, channel = await loop.create_connection(cls, *address)
        except TimeoutError as error:
            raise NoReply(f"no connection within {seconds:g} s") from error
        except OSError as error:
            raise ChannelLost(f"no connection: {error}") from error
        return channel

    @property
    def usable(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self._lost is None

    @property
    def peer_host(self) -> str:
        """The IP address at the other end, or "" for a Unix socket."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    def send(self, *commands: bytes) -> None:
        """Writes commands, each of which gets one reply. Raises ChannelLost, or ValueError for control characters."""
        if any(_CONTROL.search(command) for command in commands):
            raise ValueError("a command must not contain control characters")
        self._check()
        self.expect(len(commands))
        self._transport.write(b"".join(command + b"\r\n" for command in commands))

    def expect(self, replies: int) -> None:
        """So many more replies are owed to us."""
        self._outstanding += replies

    async def reply(self, seconds: float) -> Reply:
        """The next reply, within `seconds` seconds. Raises ChannelLost."""
        if not self._replies and self.usable:
            self._news.clear()
            await self._wait(self._news, seconds, "no reply")
        if not self._replies:
            self._check()
        return self._replies.popleft()

    async def write(self, piece: memoryview, seconds: float) -> None:
        """Writes a piece of content; returns when there is room for more. Raises ChannelLost."""
        self._check()
        self._transport.write(piece)
        await self._wait(self._writable, seconds, "what was sent is not taken")

    async def start_tls(self, context: ssl.SSLContext, name: str, seconds: float) -> None:
        """TLS from now on; `name` is the server's. Raises ChannelLost.

        Whatever came in clear behind the reply to STARTTLS was put there by somebody else.
        """
        if self._unread or self._lines or self._replies:
            self._fail(ChannelLost("something was sent in clear behind the reply to STARTTLS"))
        self._check()
        try:
            self._transport = await asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_hostname=name, ssl_handshake_timeout=seconds
            )
        except OSError as error:  # ssl.SSLError is one
            self._fail(ChannelLost(f"TLS: {error}"))
        self._check()

    def close(self) -> None:
        """Says QUIT and goes; where the other side is in the middle of something, without a word."""
        if self.usable and not self._outstanding:
            self._lost = ChannelLost("closed")
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
        else:
            self._fail(ChannelLost("broken off"))

    async def closed(self, seconds: float) -> None:
        """Waits until the connection is gone, for `seconds` seconds, then does not wait for the other side."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        """`transport` is an asyncio.Transport in all but name where uvloop made it."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collects lines into replies."""
        if not self.usable:
            return
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._line(line.removesuffix(b"\r"))
        if self._octets + len(self._unread) > REPLY_OCTETS:
            self._fail(ChannelLost(f"a reply is longer than {REPLY_OCTETS} octets"))

    def connection_lost(self, error: Exception | None) -> None:
        """Replies that came before can still be read."""
        self._gone.set()
        self._fail(ChannelLost(f"the connection was lost: {error}" if error else "the connection was closed"))

    def pause_writing(self) -> None:
        """The other side does not keep up."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The other side keeps up again."""
        self._writable.set()

    def _line(self, line: bytes) -> None:
        if not self.usable:
            return
        match = _LINE.fullmatch(line)
        if match is None or (self._lines and not line.startswith(self._lines[0][:3])):
            self._fail(ChannelLost(f"not an SMTP reply: {_printable(line[:80])}"))
            return
        self._lines.append(line)
        self._octets += len(line)
        if match[2] == b"-":
            return
        reply = Reply(int(match[1]), tuple(_printable(each[4:].strip()) for each in self._lines))
        self._lines.clear()
        self._octets = 0
        if not self._outstanding:
            self._fail(ChannelLost(f"said without being asked: {reply}"))
            return
        self._outstanding -= 1
        self._replies.append(reply)
        self._news.set()

    async def _wait(self, event: asyncio.Event, seconds: float, what: str) -> None:
        left = self.deadline - asyncio.get_running_loop().time()
        seconds = max(0.0, min(seconds, left))
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            self._fail(NoReply(f"{what} within {seconds:g} s"))

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _fail(self, why: ChannelLost) -> None:
        if self._lost is None:
            self._lost = why
        self._news.set()
        self._writable.set()
        self._transport.abort()


def _printable(text: bytes) -> str:
    """Safe in a log line."""
    decoded = text.decode("utf-8", "replace")
    return decoded if decoded.isprintable() else "".join(each if each.isprintable() else "?" for each in decoded)
