"""One SMTP connection: collects the envelope and the content, has the mail delivered and tells what became of it.
Standard: RFC 5321 (3.3, 4.1.1, 6.1), RFC 3848 (names in Received), Postfix's XFORWARD_README.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import structlog
from aiosmtpd.smtp import Envelope

from relay import mail as mails
from relay import mime
from relay.budget import Share
from relay.entry.content import receive, room_for
from relay.entry.dialogue import Dialogue
from relay.entry.envelope import BadParameter, parse_mail, parse_rcpt, printable
from relay.entry.service import Service
from relay.entry.xforward import EXTENSION as XFORWARD
from relay.entry.xforward import parse_xforward
from relay.errors import RelayError, TryLater, for_all
from relay.mail import Mail, Origin, Outcomes

__all__ = ["COMMANDS", "Conversation", "Service"]

log = structlog.get_logger(__name__)

LEAST_RATE = 1024
"""Octets a second that content must come at, on the whole, beside the idle time that every client has."""
COMMANDS = ("MAIL", "RCPT", "DATA", "RSET", "NOOP", "VRFY", "HELP", "QUIT", "XFORWARD")


class Transaction(Envelope):
    """What MAIL and RCPT have said so far; `size` is what MAIL has declared, in octets, or 0."""

    def __init__(self) -> None:
        super().__init__()
        self.started: mails.Envelope | None = None
        self.size = 0
        self.recipients: list[mails.Recipient] = []


class Conversation(Dialogue):
    """One SMTP connection.

    A subclass may know other `commands` (each a method `smtp_VERB`), announce other `extensions`, and override
    `check_client_may_mail`, `completed` and `origin`.
    """

    commands: ClassVar[tuple[str, ...]] = ("HELO", "EHLO", *COMMANDS)
    each_answered: ClassVar[bool] = False
    ignored_parameters: ClassVar[frozenset[str]] = frozenset()
    """Parameters of MAIL that a subclass understands, or that mean nothing to it."""

    envelope: Transaction

    def __init__(self, service: Service, **options: Any) -> None:
        """`options` are those of aiosmtpd's SMTP."""
        super().__init__(service, **options)
        self.forwarded = Origin()

    # What a subclass may do otherwise.

    def extensions(self) -> list[str]:
        """The lines of the answer to EHLO, but for the first (RFC 5321, 4.1.1.1)."""
        size = f"SIZE {self.service.settings.max_message_size}"
        known = ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"]
        return [*known, XFORWARD] if self.trusted else known

    async def check_client_may_mail(self, sender: str) -> None:
        """Raises the RelayError that MAIL from this sender is to be answered with."""

    def completed(self, content: bytes) -> bytes:
        """The content as it goes into the mail."""
        return content

    def origin(self) -> Origin:
        """The client that the mail comes from: what a trusted mail server has said, or else who has connected."""
        if self.forwarded != Origin():
            return self.forwarded
        proto = "ESMTP" if self.session.extended_smtp else "SMTP"
        host, port = self.client
        return Origin(addr=host, port=port, proto=proto, helo=self.session.host_name or "")

    # Commands.

    async def smtp_XFORWARD(self, arg: str | None) -> None:
        """What a trusted mail server knows of its own client; it holds for the next transaction."""
        if not self.trusted:
            await self.wrong("550 5.7.1 You are not trusted with this command")
        elif self.envelope.started is not None:
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
        if self.envelope.started is not None:
            await self.wrong("503 5.5.1 Nested MAIL command")
            return
        try:
            started, size = parse_mail(arg, self.service.settings.max_message_size, self.ignored_parameters)
            await self.check_client_may_mail(started.sender)
        except BadParameter as error:
            await self.wrong(error.reply)
            return
        except RelayError as error:
            log.warning("sender_not_accepted", reply=error.reply, cause=str(error))
            await self.push(error.reply)
            return
        self.envelope.started, self.envelope.size = started, size
        await self.push("250 2.1.0 Ok")

    async def smtp_RCPT(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.3."""
        started = self.envelope.started
        if started is None:
            await self.wrong("503 5.5.1 Need MAIL command")
            return
        if len(self.envelope.recipients) >= self.service.settings.max_recipients:
            await self.push("452 4.5.3 Too many recipients")
            return
        try:
            recipient = parse_rcpt(arg, utf8=started.smtputf8)
            self.service.recipe.check_recipient(started.sender, recipient.address)
        except BadParameter as error:
            await self.wrong(error.reply)
            return
        except RelayError as error:
            log.warning("recipient_not_accepted", reply=error.reply, cause=str(error))
            await self.push(error.reply)
            return
        self.envelope.recipients.append(recipient)
        await self.push("250 2.1.5 Ok")

    async def smtp_DATA(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.4."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: DATA")
        elif self.envelope.started is None:
            await self.wrong("503 5.5.1 Need MAIL command")
        elif not self.envelope.recipients:
            await self.wrong("503 5.5.1 Need RCPT command")
        else:
            self.idle.clear()
            try:
                await self._take_mail(self.envelope.started, self.service.budget.share())
            finally:
                self._start_over()
                self.idle.set()
            return
        self._drop_what_did_not_wait()

    def _drop_what_did_not_wait(self) -> None:
        """DATA is not accepted: content that was sent without waiting for that is never read as commands."""
        if self._reader._buffer:  # type: ignore[attr-defined]
            self._ending = True

    async def smtp_RSET(self, arg: str | None) -> None:
        """RFC 5321, 4.1.1.5."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: RSET")
            return
        self._start_over()
        await self.push("250 2.0.0 Ok")

    def _create_envelope(self) -> Transaction:
        return Transaction()

    def _start_over(self) -> None:
        """No transaction, and nothing known that was said about one."""
        self._set_rset_state()  # type: ignore[no-untyped-call]
        self.forwarded = Origin()

    # The mail.

    async def _take_mail(self, envelope: mails.Envelope, share: Share) -> None:
        """Receives the content and has the mail delivered, in a task that outlives this connection."""
        origin, mail_id, delivery = self.origin(), secrets.token_hex(6), None
        with structlog.contextvars.bound_contextvars(mail=mail_id, **_log_words(origin, self.client[0])):
            try:
                if not await self._has_room(share):
                    return
                await self.push("354 End data with <CR><LF>.<CR><LF>")
                try:
                    content = self.completed(await self._content(share))
                    trace = self._trace(mail_id, utf8=envelope.smtputf8)
                except RelayError as error:
                    await self._not_taken(mail_id, error)
                    return
                except ConnectionError:
                    raise
                except Exception as error:  # noqa: BLE001 - unknown errors hold mail
                    await self._not_taken(mail_id, self._unforeseen(error))
                    return
                addressed = replace(envelope, recipients=tuple(self.envelope.recipients))
                mail = Mail(addressed, content, mail_id, trace, origin, each_answered=self.each_answered)
                delivery = self.service.run(self._deliver(mail))
                delivery.add_done_callback(lambda _: share.release())
                await asyncio.shield(delivery)
            finally:
                if delivery is None:
                    share.release()

    async def _has_room(self, share: Share) -> bool:
        """Whether the content may come; if not, the client has heard it."""
        try:
            await share.hold(room_for(self.envelope.size))
        except TryLater as error:
            log.warning("mail_not_accepted", reply=error.reply, cause=str(error))
            await self.push(error.reply)
            self._drop_what_did_not_wait()
            return False
        return True

    async def _content(self, share: Share) -> bytes:
        """What follows DATA, if it comes fast enough. Raises what `receive` raises."""
        begun, patience = self.loop.time(), self.service.settings.timeout

        def keep_pace(octets: int) -> None:
            left = begun + patience + octets / LEAST_RATE - self.loop.time()
            self._reset_timeout(max(0.001, min(patience, left)))

        keep_pace(0)
        return await receive(self._reader, self.service.settings.max_message_size, share, keep_pace)

    async def _deliver(self, mail: Mail) -> None:
        """From here on nothing that the client does stops the mail; a client that is gone will send it again."""
        assert self._timeout_handle is not None  # noqa: S101 - aiosmtpd has set it with the connection
        self._timeout_handle.cancel()
        outcomes = await self._outcomes(mail)
        if self.transport is not None:
            self._reset_timeout()  # also for a client that does not read the answer
        if not await self._heard(mail, outcomes):
            await self._note_unheard(mail, outcomes)

    async def _outcomes(self, mail: Mail) -> Outcomes:
        """What the recipe says for each recipient; what it raises holds for all of them."""
        try:
            outcomes = await self.service.recipe.process(mail)
        except RelayError as error:
            outcomes = (error,) * len(mail.envelope.recipients)
        except Exception as error:  # noqa: BLE001 - unknown errors hold mail
            outcomes = (self._unforeseen(error),) * len(mail.envelope.recipients)
        _log_failure(for_all(outcomes))
        return outcomes

    async def _not_taken(self, mail_id: str, error: RelayError) -> None:
        """The content came, but will not be delivered."""
        _log_failure(error)
        await self.answer(mail_id, (error,) * len(self.envelope.recipients))

    async def _heard(self, mail: Mail, outcomes: Outcomes) -> bool:
        """Answers; whether the client was there to hear it.

        One that sends no more may or may not hear it. He is taken for gone only where his retry can be told from a
        second mail, which must not be lost.
        """
        if self.transport is None or self.transport.is_closing():
            return False
        try:
            await self.answer(mail.id, outcomes)
        except ConnectionError:
            return False
        if self.transport is None or self.transport.is_closing():
            return False  # who has left while we said it raises nothing
        return not (self.left and mime.is_like_no_other(mail.message))

    async def _note_unheard(self, mail: Mail, outcomes: Outcomes) -> None:
        log.warning("client_gone_before_the_answer", recipients=len(outcomes))
        try:
            await self.service.recipe.unheard(mail, outcomes)
        except Exception as error:  # noqa: BLE001 - the mail has left
            log.error("delivery_not_remembered", cause=str(error), kind=type(error).__name__)

    async def answer(self, mail_id: str, outcomes: Outcomes) -> None:
        """The one reply to the content (RFC 5321, 4.2.5), and what it does not say of the other recipients."""
        failure = for_all(outcomes)
        if failure is None:
            await self.push(f"250 2.0.0 Ok: {mail_id}")
            return
        accepted = sum(outcome is None for outcome in outcomes)
        final = accepted and not isinstance(failure, TryLater)
        await self.push(failure.reply + (f" ({accepted} of {len(outcomes)} recipients have it)" if final else ""))

    def _trace(self, mail_id: str, *, utf8: bool) -> bytes:
        """Our Received field names who has connected, whatever XFORWARD said; the log has both."""
        assert self.transport is not None  # noqa: S101 - the content has just come over it
        secured = "S" if self.transport.get_extra_info("ssl_object") is not None else ""
        known = "A" if self.session.authenticated else ""
        word = self.protocol if self.protocol == "LMTP" or not self.session.extended_smtp else "ESMTP"
        return mime.received_field(
            client=f"{printable(self.session.host_name or 'unknown')} ([{self.client[0] or 'local'}])",
            hostname=self.hostname,
            protocol=(f"UTF8{self.protocol}" if utf8 else word) + secured + known,
            mail_id=mail_id,
            when=datetime.now(UTC),
        )


def _log_failure(failure: RelayError | None) -> None:
    if failure is not None:
        kind = type(failure).__name__
        log.warning("mail_not_accepted", reply=failure.reply, kind=kind, cause=str(failure))


def _log_words(origin: Origin, connected: str) -> dict[str, str]:
    """What every log line about this mail says of where it comes from."""
    client = origin.addr or origin.name or connected
    words = {"client": client, "via": connected if connected != client else "", "queue_id": origin.ident}
    return {name: value for name, value in words.items() if value}
