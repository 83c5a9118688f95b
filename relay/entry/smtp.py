"""The SMTP entry: an aiosmtpd server that reads the content in large pieces and passes parameters on.
Standard: RFC 5321 (only CRLF.CRLF ends data), RFC 2920 (pipelining), RFC 2034 (enhanced status codes).
"""

from __future__ import annotations

import asyncio
import collections
import logging
import secrets
from datetime import UTC, datetime
from typing import Any

import structlog
from aiosmtpd.smtp import SMTP, Envelope, Session, syntax

from relay import mail as mails
from relay import mime
from relay.config import Address, Direction
from relay.entry import Recipe
from relay.entry.envelope import parse_mail, parse_rcpt, printable
from relay.errors import ConfigError, MessageTooBig, RelayError, TryLater, for_all

log = structlog.get_logger(__name__)

BUFFER_OCTETS = 64 * 1024
PIECE_OCTETS = 1024 * 1024
"""One read takes all that the stream has buffered, so that what follows the content can be put back."""
COMMAND_OCTETS = 2048
MAX_RECIPIENTS = 1000
END_OF_DATA = b"\r\n.\r\n"


class SMTPEntry:
    """One listening address whose mails all go to one recipe."""

    def __init__(self, name: str, direction: Direction, hostname: str, recipe: Recipe) -> None:
        """`name` is the table in relay.toml, for messages; `hostname` is what we say in the greeting."""
        self.name = name
        self._direction = direction
        self._hostname = hostname
        self._recipe = recipe
        self._server: asyncio.Server | None = None
        self._open: set[_Conversation] = set()

    async def start(self) -> Address:
        """Listens; gives the real address (port 0 became a free one). Raises ConfigError."""
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd logs addresses and content
        host, port = self._direction.listen
        try:
            self._server = await asyncio.get_running_loop().create_server(
                lambda: _Conversation(self._recipe, self._direction, self._hostname, self._open),
                host,
                port,
                backlog=512,
            )
        except OSError as error:
            raise ConfigError(f"{self.name}.listen: cannot listen on {host}:{port}: {error.strerror}") from error
        real = self._server.sockets[0].getsockname()
        return Address(real[0], real[1])

    async def stop(self, grace: float = 30.0) -> None:
        """Takes no new connection, lets mails in flight end within `grace` seconds, closes what is left."""
        if self._server is None:
            return
        self._server.close()
        busy = [asyncio.create_task(each.idle.wait()) for each in self._open if not each.idle.is_set()]
        for each in list(self._open):
            each.close_when_idle()
        if busy:
            _, late = await asyncio.wait(busy, timeout=grace)
            for task in late:
                task.cancel()
        for each in list(self._open):
            each.abort()
        await self._server.wait_closed()


_COMMANDS = ("HELO", "EHLO", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY", "HELP", "QUIT")


class _Transaction(Envelope):
    """What MAIL and RCPT have said so far."""

    def __init__(self) -> None:
        super().__init__()
        self.started: mails.Envelope | None = None
        self.recipients: list[mails.Recipient] = []


class _Conversation(SMTP):
    """One SMTP connection."""

    line_length_limit = BUFFER_OCTETS  # aiosmtpd makes it the stream's buffer limit
    command_size_limit = COMMAND_OCTETS
    envelope: _Transaction
    session: Session
    transport: asyncio.WriteTransport | None

    def __init__(self, recipe: Recipe, direction: Direction, hostname: str, conversations: set[_Conversation]) -> None:
        self.command_size_limits = collections.defaultdict(lambda: COMMAND_OCTETS)
        super().__init__(
            None,
            hostname=hostname,
            ident="QuMail Relay",
            data_size_limit=direction.max_message_size,
            enable_SMTPUTF8=True,
            timeout=direction.timeout,
            loop=asyncio.get_running_loop(),
        )
        self._recipe = recipe
        self._limit = direction.max_message_size
        self._conversations = conversations
        self._closing = False
        self.idle = asyncio.Event()
        self.idle.set()

    def __dir__(self) -> list[str]:
        """The commands we know: aiosmtpd looks for them here anew for each connection, which is slow."""
        return [f"smtp_{verb}" for verb in _COMMANDS]

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._conversations.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._conversations.discard(self)
        self.idle.set()

    def close_when_idle(self) -> None:
        """Close now, or as soon as the mail in flight has been answered."""
        self._closing = True
        if self.idle.is_set() and self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Close at once, whatever is unsent."""
        if self.transport is not None:
            self.transport.abort()

    def _create_envelope(self) -> _Transaction:
        return _Transaction()

    async def handle_exception(self, error: Exception) -> str:
        """What we did not foresee holds the mail; the client hears nothing of the cause."""
        log.error("smtp_failed", cause=f"{type(error).__name__}: {error}", exc_info=error)
        return TryLater().reply

    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str) -> None:
        if not hostname:
            await self.push("501 5.5.4 Syntax: EHLO hostname")
            return
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.session.extended_smtp = True
        self.session.host_name = hostname
        extensions = f"PIPELINING|SIZE {self._limit}|8BITMIME|SMTPUTF8|ENHANCEDSTATUSCODES|DSN".split("|")
        lines = [self.hostname, *extensions]
        await self.push("".join(f"250-{line}\r\n" for line in lines[:-1]) + f"250 {lines[-1]}")

    @syntax("MAIL FROM:<address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        if await self.check_helo_needed():
            return
        if self.envelope.started is not None:
            await self.push("503 5.5.1 Nested MAIL command")
            return
        try:
            self.envelope.started = parse_mail(arg, self._limit)
        except RelayError as error:
            await self.push(error.reply)
            return
        await self.push("250 2.1.0 Ok")

    @syntax("RCPT TO:<address>", extended=" [SP <rcpt-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        if await self.check_helo_needed():
            return
        started = self.envelope.started
        if started is None:
            await self.push("503 5.5.1 Need MAIL command")
            return
        if len(self.envelope.recipients) >= MAX_RECIPIENTS:
            await self.push("452 4.5.3 Too many recipients")
            return
        try:
            recipient = parse_rcpt(arg, utf8=started.smtputf8)
            self._recipe.check_recipient(started.sender, recipient.address)
        except RelayError as error:
            log.warning("recipient_not_accepted", reply=error.reply, cause=str(error))
            await self.push(error.reply)
            return
        self.envelope.recipients.append(recipient)
        await self.push("250 2.1.5 Ok")

    @syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        if await self.check_helo_needed():
            return
        if not self.envelope.recipients:
            await self.push("503 5.5.1 Need RCPT command")
            return
        if arg:
            await self.push("501 5.5.4 Syntax: DATA")
            return
        await self.push("354 End data with <CR><LF>.<CR><LF>")
        self.idle.clear()
        try:
            await self.push(await self._answer(self.envelope))
        finally:
            self._set_post_data_state()  # type: ignore[no-untyped-call]
            self.idle.set()
        if self._closing and self.transport is not None:
            self.transport.close()

    async def _answer(self, envelope: _Transaction) -> str:
        """Receives the content, hands the mail to the recipe, and gives the reply."""
        assert envelope.started is not None  # noqa: S101 - DATA needs RCPT, RCPT needs MAIL
        mail_id = secrets.token_hex(6)
        with structlog.contextvars.bound_contextvars(mail=mail_id):
            try:
                content = await self._receive()
                trace = self._trace(mail_id, utf8=envelope.started.smtputf8)
                mail = mails.Mail(envelope.started, content, id=mail_id, trace=trace)
                outcomes = await self._recipe.process(mail.to(envelope.recipients))
                if failure := for_all(outcomes):
                    raise failure  # noqa: TRY301
            except RelayError as error:
                log.warning("mail_not_accepted", reply=error.reply, kind=type(error).__name__, cause=str(error))
                return error.reply
            except ConnectionResetError:
                raise
            except Exception as error:  # noqa: BLE001 - unknown errors hold mail
                return await self.handle_exception(error)
        return f"250 2.0.0 Ok: {mail_id}"

    async def _receive(self) -> bytes:
        """The content up to CRLF.CRLF, dots unstuffed. Raises MessageTooBig, after reading all of it."""
        data = bytearray(b"\r\n")  # so that a dot in the first line stands at a line start too
        too_big = False
        while True:
            piece = await self._reader.read(PIECE_OCTETS)
            if not piece:
                raise ConnectionResetError("the client left in the middle of the content")
            self._reset_timeout()
            searched = max(0, len(data) - len(END_OF_DATA))
            data += piece
            # One octet is found much faster than five, and most pieces of an attachment have no dot at all.
            dot = data.find(b".", searched)
            end = data.find(END_OF_DATA, max(searched, dot - 2)) if dot >= 0 else -1
            if end >= 0:
                break
            if len(data) > self._limit + PIECE_OCTETS:
                too_big = True
                del data[: -len(END_OF_DATA)]
        if pipelined := bytes(data[end + len(END_OF_DATA) :]):
            self._reader.feed_data(pipelined)
        if too_big or end > self._limit + 2:
            raise MessageTooBig(f"the content is over the limit of {self._limit} octets")
        return unstuffed(data, end + 2)

    def _trace(self, mail_id: str, *, utf8: bool) -> bytes:
        peer = self.session.peer
        said = printable(self.session.host_name or "unknown")
        return mime.received_field(
            client=f"{said} ([{peer[0] if isinstance(peer, tuple) else 'local'}])",
            hostname=self.hostname,
            protocol="UTF8SMTP" if utf8 else "ESMTP" if self.session.extended_smtp else "SMTP",
            mail_id=mail_id,
            when=datetime.now(UTC),
        )


def unstuffed(data: bytearray, end: int) -> bytes:
    """The content up to `end` without the CRLF put before it and the dots that DATA doubled."""
    last_dot = data.rfind(b".", 0, end)
    if data.find(b"\r\n.", 0, last_dot + 1) < 0:
        return bytes(memoryview(data)[2:end])
    head = bytes(memoryview(data)[: last_dot + 1]).replace(b"\r\n.", b"\r\n")[2:]
    return b"".join((head, memoryview(data)[last_dot + 1 : end]))
