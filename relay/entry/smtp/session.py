"""One SMTP or LMTP session: its commands, from MAIL to the reply to the content.
Standard: RFC 5321 (3.3, 4.1.1, 6.1), RFC 2033 (LMTP), RFC 3848 (names in Received), Postfix's XFORWARD_README.

Content ends at CRLF.CRLF and nowhere else (RFC 5321, 4.1.1.4 and 4.5.2). Content that is too large is read to its end
before it is refused (RFC 1870, 6.3).
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

import structlog

from relay.entry import Recipe
from relay.entry.budget import STEP_OCTETS, Share, room_for
from relay.entry.listening import SocketServer
from relay.entry.smtp.aiosmtpd_base import SPARE_COMMANDS, CommandStream, unforeseen
from relay.entry.smtp.xforward import XFORWARD, parse_xforward
from relay.entry.transaction import BadParameter, Transaction, path_of, printable
from relay.errors import MessageTooBig, RelayError, TryLater
from relay.formats import mime
from relay.mail import UNKNOWN, Mail, Origin, Outcomes, for_all
from relay.runtime.aio import off_loop

log = structlog.get_logger(__name__)

COMMANDS = ("MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY", "HELP", "QUIT", "XFORWARD")
EXTENSIONS = ("8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")
END_OF_DATA = b"\r\n.\r\n"
LEAST_RATE = 1024
"""Minimum average rate of content, in octets per second, after one idle timeout."""
FASTER = 16
"""Speed of joining pieces, relative to other work on as many octets."""


class SMTPSession(CommandStream):
    """One SMTP connection, whose mails go to one recipe.

    A subclass may have other `commands` and `extensions`, and override `check_client_may_mail` and `origin`.
    `transaction` has what MAIL and RCPT have set.
    """

    commands: ClassVar[tuple[str, ...]] = ("HELO", "EHLO", *COMMANDS)
    greets_with: ClassVar[str] = "EHLO"
    each_answered: ClassVar[bool] = False
    ignored_parameters: ClassVar[frozenset[str]] = frozenset()
    """Parameters of MAIL that are accepted and ignored."""

    def __init__(self, server: SocketServer, hostname: str, recipe: Recipe) -> None:
        super().__init__(server, hostname)
        self.recipe = recipe
        self.transaction = Transaction(server, recipe)
        self.forwarded = UNKNOWN

    def start_over(self) -> None:
        """Resets the transaction and what XFORWARD has set."""
        self.transaction.over(self.origin)
        self.transaction = Transaction(self.server, self.recipe)
        self.forwarded = UNKNOWN

    # What a subclass may override.

    def extensions(self) -> list[str]:
        """The keywords in the reply to EHLO (RFC 5321, 4.1.1.1)."""
        keywords = ["PIPELINING", f"SIZE {self.settings.max_message_size}", *EXTENSIONS]
        return [*keywords, XFORWARD] if self.trusted else keywords

    async def check_client_may_mail(self, sender: str) -> None:
        """Raises the RelayError that becomes the reply to MAIL."""

    def origin(self) -> Origin:
        """The origin of the mail: as given by a trusted mail server (XFORWARD), else the connected client."""
        if self.forwarded != UNKNOWN:
            return self.forwarded
        proto = "ESMTP" if self.session.extended_smtp else "SMTP"
        return Origin(addr=self.client, port=self.port, proto=proto, helo=self.session.host_name or "")

    def connection_lost(self, error: Exception | None) -> None:
        """Ends a transaction without content."""
        super().connection_lost(error)
        self.transaction.over(self.origin)

    # Commands outside of a mail transaction.

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
        self.start_over()
        self.session.extended_smtp = extended
        self.session.host_name = arg
        return True

    async def smtp_NOOP(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.9."""
        await self.push("250 2.0.0 Ok")

    async def smtp_VRFY(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.6 and 7.3: valid addresses are not disclosed."""
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
        self.ending = True
        self.transaction.over(self.origin)
        await self.push("221 2.0.0 Bye")

    async def smtp_RSET(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.5."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: RSET")
            return
        self.start_over()
        await self.push("250 2.0.0 Ok")

    # Commands of a mail transaction.

    async def smtp_XFORWARD(self, arg: str | None) -> None:
        """The origin, given by a trusted mail server; applies to the next transaction."""
        if not self.trusted:
            await self.wrong("550 5.7.1 You are not trusted with this command")
        elif self.transaction.begun is not None:
            await self.wrong("503 5.5.1 Not in the middle of a transaction")
        else:
            try:
                self.forwarded = parse_xforward(arg, self.forwarded)
            except BadParameter as error:
                await self.wrong(error.reply)
                return
            await self.push("250 2.0.0 Ok")

    async def smtp_MAIL(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.2."""
        if not self.session.host_name:
            await self.wrong(f"503 5.5.1 Send {self.greets_with} first")
            return
        if self.transaction.begun is not None:
            await self.wrong("503 5.5.1 Nested MAIL command")
            return
        transaction = Transaction(self.server, self.recipe)
        try:
            with self.server.counted():
                path, parameters = path_of("FROM:", arg)
            sender = transaction.mail(path, parameters, self.ignored_parameters)
            with self.server.counted():
                await self.check_client_may_mail(sender)
        except BadParameter as error:
            await self.wrong(error.reply)
        except RelayError as error:
            with self.named_in_log(transaction.id):
                log.warning("sender_not_accepted", reply=error.reply, cause=str(error))
            await self.push(error.reply)
        else:
            # Not earlier: after an error, recipients would be accepted for a sender that was not checked.
            self.transaction = transaction
            await self.push("250 2.1.0 Ok")

    async def smtp_RCPT(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.3."""
        if self.transaction.begun is None:
            await self.wrong("503 5.5.1 Need MAIL command")
            return
        with self.named_in_log():
            try:
                with self.server.counted():
                    path, parameters = path_of("TO:", arg)
                self.transaction.rcpt(path, parameters)
            except RelayError as error:
                await self.refuse_recipient(error)
                return
        await self.push("250 2.1.5 Ok")

    async def refuse_recipient(self, error: RelayError) -> None:
        """Sends the reply and logs the cause; to be called within `named_in_log`."""
        log.warning("recipient_not_accepted", sender=self.transaction.sender, reply=error.reply, cause=str(error))
        await (self.wrong if isinstance(error, BadParameter) else self.push)(error.reply)

    def named_in_log(self, mail_id: str = "") -> AbstractContextManager[None]:
        """Context manager: log lines within it name this mail, or that of `transaction`, and its origin."""
        said, connected = self.forwarded, self.client
        client = said.addr or said.name or connected
        words = {"client": client, "via": connected if connected != client else "", "queue_id": said.ident}
        named = {name: value for name, value in words.items() if value}
        return structlog.contextvars.bound_contextvars(mail=mail_id or self.transaction.id, **named)

    async def smtp_DATA(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.4."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: DATA")
        elif self.transaction.begun is None:
            await self.wrong("503 5.5.1 Need MAIL command")
        elif not self.transaction.recipients:
            await self.wrong("503 5.5.1 Need RCPT command")
        else:
            self.idle.clear()
            try:
                await self._take_mail(self.transaction)
            finally:
                self.start_over()
                self.begin_turn()
                self.idle.set()
            return
        self.drop_what_did_not_wait()

    # The mail.

    async def _take_mail(self, transaction: Transaction) -> None:
        """Receives the content and has the mail delivered, in a task that outlives this connection."""
        delivery = None
        share = Share(self.server.budget)
        with self.named_in_log():
            try:
                if not await self._has_room(transaction, share):
                    return
                await self.push("354 End data with <CR><LF>.<CR><LF>")
                try:
                    content = await receive(self, self.settings.max_message_size, share)
                    trace = self._received_field(transaction)
                except ConnectionError:
                    raise
                except Exception as error:  # noqa: BLE001 - unknown errors hold mail
                    failure = error if isinstance(error, RelayError) else unforeseen(error)
                    self.server.turned_away(failure)
                    await self._answer(transaction.id, (failure,) * len(transaction.recipients))
                    return
                self.spare = float(SPARE_COMMANDS)  # it has brought a mail
                origin = self.origin()
                if self.trusted and not origin.ident and (queue_id := mime.queue_id(content)):
                    # For local mail (sendmail, cron) Postfix sends no IDENT, but its Received field has the queue ID.
                    origin = self.forwarded = replace(origin, ident=queue_id)
                mail = transaction.complete(
                    content, origin=origin, each_answered=self.each_answered, trace=trace, absent=self.absent
                )
                self.stop_timer()
                delivery = self.server.deliver(self.recipe, mail, share, partial(self._send_outcomes, mail))
                await asyncio.shield(delivery)
            finally:
                if delivery is None:
                    share.reduce()

    async def _has_room(self, transaction: Transaction, share: Share) -> bool:
        """Holds memory for the content; without any to spare, replies so and returns False."""
        try:
            with self.server.counted():
                await share.hold(room_for(transaction.size))
        except RelayError as error:
            log.warning("mail_not_accepted", reply=error.reply, cause=str(error))
            await self.push(error.reply)
            self.drop_what_did_not_wait()
            return False
        return True

    async def _send_outcomes(self, mail: Mail, outcomes: Outcomes) -> bool:
        """Sends the reply; returns whether the client got it. Raises ConnectionError if it is gone.

        A half-closed client may or may not get it. It counts as gone only if its retry can be distinguished from a
        second mail, which must not be lost.
        """
        if self.transport is not None:
            self.start_timer()  # also for a client that does not read the reply
        absent = self.absent()  # before the reply: a client that has got it may disconnect
        await self._answer(mail.id, outcomes)
        if self.gone or math.isinf(absent):
            return False  # a client that leaves during the write raises nothing
        return not ((absent or self.left) and mime.is_like_no_other(mail.message))

    async def _answer(self, mail_id: str, outcomes: Outcomes) -> None:
        """Sends and logs the outcomes; nothing is sent to a client that is gone."""
        if failure := for_all(outcomes):
            kind = type(failure).__name__
            log.warning("mail_not_accepted", reply=failure.reply, kind=kind, cause=str(failure))
        if not self.gone:
            await self.push(self.reply(mail_id, outcomes, failure))

    def reply(self, mail_id: str, outcomes: Outcomes, failure: RelayError | None) -> str:
        """The reply to the content (RFC 5321, 4.2.5), one for all recipients."""
        if failure is None:
            return f"250 2.0.0 Ok: {mail_id}"
        accepted = sum(outcome is None for outcome in outcomes)
        final = accepted and not isinstance(failure, TryLater)
        return failure.reply + (f" ({accepted} of {len(outcomes)} recipients have it)" if final else "")

    def _received_field(self, transaction: Transaction) -> bytes:
        """The Received field. It names the connected client, not that of XFORWARD; the log has both."""
        word = self.protocol if self.protocol == "LMTP" or not self.session.extended_smtp else "ESMTP"
        if transaction.begun is not None and transaction.begun.smtputf8:
            word = f"UTF8{self.protocol}"
        return mime.received_field(
            client=f"{printable(self.session.host_name or 'unknown')} ([{self.client or 'local'}])",
            hostname=self.hostname,
            protocol=word + ("S" if self.secured else "") + ("A" if self.session.authenticated else ""),
            mail_id=transaction.id,
            when=datetime.now(UTC),
        )


class LMTPSession(SMTPSession):
    """One LMTP connection: each recipient gets an individual reply."""

    commands: ClassVar = ("LHLO", *COMMANDS)
    greets_with: ClassVar = "LHLO"
    protocol: ClassVar = "LMTP"
    each_answered: ClassVar = True

    async def smtp_LHLO(self, arg: str | None) -> None:
        """RFC 2033, 4.1."""
        await self.smtp_EHLO(arg)

    def reply(self, mail_id: str, outcomes: Outcomes, failure: RelayError | None) -> str:
        """A reply for each accepted recipient, in order (RFC 2033, 4.2)."""
        return "\r\n".join(f"250 2.1.5 Ok: {mail_id}" if outcome is None else outcome.reply for outcome in outcomes)


async def receive(stream: CommandStream, limit: int, share: Share) -> bytes:
    """The content up to CRLF.CRLF, dots unstuffed; `share` then holds its memory.

    `limit` is in octets. Raises MessageTooBig or Overloaded, after all of it was read, and ConnectionResetError if the
    client leaves before the end.
    """
    content = _Content()
    failed: MessageTooBig | TryLater | None = None
    total, usual, begun = 0, stream.settings.timeout, stream.loop.time()
    stream.start_timer()
    while not content.ended:
        piece = await stream.read_piece()
        total += len(piece)
        left = begun + usual + total / LEAST_RATE - stream.loop.time()
        stream.start_timer(max(0.001, min(usual, left)))
        content.add(piece)
        if failed is None and not content.ended:
            failed = await _fault(content.size, limit, share)
        if failed is not None:
            share.reduce()
            content.drop()
    if content.behind:
        stream.put_back(content.behind)
    if failed is not None:
        raise failed
    mime.check_size(content.size, limit)
    room = room_for(content.size)
    await share.hold(room)
    share.reduce(room)
    return await off_loop(content.size // FASTER, content.octets)


async def _fault(size: int, limit: int, share: Share) -> MessageTooBig | TryLater | None:
    """The error if content of this size cannot be kept, else None."""
    if size > limit:
        return MessageTooBig(f"the content is over the limit of {limit} octets")
    if share.held < room_for(size):
        try:
            await share.hold(room_for(size + STEP_OCTETS))
        except TryLater as error:
            return error
    return None


@dataclass(slots=True)
class _Content:
    """The content received so far; `size` in octets without doubled dots, `behind` what followed its end."""

    ended: bool = False
    behind: bytes = b""
    size: int = 0
    _pieces: list[bytes] = field(default_factory=list)
    _held: bytes = b"\r\n"  # so that a dot in the first line stands at a line start too
    _extra: int = 2

    def add(self, piece: bytes) -> None:
        """Adds a piece; a suffix that may begin CRLF.CRLF is held back."""
        text = self._held + piece if self._held else piece
        # Searching for one octet is much faster than for five, and most pieces of an attachment have no dot.
        dotted = b"." in text
        end = text.find(END_OF_DATA) if dotted else -1
        if end >= 0:
            self.ended = True
            text, self._held, self.behind = text[: end + 2], b"", text[end + len(END_OF_DATA) :]
        else:
            text, self._held = _held_back(text)
        if dotted:
            text = text.replace(b"\r\n.", b"\r\n")  # what DATA has doubled
        if self._extra and text:
            text, self._extra = text[self._extra :], 0
        self.size += len(text)
        self._pieces.append(text)

    def drop(self) -> None:
        """Discards the content."""
        self._pieces.clear()

    def octets(self) -> bytes:
        """The whole content. Its memory is needed twice meanwhile, no more than for sealing."""
        content = b"".join(self._pieces)
        self._pieces.clear()
        return content


def _held_back(text: bytes) -> tuple[bytes, bytes]:
    """Splits off a suffix that may be the beginning of CRLF.CRLF."""
    mark = text.find(b"\r", max(0, len(text) - len(END_OF_DATA) + 1))
    while mark >= 0 and not END_OF_DATA.startswith(text[mark:]):
        mark = text.find(b"\r", mark + 1)
    return (text, b"") if mark < 0 else (text[:mark], text[mark:])
