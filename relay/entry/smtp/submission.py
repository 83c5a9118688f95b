"""The submission server: accepts mail only over TLS, from authenticated users, within rate limits.
Standard: RFC 6409 (submission), RFC 8314 (TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 4616 (PLAIN).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import pybase64
import structlog

from relay import config
from relay.entry import Inside, Recipe
from relay.entry.listening import SocketServer, network_of
from relay.entry.server_tls import ServerTLS
from relay.entry.smtp.auth import (
    BackEnd,
    BadExchange,
    Credentials,
    FileBackEnd,
    LoginFailed,
    Logins,
    TooManyFailures,
    credentials_of,
    decoded,
    parse_plain,
)
from relay.entry.smtp.completion import NoUser
from relay.entry.smtp.dovecot import DovecotBackEnd
from relay.entry.smtp.rates import HourlyRate, SharedRates
from relay.entry.smtp.session import COMMANDS, EXTENSIONS, SMTPSession
from relay.entry.smtp.users import UserFile
from relay.errors import Refuse, RelayError, TryLater
from relay.mail import Origin
from relay.runtime.aio import in_background

log = structlog.get_logger(__name__)

MAX_RESPONSE = 12288
"""Maximum line length of an authentication exchange, in octets (RFC 4954, 4)."""


class NotSecured(Refuse):
    """The client must use STARTTLS first."""

    code = 530
    status = "5.7.0"
    public = "Must issue a STARTTLS command first"


class TooMuchMail(TryLater):
    """The user or client address has reached its hourly limit."""

    code = 450
    status = "4.7.1"
    public = "Too much mail within an hour, try again later"


class SubmissionRates:
    """Hourly limits of users and client addresses, for mails and recipients."""

    def __init__(self, limits: config.SubmissionSettings, key: bytes = b"") -> None:
        """`key` hashes the names in the store."""
        self._rates = {
            "mails": (
                HourlyRate(limits.mails_per_user, "mails user", key=key),
                HourlyRate(limits.mails_per_client, "mails client", key=key),
            ),
            "recipients": (
                HourlyRate(limits.recipients_per_user, "rcpts user", key=key),
                HourlyRate(limits.recipients_per_client, "rcpts client", key=key),
            ),
        }

    @property
    def rates(self) -> tuple[HourlyRate, ...]:
        """The rates to share with other processes."""
        return tuple(rate for pair in self._rates.values() for rate in pair)

    def take(self, kind: Literal["mails", "recipients"], user: str, client: str) -> None:
        """Takes one token for user and client. Raises TooMuchMail."""
        of_user, of_client = self._rates[kind]
        network = network_of(client)
        if not of_user.take(user):
            raise TooMuchMail(f"{kind} of user {user}")
        if not of_client.take(network):
            of_user.give_back(user)
            raise TooMuchMail(f"{kind} of client {network}")


@dataclass(frozen=True, slots=True)
class SubmissionService:
    """The parts that all connections of the submission server share."""

    logins: Logins
    tls: ServerTLS
    rates: SubmissionRates


@asynccontextmanager
async def submission_service(table: config.SubmissionSettings, inside: Inside) -> AsyncIterator[SubmissionService]:
    """The service. Raises ConfigError if a file of [submission] cannot be used, and StoreUnavailable."""
    users = UserFile(table.users) if table.users else None
    back_end: BackEnd
    if table.dovecot_auth:
        back_end = DovecotBackEnd(table.dovecot_auth, inside.config.site.domains, users)
    else:
        assert users is not None  # noqa: S101 - load_config has checked that one of the two is set
        back_end = FileBackEnd(users)
    try:
        key = inside.secret.derived(b"rates")[0]
        logins = Logins(back_end, table.failed_logins, key)
        service = SubmissionService(logins, ServerTLS(table.certificate, table.key), SubmissionRates(table, key))
        shared = SharedRates(inside.rate_limits, (*logins.rates, *service.rates.rates))
        await shared.exchange()
        try:
            async with in_background("shared rates", shared.keep_up):
                yield service
        finally:
            await shared.close()
    finally:
        back_end.close()


class SubmissionSession(SMTPSession):
    """One connection of a mail program, over TLS from the start or after STARTTLS."""

    commands: ClassVar[tuple[str, ...]] = (
        *("HELO", "EHLO", "STARTTLS", "AUTH"),
        *(verb for verb in COMMANDS if verb != "XFORWARD"),
    )
    ignored_parameters: ClassVar[frozenset[str]] = frozenset({"AUTH"})
    """RFC 4954, 5: AUTH= of MAIL is accepted, and ignored: no client is trusted with it."""

    def __init__(self, server: SocketServer, hostname: str, recipe: Recipe, service: SubmissionService) -> None:
        super().__init__(server, hostname, recipe)
        self._service = service
        self._user = ""

    def extensions(self) -> list[str]:
        """RFC 3207 and RFC 4954: AUTH is only offered over TLS."""
        size = f"SIZE {self.settings.max_message_size}"
        return ["PIPELINING", size, *EXTENSIONS, "AUTH PLAIN LOGIN" if self.secured else "STARTTLS"]

    async def check_client_may_mail(self, sender: str) -> None:
        """Raises NotSecured, NoUser, SenderNotAllowed or TooMuchMail."""
        if not self.secured:
            raise NotSecured("no TLS")
        rights = await self._service.logins.back_end.rights(self._user) if self._user else None
        if rights is None:
            raise NoUser(f"user {self._user}, who no longer exists" if self._user else "nobody has logged in")
        rights.check_sender(sender)
        self._service.rates.take("mails", self._user, self.client)

    async def smtp_RCPT(self, arg: str | None) -> None:
        """Every recipient counts, also a refused one, so that addresses cannot be harvested."""
        if self.transaction.begun is not None:
            try:
                with self.server.counted():
                    self._service.rates.take("recipients", self._user, self.client)
            except TooMuchMail as error:
                with self.named_in_log():
                    await self.refuse_recipient(error)
                return
        await super().smtp_RCPT(arg)

    def origin(self) -> Origin:
        """The client's address, and the user's name."""
        helo = self.session.host_name or ""
        return Origin(addr=self.client, port=self.port, proto="ESMTP", helo=helo, user=self._user, asks_user=True)

    # STARTTLS.

    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """RFC 3207: state from before TLS is reset, and data sent before it is discarded."""
        if arg:
            await self.wrong("501 5.5.4 Syntax: STARTTLS")
        elif self.secured:
            await self.wrong("503 5.5.1 The connection is secured already")
        else:
            await self._start_tls()

    async def _start_tls(self) -> None:
        assert self.transport is not None  # noqa: S101 - the command was received over it
        self.transport.pause_reading()  # further data is for TLS
        await self.push("220 2.0.0 Ready to start TLS")
        try:
            await self.begin_tls(self._service.tls.context)
        except OSError as error:  # includes TLS errors and timeouts
            log.info("tls_not_begun", client=self.client, cause=str(error))
        else:
            self.start_over()

    # AUTH.

    async def smtp_AUTH(self, arg: str | None) -> None:
        """RFC 4954, 4."""
        if refusal := next(self._reasons_against_auth(), None):
            await self.wrong(refusal)
            return
        mechanism, _, initial = (arg or "").partition(" ")
        try:
            credentials = await self._credentials(mechanism.upper(), initial.strip().encode("utf-8", "replace"))
            name = await self._service.logins.login(credentials, self.client)
        except RelayError as error:
            await self._not_logged_in(error)
            return
        self._user, self.session.authenticated = name, True
        structlog.contextvars.bind_contextvars(user=name)
        log.info("logged_in", client=self.client)
        await self.push("235 2.7.0 Authentication successful")

    def _reasons_against_auth(self) -> Iterator[str]:
        if not self.secured:
            yield "538 5.7.11 Encryption required for requested authentication mechanism"
        if not self.session.extended_smtp:
            yield "503 5.5.1 Send EHLO first"
        if self._user:
            yield "503 5.5.1 Already authenticated"
        if self.transaction.begun is not None:
            yield "503 5.5.1 Not in the middle of a transaction"

    async def _credentials(self, mechanism: str, initial: bytes) -> Credentials:
        """Name and password, by the challenges of the mechanism. Raises BadExchange or LoginFailed."""
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
        """The client's decoded response; `initial` is that sent with AUTH, "=" for an empty one."""
        if initial:
            return b"" if initial == b"=" else decoded(initial)
        await self.push(b"334 " + pybase64.b64encode(challenge))
        try:
            line = await self.read_line()
        except asyncio.IncompleteReadError as error:
            raise ConnectionResetError("the client left while it logged in") from error
        self.start_timer()
        if line is None or len(line) > MAX_RESPONSE:
            raise BadExchange("too long", "500 5.5.6 Authentication exchange line is too long")
        if (response := line.rstrip(b"\r\n")) == b"*":
            raise BadExchange("cancelled by the client", "501 5.7.0 Authentication cancelled")
        return decoded(response)

    async def _not_logged_in(self, error: RelayError) -> None:
        log.warning("login_failed", client=self.client, reply=error.reply, cause=str(error))
        match error:
            case TooManyFailures():
                self.ending = True
                await self.push(error.reply)
            case BadExchange() | LoginFailed():
                await self.wrong(error.reply)
            case _:
                await self.push(error.reply)
