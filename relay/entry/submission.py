"""The submission server: a conversation that takes mail only over TLS, from users who have logged in, within limits.
Standard: RFC 6409 (submission), RFC 8314 (TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 4616 (PLAIN).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import pybase64
import structlog
from aiosmtpd.smtp import TLSSetupException

from relay import config
from relay.entry.auth import (
    BadExchange,
    Credentials,
    LoginFailed,
    Logins,
    TooManyFailures,
    credentials_of,
    decoded,
    parse_plain,
)
from relay.entry.completion import NoUser
from relay.entry.conversation import COMMANDS, Conversation, Service
from relay.entry.rates import HourlyRate, network_of
from relay.entry.tls import ServerTLS
from relay.errors import Refuse, RelayError, TryLater
from relay.mail import Origin

log = structlog.get_logger(__name__)

MAX_RESPONSE = 12288
"""Octets of one line of an authentication exchange (RFC 4954, 4)."""
HANDSHAKE_S = 30.0


class NotSecured(Refuse):
    """The client must begin TLS before anything else."""

    code = 530
    status = "5.7.0"
    public = "Must issue a STARTTLS command first"


class TooMuchMail(TryLater):
    """The user or his client has sent what may be sent in an hour."""

    code = 450
    status = "4.7.1"
    public = "Too much mail within an hour, try again later"


class Rates:
    """What users and client addresses may send in an hour."""

    def __init__(self, limits: config.SubmissionSettings, key: bytes = b"") -> None:
        """`key` is that of the names in the store."""
        self._mails = (
            HourlyRate(limits.mails_per_user, "mails user", key=key),
            HourlyRate(limits.mails_per_client, "mails client", key=key),
        )
        self._recipients = (
            HourlyRate(limits.recipients_per_user, "rcpts user", key=key),
            HourlyRate(limits.recipients_per_client, "rcpts client", key=key),
        )

    @property
    def rates(self) -> tuple[HourlyRate, ...]:
        """To be shared with other processes."""
        return (*self._mails, *self._recipients)

    def take_mail(self, user: str, client: str) -> None:
        """Raises TooMuchMail."""
        _take("mails", self._mails, user, client)

    def take_recipient(self, user: str, client: str) -> None:
        """Raises TooMuchMail."""
        _take("recipients", self._recipients, user, client)


def _take(what: str, rates: tuple[HourlyRate, HourlyRate], user: str, client: str) -> None:
    of_user, of_client = rates
    network = network_of(client)
    if not of_user.take(user):
        raise TooMuchMail(f"{what} of user {user}")
    if not of_client.take(network):
        of_user.give_back(user)
        raise TooMuchMail(f"{what} of client {network}")


@dataclass(frozen=True, slots=True)
class Submission:
    """What all connections of the submission server share."""

    settings: config.SubmissionSettings
    logins: Logins
    tls: ServerTLS
    rates: Rates

    def conversation(self, service: Service) -> SubmissionConversation:
        """For one more connection."""
        return SubmissionConversation(service, self)


class SubmissionConversation(Conversation):
    """One connection of a mail program, over TLS from the start or after STARTTLS."""

    commands: ClassVar[tuple[str, ...]] = (
        *("HELO", "EHLO", "STARTTLS", "AUTH"),
        *(verb for verb in COMMANDS if verb != "XFORWARD"),
    )
    ignored_parameters: ClassVar[frozenset[str]] = frozenset({"AUTH"})
    """RFC 4954, 5: it may be given with MAIL; nobody is believed who says for whom he sends."""

    def __init__(self, service: Service, submission: Submission) -> None:
        super().__init__(service)
        self._submission = submission
        self._user = ""

    @property
    def secured(self) -> bool:
        """Whether the connection is TLS."""
        return self.transport is not None and self.transport.get_extra_info("ssl_object") is not None

    def extensions(self) -> list[str]:
        """RFC 3207 and RFC 4954: passwords are not asked for before they are safe."""
        size = f"SIZE {self.service.settings.max_message_size}"
        known = ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"]
        return [*known, "AUTH PLAIN LOGIN" if self.secured else "STARTTLS"]

    async def check_client_may_mail(self, sender: str) -> None:
        """Raises NotSecured, NoUser, SenderNotAllowed or TooMuchMail."""
        if not self.secured:
            raise NotSecured("no TLS")
        rights = await self._submission.logins.back_end.rights(self._user) if self._user else None
        if rights is None:
            raise NoUser(f"user {self._user}, who is none any more" if self._user else "nobody has logged in")
        rights.check_sender(sender)
        self._submission.rates.take_mail(self._user, self.client[0])

    async def smtp_RCPT(self, arg: str | None) -> None:
        """Every recipient counts, also one who is refused: addresses are not to be tried out here."""
        if self.envelope.started is not None:
            try:
                self._submission.rates.take_recipient(self._user, self.client[0])
            except TooMuchMail as error:
                log.warning("recipient_not_accepted", reply=error.reply, cause=str(error))
                await self.push(error.reply)
                return
        await super().smtp_RCPT(arg)

    def origin(self) -> Origin:
        """Whoever has connected, and the user's name."""
        host, port = self.client
        return Origin(addr=host, port=port, proto="ESMTP", helo=self.session.host_name or "", user=self._user)

    # STARTTLS.

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """RFC 3207: nothing that was said before TLS counts after it, and nothing that was sent before it is read."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: STARTTLS")
        elif self.secured:
            await self.wrong("503 5.5.1 The connection is secured already")
        else:
            await self._start_tls()

    async def _start_tls(self) -> None:
        assert self.transport is not None  # noqa: S101 - the command has just come over it
        self.transport.pause_reading()  # from here on what comes is for TLS
        await self.push("220 2.0.0 Ready to start TLS")
        if injected := len(self._reader._buffer):  # type: ignore[attr-defined]
            log.warning("plaintext_before_tls_discarded", client=self.client[0], octets=injected)
            self._reader._buffer.clear()  # type: ignore[attr-defined]
        try:
            await self._writer.start_tls(self._submission.tls.context, ssl_handshake_timeout=HANDSHAKE_S)
        except OSError as error:  # TLS errors and timeouts are of this kind
            log.info("tls_not_begun", client=self.client[0], cause=str(error))
            raise TLSSetupException from error
        # Reader and aiosmtpd still have the transport below.
        self.transport = cast(asyncio.Transport, self._writer.transport)
        self._reader._transport = self.transport  # type: ignore[attr-defined]
        self._begin_anew()

    def _begin_anew(self) -> None:
        peer = self.session.peer
        self.session = self._create_session()
        self.session.peer = peer
        self._start_over()
        self._reset_timeout()

    # AUTH.

    async def smtp_AUTH(self, arg: str | None) -> None:
        """RFC 4954, 4."""
        if refusal := next(self._reasons_against_auth(), None):
            await self.wrong(refusal)
            return
        mechanism, _, initial = (arg or "").partition(" ")
        try:
            credentials = await self._credentials(mechanism.upper(), initial.strip().encode("utf-8", "replace"))
            name = await self._submission.logins.login(credentials, self.client[0])
        except RelayError as error:
            await self._not_logged_in(error)
            return
        self._user, self.session.authenticated = name, True
        structlog.contextvars.bind_contextvars(user=name)
        log.info("logged_in", client=self.client[0])
        await self.push("235 2.7.0 Authentication successful")

    def _reasons_against_auth(self) -> Iterator[str]:
        if not self.secured:
            yield "538 5.7.11 Encryption required for requested authentication mechanism"
        if not self.session.extended_smtp:
            yield "503 5.5.1 Send EHLO first"
        if self._user:
            yield "503 5.5.1 Already authenticated"
        if self.envelope.started is not None:
            yield "503 5.5.1 Not in the middle of a transaction"

    async def _credentials(self, mechanism: str, initial: bytes) -> Credentials:
        """Name and password, after as many challenges as the mechanism needs. Raises BadExchange or LoginFailed."""
        match mechanism:
            case "PLAIN":
                return parse_plain(await self._response(b"", initial))
            case "LOGIN":
                name = await self._response(b"Username:", initial)
                return credentials_of(name, await self._response(b"Password:"))
            case "":
                raise BadExchange("no mechanism", "501 5.5.4 Syntax: AUTH mechanism [initial-response]")
        raise BadExchange("a mechanism that is not offered", "504 5.5.4 Unrecognized authentication type")

    async def _response(self, challenge: bytes, initial: bytes = b"") -> bytes:
        """What the client answers, decoded; `initial` is what it has sent with AUTH, "=" for nothing at all."""
        if initial:
            return b"" if initial == b"=" else decoded(initial)
        await self.push(b"334 " + pybase64.b64encode(challenge))
        try:
            line = await self._line()
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the client left while it logged in") from error
        self._reset_timeout()
        if line is None or len(line) > MAX_RESPONSE:
            raise BadExchange("too long", "500 5.5.6 Authentication exchange line is too long")
        if (response := line.rstrip(b"\r\n")) == b"*":
            raise BadExchange("cancelled by the client", "501 5.7.0 Authentication cancelled")
        return decoded(response)

    async def _not_logged_in(self, error: RelayError) -> None:
        log.warning("login_failed", client=self.client[0], reply=error.reply, cause=str(error))
        match error:
            case TooManyFailures():
                self._ending = True
                await self.push(error.reply)
            case BadExchange() | LoginFailed():
                await self.wrong(error.reply)
            case _:
                await self.push(error.reply)
