"""One connection to a next hop: commands, replies, content; bounded in memory and time.
Standard: RFC 5321 4.2 (replies), 4.5.3.2 (timeouts), RFC 2920 (replies in the order of commands), RFC 3207.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from relay.config import Server
from relay.errors import NextHopRefused, NextHopUnavailable
from relay.formats.pieces import Octets

REPLY_OCTETS = 32 * 1024
"""Maximum size of a reply, all lines together, in octets; usual ones have a few hundred."""
PIECE_OCTETS = 256 * 1024
"""Size of the pieces of content, in bytes; each write has its own timeout."""

_LINE = re.compile(rb"([2-5]\d\d)(?:([ -])(.*))?", re.DOTALL)
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?= |$)")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


class NotTaken(NextHopUnavailable):
    """Nothing of the mail was accepted: another server may be tried."""


class RecipientOverLimit(NotTaken):
    """Too many recipients in one transaction; this one may be sent in another (RFC 5321, 4.5.3.1.10)."""


class Gone(NotTaken):
    """The connection is unusable: refused, broken, 421, or a protocol violation."""


class Silent(Gone):
    """No reply in time: trying the same server again would take as long again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply: its code, and the text of each line without the code, control characters replaced."""

    code: int
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.code} {' '.join(self.lines)}"

    @property
    def status(self) -> str | None:
        """The enhanced status code (RFC 2034), or None."""
        match = _STATUS.match(self.lines[0])
        return match[0] if match else None

    @property
    def positive(self) -> bool:
        """Whether it is 2yz."""
        return 200 <= self.code < 300


def fault(
    server: Server, command: str, reply: Reply, kind: type[NextHopUnavailable] = NotTaken
) -> NextHopRefused | NextHopUnavailable:
    """The error for an unsuccessful reply; `kind` is its class for 4xx and for unknown codes."""
    failed = NextHopRefused if 500 <= reply.code < 600 else kind
    error = failed(f"next hop {server}: {command}: {reply}", reply.status)
    error.own_words = f"next hop {server}: {command}: {reply.code} {reply.status or ''}".rstrip()
    return error


class Timeouts:
    """The timeouts, in seconds; those of RFC 5321 4.5.3.2 if `timeout` is 300."""

    def __init__(self, timeout: float) -> None:
        """`timeout` applies to the greeting and most replies."""
        self.connect = timeout / 10
        self.reply = timeout
        self.data = timeout * 2 / 5
        self.piece = timeout * 3 / 5
        self.content_reply = timeout * 2
        self.mail = timeout * 6
        """Of one mail, from its first command to its last reply."""


class Client(asyncio.Protocol):
    """Sends commands and returns replies in order; an unexpected reply ends the connection.

    `extensions` are those offered by the server (RFC 5321, 2.2). `opened` and `deadline`, at which every wait ends, are
    in loop time. `mails` is the number of mails so far.
    """

    def __init__(self, server: Server, timeouts: Timeouts) -> None:
        self.server = server
        self.name = str(server)
        self.timeouts = timeouts
        self.extensions: dict[str, str] = {}
        self.opened = asyncio.get_running_loop().time()
        self.mails = 0
        self.deadline = float("inf")
        self.usable = True
        """Whether the connection is still usable, as far as is known."""
        self._why = ""
        self._silent = False
        self._transport: Any = None
        self._unread = b""
        self._lines: list[str] = []
        self._code = b""
        self._octets = 0
        self._replies: deque[Reply] = deque()
        self.outstanding = 1  # the greeting
        """Number of replies expected."""
        self._awaited: asyncio.Future[None] | None = None
        """Done when a reply has arrived, or the connection has failed."""
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()

    @classmethod
    async def connect(cls, server: Server, timeouts: Timeouts) -> Client:
        """Connects to a TCP address or a Unix socket; the greeting is not read yet. Raises Gone."""
        loop, address = asyncio.get_running_loop(), server.address
        client = cls(server, timeouts)
        try:
            async with asyncio.timeout(timeouts.connect):
                if isinstance(address, Path):
                    await loop.create_unix_connection(lambda: client, str(address))
                else:
                    await loop.create_connection(lambda: client, *address)
        except TimeoutError as error:
            raise Gone(f"next hop {server}: no connection within {timeouts.connect:g} s") from error
        except OSError as error:
            raise Gone(f"next hop {server}: no connection: {error}") from error
        return client

    @property
    def peer_host(self) -> str:
        """The server's IP address, "" for a Unix socket."""
        name = self._transport.get_extra_info("peername")
        return str(name[0]) if isinstance(name, tuple) else ""

    # Commands and replies. `name` is the step, for messages.

    async def command(self, name: str, command: bytes) -> Reply:
        """The reply to a command. Raises Gone."""
        self.send(name, command)
        return await self.reply(name)

    def send(self, name: str, *commands: bytes) -> None:
        """Sends commands, each with one reply. Raises Gone, or ValueError for control characters."""
        if _CONTROL.search(b"".join(commands)):
            raise ValueError("a command must not contain control characters")
        if not self.usable:
            self._raise(name)
        self.outstanding += len(commands)
        self._transport.write(b"\r\n".join((*commands, b"")))

    async def reply(self, name: str, seconds: float = 0.0, *, verdict: bool = False) -> Reply:
        """The next reply, within `seconds` or the default timeout. Raises Gone.

        Also raised for 421 (RFC 5321, 3.8), except as the `verdict` on a content, which may have been accepted.
        """
        if not self._replies and self.usable:
            # One timer instead of asyncio.timeout: each mail waits several times.
            loop = asyncio.get_running_loop()
            seconds = max(0.0, min(seconds or self.timeouts.reply, self.deadline - loop.time()))
            self._awaited = loop.create_future()
            timer = loop.call_later(seconds, self._too_late, f"no reply within {seconds:g} s")
            try:
                await self._awaited
            finally:
                timer.cancel()
        if not self._replies:
            self._raise(name)
        reply = self._replies.popleft()
        if reply.code == 421 and not verdict:
            raise fault(self.server, name, reply, Gone)
        return reply

    async def write(self, piece: Octets) -> None:
        """Writes a piece of content, with flow control. Raises Gone."""
        if not self.usable:
            self._raise("content")
        self._transport.write(piece)
        if not self._writable.is_set():
            await self._wait(self._writable, self.timeouts.piece, "what was sent is not taken")

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Starts TLS; `name` is the server's. Raises Gone: there is no fallback to clear text.

        Plaintext behind the reply to STARTTLS may be injected, so it ends the connection.
        """
        if self._unread or self._lines or self._replies:
            self._fail("something was sent in clear behind the reply to STARTTLS")
        if self.usable:
            try:
                self._transport = await asyncio.get_running_loop().start_tls(
                    self._transport, self, context, server_hostname=name, ssl_handshake_timeout=self.timeouts.reply
                )
            except OSError as error:  # includes ssl.SSLError
                self._fail(f"TLS: {error}")
        if not self.usable:
            self._raise("STARTTLS")

    def close(self) -> None:
        """Closes the connection, with QUIT if no reply is expected."""
        if self.usable and not self.outstanding:
            self.usable, self._why = False, "closed"
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
        else:
            self._fail("broken off")

    async def closed(self, seconds: float) -> None:
        """Waits up to `seconds` until the connection is closed, then aborts it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._gone.wait()
        self._transport.abort()

    # Called by asyncio.

    def connection_made(self, transport: Any) -> None:
        """`transport` may be uvloop's, which is no subclass of asyncio.Transport."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collects lines into replies."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for each in lines:
            if not self.usable:
                return
            line = each.removesuffix(b"\r")
            match = _LINE.fullmatch(line)
            if match is None or (self._lines and not line.startswith(self._code)):
                self._fail(f"not an SMTP reply: {_printable(line[:80])}")
                return
            self._code = match[1]
            self._lines.append(_printable((match[3] or b"").strip()))
            self._octets += len(line)
            if match[2] != b"-":
                reply = Reply(int(match[1]), tuple(self._lines))
                self._lines.clear()
                self._octets = 0
                if not self.outstanding:
                    self._fail(f"said without being asked: {reply}")
                    return
                self.outstanding -= 1
                self._replies.append(reply)
                self._wake()
        if self._octets + len(self._unread) > REPLY_OCTETS:
            self._fail(f"a reply is longer than {REPLY_OCTETS} octets")

    def connection_lost(self, error: Exception | None) -> None:
        """Replies received before can still be read."""
        self._gone.set()
        self._fail(f"the connection was lost: {error}" if error else "the connection was closed")

    def pause_writing(self) -> None:
        """The send buffer is full."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The send buffer has room again."""
        self._writable.set()

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)

    def _too_late(self, why: str) -> None:
        self._silent = self._silent or self.usable
        self._fail(why)

    async def _wait(self, event: asyncio.Event, seconds: float, awaited: str) -> None:
        seconds = max(0.0, min(seconds, self.deadline - asyncio.get_running_loop().time()))
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            self._too_late(f"{awaited} within {seconds:g} s")

    def _raise(self, name: str) -> NoReturn:
        """Raises the error for the end of the connection, before the mail was sent."""
        kind = Silent if self._silent else Gone
        raise kind(f"next hop {self.server}: {name}: {self._why}")

    def _fail(self, why: str) -> None:
        if self.usable:
            self.usable, self._why = False, why
        self._wake()
        self._writable.set()
        self._transport.abort()


def _printable(text: bytes) -> str:
    """Safe in a log line."""
    decoded = text.decode("utf-8", "replace")
    return decoded if decoded.isprintable() else "".join(each if each.isprintable() else "?" for each in decoded)
