"""aiosmtpd's connection as our sessions use it, with everything that relies on undocumented parts of aiosmtpd.
Standard: RFC 5321 (3.8, 4.1.1, 4.5.3.2), RFC 2034 (enhanced status codes), RFC 2920 (pipelining), RFC 3207 (STARTTLS);
poll(2) and tcp(7) (TCP_INFO) for whether the client is still there.

Sessions rely on what aiosmtpd documents: `SMTP` and its arguments, `smtp_VERB` for each command, `push`, `session`.
The exceptions, which a new version may break, are here:

- `_handle_client`: the original accepts commands that end in a bare LF or have control characters. It reports
  exceptions to the client, greets everybody, and lets a client that pipelines starve all others;
- `_timeout_cb`, `_reset_timeout`, `_timeout_handle`: the timer also sends 421. It is paused during delivery, and not
  reset for each command;
- `push`: the original also waits if everything was written at once;
- `_reader._buffer`: data behind the content is put back, data before TLS is discarded, and a missing line shows that
  the client is idle;
- `_reader._transport`, `_writer.start_tls`: the original STARTTLS uses parts of asyncio that uvloop lacks;
- `mail.log`, its log, which has addresses and content, is silenced;
- `__dir__` of session and handler: searched for `_smtp_methods`, which takes as long as the rest of a connection's
  setup; ours are in `commands`;
- `_writer`, `_client_connected_cb`: reference cycles with the session, which would keep closed connections until the
  next garbage collection;
- `eof_received`: the original ends a session whose client has half-closed and waits for its reply.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import select
import socket
import ssl
import struct
import time
from typing import Any, ClassVar, cast

import structlog
from aiosmtpd.smtp import SMTP, Session

from relay.entry.listening import SocketServer
from relay.errors import TryLater

log = structlog.get_logger(__name__)

BUFFER_OCTETS = 64 * 1024
COMMAND_OCTETS = 2048
PIECE_OCTETS = 1024 * 1024
"""One read empties the stream's buffer, so that data behind the content can be put back."""
MAX_ERRORS = 20
"""Maximum number of bad commands before the connection is closed."""
AT_ONCE, IN_A_TURN = 4, 16
"""Number of pipelined commands in the first turn of a client, and in each further one."""
TURN_S = 0.01
"""Maximum length of a turn, in seconds: a recipient may have a thousand rules."""
SPARE_COMMANDS, SPARE_A_SECOND = 200, 50.0
"""Commands allowed to a client between two mails, and their refill rate per second."""
HANDSHAKE_S = 30.0
_GONE = select.POLLHUP | select.POLLERR | select.POLLNVAL
_LAST_DATA_RECEIVED = struct.Struct("=52xI")
"""`tcpi_last_data_recv` of struct tcp_info (linux/tcp.h), in milliseconds."""
NEVER = float("inf")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_DONE_HERE = frozenset(("AUTH", "BDAT", "ETRN", "EXPN", "SAML", "SEND", "SOML", "STARTTLS", "TURN", "XCLIENT"))
_NOT_MAIL = re.compile(rb"(?:CONNECT|DELETE|GET|HEAD|OPTIONS|PATCH|POST|PUT) |[^\s:]+:", re.IGNORECASE)
"""Lines of a web browser that was tricked into connecting to a mail server."""


class _NoMethods:
    """Hides its methods from aiosmtpd's search by name."""

    def __dir__(self) -> list[str]:
        return []


_NO_HANDLER = _NoMethods()


class CommandStream(_NoMethods, SMTP):
    """One connection: reads commands one by one, and disconnects slow or confused clients; it has no mail yet.

    A subclass lists its `commands`, each a method `smtp_VERB`. `idle` is set while no mail is in flight. A client that
    has `left` sends nothing more; once `ending`, no further command is read. `spare` commands are left until the client
    is slowed down.
    """

    commands: ClassVar[tuple[str, ...]] = ()
    protocol: ClassVar[str] = "SMTP"

    line_length_limit = BUFFER_OCTETS  # aiosmtpd makes it the stream's buffer limit
    session: Session
    transport: asyncio.Transport | None

    def __init__(self, server: SocketServer, hostname: str) -> None:
        """`hostname` is the name in the greeting."""
        self._until = self._fires = NEVER
        super().__init__(
            _NO_HANDLER,
            hostname=hostname,
            ident="QuMail Relay",
            data_size_limit=server.settings.max_message_size,
            enable_SMTPUTF8=True,
            timeout=server.settings.timeout,
            loop=asyncio.get_running_loop(),
        )
        self.server = server
        self.settings = server.settings
        self.client = self.port = ""
        """IP address and port of the client, "" if they can no longer be determined."""
        self.trusted = self.secured = False
        """Whether the client is in a trusted network, and whether the connection is TLS."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.ending = False
        self.left = False
        self._errors = 0
        self._at_once, self._turn_began = 0, NEVER
        self.spare, self._spare_at = float(SPARE_COMMANDS), self.loop.time()
        self._refused_because = ""

    # The connection.

    @property
    def gone(self) -> bool:
        """Whether nothing more can be sent to the client."""
        return self.transport is None or self.transport.is_closing()

    def absent(self) -> float:
        """As Mail.absent; asks the kernel, since a FIN or RST may not have been read yet.

        A half-closed client may wait for its reply, or may have gone right after its last octets.
        """
        if self.transport is None or self.transport.is_closing():
            return math.inf
        if (connection := self.transport.get_extra_info("socket")) is None:
            return 0.0
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLRDHUP)
        events = sum([each for _, each in poll.poll(0)])
        if not events:
            return 0.0
        if events & _GONE:
            return math.inf
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
        [milliseconds] = _LAST_DATA_RECEIVED.unpack(info)
        return max(1, int(milliseconds)) / 1000

    def connection_made(self, transport: Any) -> None:
        """Counts the connection before anything is read."""
        super().connection_made(transport)
        if isinstance(peer := self.session.peer, tuple):
            self.client, self.port = str(peer[0]), str(peer[1])
        self.trusted = self.server.trusts(self.client)
        self.secured = transport.get_extra_info("ssl_object") is not None
        if self not in self.server.connections:
            self._refused_because = self.server.add(self, self.client)

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the session; the delivery of a complete mail goes on."""
        self.left = True
        super().connection_lost(error)
        self._client_connected_cb = None
        self.server.discard(self)
        self.idle.set()

    def eof_received(self) -> bool | None:
        """The client has half-closed the connection, or is gone: what it has sent is still answered."""
        self.left = True
        return asyncio.StreamReaderProtocol.eof_received(self)

    def close_when_idle(self) -> None:
        """Close now, or as soon as the mail in flight has been answered."""
        self.ending = True
        if self.idle.is_set():
            self._say_last("421 4.3.2 The relay is shutting down")

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def _timeout_cb(self) -> None:
        self._fires = NEVER
        if self._until > self.loop.time():
            self._wake_at(self._until)
            return
        log.info("client_too_slow", client=self.client)
        self._say_last("421 4.4.2 Timeout, closing the connection")

    def _say_last(self, reply: str) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read
            return
        self.transport.write(reply.encode() + b"\r\n")
        self.transport.close()

    async def begin_tls(self, context: ssl.SSLContext) -> None:
        """Discards buffered plaintext and does the handshake. Raises OSError; then nothing more is read."""
        if injected := len(self._reader._buffer):  # type: ignore[attr-defined]
            log.warning("plaintext_before_tls_discarded", client=self.client, octets=injected)
            self._reader._buffer.clear()  # type: ignore[attr-defined]
        self.ending = True
        await self._writer.start_tls(context, ssl_handshake_timeout=HANDSHAKE_S)
        self.ending = False
        # Reader and aiosmtpd still have the raw transport.
        self.transport = cast(asyncio.Transport, self._writer.transport)
        self.secured = True
        self._reader._transport = self.transport  # type: ignore[attr-defined]
        peer, self.session = self.session.peer, self._create_session()
        self.session.peer = peer
        self.start_timer()

    # Reading.

    async def read_line(self) -> bytes | None:
        """The next line with its line end; None for a line longer than the buffer."""
        whole = True
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(error.consumed)
                whole = False
            else:
                return line if whole else None

    async def read_piece(self) -> bytes:
        """All data received so far. Raises ConnectionResetError at the end of the stream."""
        piece = await self._reader.read(PIECE_OCTETS)
        if not piece:
            raise ConnectionResetError("the client left in the middle of the content")
        return piece

    def put_back(self, octets: bytes) -> None:
        """Puts octets back, to be read next."""
        self._reader._buffer[:0] = octets  # type: ignore[attr-defined]  # feed_data raises after EOF

    def drop_what_did_not_wait(self) -> None:
        """Ends the session if content was sent before DATA was refused: it must not be read as commands."""
        if self._reader._buffer:  # type: ignore[attr-defined]
            self.ending = True

    # Writing.

    async def push(self, status: str | bytes) -> None:
        """Sends a reply, in one write; returns when there is room for more. Raises ConnectionError."""
        transport = self._writer.transport
        transport.write((status.encode() if isinstance(status, str) else status) + b"\r\n")
        if transport.is_closing() or transport.get_write_buffer_size():
            await self._writer.drain()

    # Time.

    def start_timer(self, duration: float | None = None) -> None:
        """Starts the client's timeout, of `duration` seconds or the default."""
        self._until = self.loop.time() + (duration or self.settings.timeout)
        if self._until < self._fires:
            self._wake_at(self._until)

    _reset_timeout = start_timer

    def stop_timer(self) -> None:
        """Stops the client's timeout: it is our turn."""
        self._until = NEVER

    def _wake_at(self, when: float) -> None:
        """Sets the connection's only timer; if it fires early, `_timeout_cb` sets it again."""
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        if when < NEVER:
            self._timeout_handle, self._fires = self.loop.call_at(when, self._timeout_cb), when

    # Commands.

    async def _handle_client(self) -> None:
        """Serves the connection; started by aiosmtpd."""
        try:
            if self._refused_because:
                log.warning("connection_refused", client=self.client, cause=self._refused_because)
                await self.push("421 4.7.0 Too many connections, try again later")
                return
            await self.push(f"220 {self.hostname} {'LMTP' if self.protocol == 'LMTP' else 'ESMTP'} QuMail Relay")
            while self.transport is not None and not self.ending:
                await self._let_others_go_on()
                await self._one_command()
        except (ConnectionError, asyncio.IncompleteReadError):
            log.debug("client_left", client=self.client)
        finally:
            self._writer.close()
            del self._writer

    async def _let_others_go_on(self) -> None:
        """Yields to other clients if this one has pipelined many commands; such clients take turns."""
        if b"\n" not in self._reader._buffer:  # type: ignore[attr-defined]
            self.begin_turn()
            return
        self._at_once += 1
        if self._at_once > AT_ONCE or time.monotonic() - self._turn_began > TURN_S:
            await self.server.lane.turn()
            self._at_once, self._turn_began = AT_ONCE - IN_A_TURN, time.monotonic()

    def begin_turn(self) -> None:
        """Begins a new turn with the next command: other clients have just had theirs."""
        self._at_once, self._turn_began = 0, NEVER

    async def _keep_pace(self, command: str) -> None:
        """Slows down a client that sends many commands without a mail."""
        now = self.loop.time()
        come_back = (now - self._spare_at) * SPARE_A_SECOND
        self.spare, self._spare_at = min(SPARE_COMMANDS, self.spare + come_back) - 1, now
        least = -self.settings.max_recipients if command in ("RCPT", "DATA") else 0
        if self.spare < least:
            self.stop_timer()
            await asyncio.sleep((least - self.spare) / SPARE_A_SECOND)

    async def _one_command(self) -> None:
        line = await self.read_line()
        if self._turn_began == NEVER:
            self._turn_began = time.monotonic()
        if line is None or len(line) > COMMAND_OCTETS:
            await self.wrong("500 5.5.2 Line too long")
            return
        if not line.endswith(b"\r\n"):
            # A client that splits lines differently must not smuggle a command past us.
            await self.push("500 5.5.2 A line ends in <LF> without <CR>, closing the connection")
            self.ending = True
            return
        if _CONTROL.search(line, 0, len(line) - 2):
            await self.wrong("500 5.5.2 A command ends in <CR><LF> and has no other control characters")
            return
        verb, _, rest = line.rstrip().partition(b" ")
        command = verb.decode("ascii", "replace").upper()
        if command not in self.commands:
            await self._unknown(line, command)
            return
        await self._keep_pace(command)
        self.start_timer()
        try:
            await getattr(self, f"smtp_{command}")(rest.strip().decode("utf-8", "surrogateescape") or None)
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the cause is not disclosed to the client
            await self.push(unforeseen(error).reply)

    async def _unknown(self, line: bytes, command: str) -> None:
        if _NOT_MAIL.match(line):
            log.warning("not_a_mail_client", client=self.client)
            await self.push("421 4.7.0 This is a mail server")
            self.ending = True
        elif command in _NOT_DONE_HERE:
            await self.wrong("502 5.5.1 Command not implemented")
        else:
            await self.wrong("500 5.5.1 Command not known")

    async def wrong(self, reply: str) -> None:
        """Replies to a bad command; after MAX_ERRORS of them the connection is closed."""
        self._errors += 1
        if self._errors < MAX_ERRORS:
            await self.push(reply)
            return
        log.warning("too_many_errors", client=self.client, last=reply)
        await self.push("421 4.7.0 Too many errors, closing the connection")
        self.ending = True


def silence_log() -> None:
    """Restricts aiosmtpd's log to errors."""
    logging.getLogger("mail.log").setLevel(logging.ERROR)


def unforeseen(error: Exception) -> TryLater:
    """Logs an unexpected error, which holds the mail."""
    log.error("smtp_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
    return TryLater("unforeseen")
