"""One connection and its dialogue: greets, reads commands one by one, lets go who is too slow or makes no sense.
Standard: RFC 5321 (3.8, 4.1.1, 4.5.3.2), RFC 2034 (enhanced status codes), RFC 2920 (pipelining).
"""

from __future__ import annotations

import asyncio
import collections
import re
from typing import Any, ClassVar

import structlog
from aiosmtpd.smtp import SMTP, Session, TLSSetupException

from relay.aio import Turns
from relay.entry.service import Service
from relay.errors import TryLater

log = structlog.get_logger(__name__)

BUFFER_OCTETS = 64 * 1024
COMMAND_OCTETS = 2048
MAX_ERRORS = 20
"""So many commands that make no sense, and the connection ends."""
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NOT_DONE_HERE = frozenset(("AUTH", "BDAT", "ETRN", "EXPN", "SAML", "SEND", "SOML", "STARTTLS", "TURN", "XCLIENT"))
_NOT_MAIL = re.compile(rb"(?:CONNECT|DELETE|GET|HEAD|OPTIONS|PATCH|POST|PUT) |[^\s:]+:", re.IGNORECASE)
"""What a web browser can be made to say to a mail server."""


class _NoHandler:
    """aiosmtpd looks through its handler for each connection: there is nothing to find."""

    def __dir__(self) -> list[str]:
        return []


_NO_HANDLER = _NoHandler()


class Dialogue(SMTP):
    """One connection, without what is about mail: `Conversation` adds that.

    aiosmtpd's part is the stream, its timer and its life; the commands and their order are here. A subclass says which
    `commands` it knows, each a method `smtp_VERB`, and which of them is the greeting.
    """

    commands: ClassVar[tuple[str, ...]] = ("HELO", "EHLO", "NOOP", "VRFY", "HELP", "QUIT")
    greets_with: ClassVar[str] = "EHLO"
    protocol: ClassVar[str] = "SMTP"

    line_length_limit = BUFFER_OCTETS  # aiosmtpd makes it the stream's buffer limit
    session: Session
    transport: asyncio.Transport | None

    def __init__(self, service: Service, **options: Any) -> None:
        """`options` are those of aiosmtpd's SMTP."""
        self.command_size_limits = collections.defaultdict(lambda: COMMAND_OCTETS)
        super().__init__(
            _NO_HANDLER,
            hostname=service.hostname,
            ident="QuMail Relay",
            data_size_limit=service.settings.max_message_size,
            enable_SMTPUTF8=True,
            timeout=service.settings.timeout,
            loop=asyncio.get_running_loop(),
            **options,
        )
        self.service = service
        self.idle = asyncio.Event()
        self.idle.set()
        self._errors = 0
        self._ending = False
        self.left = False

    def __dir__(self) -> list[str]:
        """The commands we know: aiosmtpd looks for them here anew for each connection, which is slow."""
        return [f"smtp_{verb}" for verb in self.commands]

    def extensions(self) -> list[str]:
        """The lines of the answer to EHLO, but for the first (RFC 5321, 4.1.1.1)."""
        return []

    # The connection.

    @property
    def client(self) -> tuple[str, str]:
        """IP address and port of who has connected, "" and "" where that cannot be known any more."""
        peer = self.session.peer
        return (str(peer[0]), str(peer[1])) if isinstance(peer, tuple) else ("", "")

    @property
    def trusted(self) -> bool:
        """Whether the client belongs to the networks that relay.toml trusts."""
        return self.service.connections.trusts(self.client[0])

    def connection_made(self, transport: Any) -> None:
        """Counts the connection before its first octet is read."""
        super().connection_made(transport)
        self.service.connections.add(self, self.client[0])

    def connection_lost(self, error: Exception | None) -> None:
        """The delivery of a mail that is complete goes on."""
        self.left = True
        super().connection_lost(error)
        self.service.connections.discard(self, self.client[0])
        self.idle.set()

    def eof_received(self) -> bool | None:
        """The client sends no more, and perhaps hears no more: what it has sent is still answered."""
        self.left = True
        return asyncio.StreamReaderProtocol.eof_received(self)

    def close_when_idle(self) -> None:
        """Close now, or as soon as the mail in flight has been answered."""
        self._ending = True
        if self.idle.is_set():
            self._say_last("421 4.3.2 The relay is shutting down")

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def _timeout_cb(self) -> None:
        log.info("client_too_slow", client=self.client[0])
        self._say_last("421 4.4.2 Timeout, closing the connection")

    def _say_last(self, reply: str) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read what we say
            return
        self.transport.write(reply.encode() + b"\r\n")
        self.transport.close()

    # The dialogue.

    async def _handle_client(self) -> None:
        """What aiosmtpd starts for each connection."""
        try:
            if reason := self.service.connections.reason_to_refuse(self.client[0]):
                log.warning("connection_refused", client=self.client[0], cause=reason)
                await self.push("421 4.7.0 Too many connections, try again later")
                return
            await self.push(f"220 {self.hostname} {self._greeting} QuMail Relay")
            turns = Turns()
            while self.transport is not None and not self._ending:
                await self._one_command()
                await turns.give()
        except (ConnectionError, asyncio.IncompleteReadError):
            log.debug("client_left", client=self.client[0])
        finally:
            self._writer.close()

    @property
    def _greeting(self) -> str:
        return "LMTP" if self.protocol == "LMTP" else "ESMTP"

    async def _one_command(self) -> None:
        line = await self._line()
        if line is None or len(line) > COMMAND_OCTETS:
            await self.wrong("500 5.5.2 Line too long")
            return
        if not line.endswith(b"\r\n"):
            # Whoever counts lines otherwise than we do must not get another command past us.
            await self.push("500 5.5.2 A line ends in <LF> without <CR>, closing the connection")
            self._ending = True
            return
        if _CONTROL.search(line, 0, len(line) - 2):
            await self.wrong("500 5.5.2 A command ends in <CR><LF> and has no other control characters")
            return
        verb, _, rest = line.rstrip().partition(b" ")
        command = verb.decode("ascii", "replace").upper()
        method = self._smtp_methods.get(command)
        if method is None:
            await self._unknown(line, command)
            return
        self._reset_timeout()
        try:
            await method(rest.strip().decode("utf-8", "surrogateescape") or None)
        except ConnectionError:
            raise
        except TLSSetupException:
            self._ending = True
        except Exception as error:  # noqa: BLE001 - the client hears nothing of the cause
            await self.push(self._unforeseen(error).reply)

    async def _line(self) -> bytes | None:
        """The next line with its end, None for one that is longer than the buffer."""
        whole = True
        while True:
            try:
                line = await self._reader.readuntil(b"\n")
            except asyncio.LimitOverrunError as error:
                await self._reader.readexactly(error.consumed)
                whole = False
            else:
                return line if whole else None

    async def _unknown(self, line: bytes, command: str) -> None:
        if _NOT_MAIL.match(line):
            log.warning("not_a_mail_client", client=self.client[0])
            await self.push("421 4.7.0 This is a mail server")
            self._ending = True
        elif command in _NOT_DONE_HERE:
            await self.wrong("502 5.5.1 Command not implemented")
        else:
            await self.wrong("500 5.5.1 Command not known")

    async def wrong(self, reply: str) -> None:
        """Answers a command that makes no sense; too many of them end the connection."""
        self._errors += 1
        if self._errors < MAX_ERRORS:
            await self.push(reply)
            return
        log.warning("too_many_errors", client=self.client[0], last=reply)
        await self.push("421 4.7.0 Too many errors, closing the connection")
        self._ending = True

    def _unforeseen(self, error: Exception) -> TryLater:
        """What we did not foresee holds the mail."""
        log.error("smtp_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
        return TryLater("unforeseen")

    # Commands.

    async def smtp_EHLO(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.1; in the middle of a transaction it is RSET as well (4.1.4)."""
        if await self._greeted(arg, extended=True):
            lines = [self.hostname, *self.extensions()]
            await self.push("".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}")

    async def smtp_HELO(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.1."""
        if await self._greeted(arg, extended=False):
            await self.push(f"250 {self.hostname}")

    async def _greeted(self, arg: str | None, *, extended: bool) -> bool:
        if not arg or not arg.isascii():
            await self.wrong("501 5.5.4 Syntax: EHLO hostname")
            return False
        self._start_over()
        self.session.extended_smtp = extended
        self.session.host_name = arg
        return True

    async def smtp_NOOP(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.9."""
        await self.push("250 2.0.0 Ok")

    async def smtp_VRFY(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.6 and 7.3: we tell nobody who can be reached here."""
        if arg:
            await self.push("252 2.0.0 Send some mail, and see")
        else:
            await self.wrong("501 5.5.4 Syntax: VRFY address")

    async def smtp_HELP(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.8."""
        await self.push("214 2.0.0 See RFC 5321")

    async def smtp_QUIT(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.10."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: QUIT")
            return
        self._ending = True
        await self.push("221 2.0.0 Bye")

    def _start_over(self) -> None:
        """No transaction."""
        self._set_rset_state()  # type: ignore[no-untyped-call]
