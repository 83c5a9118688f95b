"""Delivers a mail to the next hop and returns its reply for each recipient.
Standard: RFC 5321 6.1; 3.1, 3.2 (several mails in one session), RFC 2033 4.1 (LHLO), RFC 3207 4.2 (EHLO again after
STARTTLS), RFC 7435 (opportunistic TLS: used if offered, unverified), RFC 8996 (TLS 1.2 or later).

A next hop is one server, or several that are tried in turn. Connections are reused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from relay.config import DirectionSettings, MailDomain, Server
from relay.errors import (
    ConfigError,
    DeliveryUnderWay,
    NextHopRefused,
    NextHopUnavailable,
    OutcomeUnknown,
    RelayError,
    StoreUnavailable,
)
from relay.files import pem
from relay.forward.client import Client, Gone, NotTaken, RecipientOverLimit, Silent, Timeouts
from relay.forward.transaction import UNSUPERVISED, NextHopResult, Supervision, stuffed, transact
from relay.mail import Mail

if TYPE_CHECKING:  # 6 MB that only a next hop found by MX needs
    import dns.asyncresolver

    from relay.forward.mx import MailExchangers

__all__ = ["UNSUPERVISED", "NextHop", "NextHopResult", "Supervision", "stuffed"]

log = structlog.get_logger(__name__)

AVOIDED_S = 60.0
"""Time for which a failed server is tried last, in seconds: else each mail would wait for its timeout."""
IDLE_S = 10.0
"""Idle timeout of a connection, in seconds; short, since a busy next hop may lack connections."""
AGE_S = 300.0
"""Maximum age of a connection, in seconds, so that a changed address of the next hop is noticed."""
MAILS = 100
"""Maximum number of mails over one connection."""
GOODBYE_S = 2.0


class NextHop:
    """The next servers, one of which gets each mail. A 4xx reply or silence holds it, a 5xx reply refuses it."""

    def __init__(
        self, direction: DirectionSettings, hostname: str, resolver: dns.asyncresolver.Resolver | None = None
    ) -> None:
        """`hostname` is our name in EHLO. Raises ConfigError if a certificate file cannot be used."""
        self._places = direction.next_hop
        self._connections = ConnectionPool(direction, hostname)
        self._hostname, self._resolver = hostname, resolver
        self._mail_exchangers: MailExchangers | None = None
        self._avoided: dict[Server, float] = {}

    async def deliver(self, mail: Mail, supervision: Supervision = UNSUPERVISED) -> NextHopResult:
        """The outcome for each recipient. Raises NextHopUnavailable or NextHopRefused for all of them.

        Refused recipients do not stop the others. If a server has certainly not accepted the mail, the next one is
        tried.
        """
        attempt, now = _Attempt(mail), asyncio.get_running_loop().time()
        failed_of_late: list[Server] = []
        for place in self._places:
            try:
                servers = await self._resolved(place)
            except (NextHopRefused, NextHopUnavailable) as error:
                attempt.fail(error)
                continue
            for server in servers:
                if self._avoided.get(server, now) > now:
                    failed_of_late.append(server)
                elif await self._hand_to(server, attempt, supervision):
                    return attempt.result()
        for server in failed_of_late:
            if await self._hand_to(server, attempt, supervision):
                break
        return attempt.result()

    async def states(self) -> list[tuple[str, str]]:
        """Each next hop and its fault, or "", after a session without a mail."""
        states = []
        for place in self._places:
            try:
                servers = await self._resolved(place)
            except RelayError as error:
                states.append((str(place), str(error)))
                continue
            for server in servers:
                try:
                    (await self._connections.open(server)).close()
                    states.append((str(server), ""))
                except NextHopUnavailable as error:
                    states.append((str(server), str(error)))
        return states

    async def close(self) -> None:
        """Closes idle connections now, the others after their mail."""
        await self._connections.close()

    async def _resolved(self, place: Server | MailDomain) -> list[Server]:
        if isinstance(place, Server):
            return [place]
        if self._mail_exchangers is None:
            from relay.forward.mx import MailExchangers

            self._mail_exchangers = MailExchangers(self._hostname, self._resolver)
        return await self._mail_exchangers.servers(place)

    async def _hand_to(self, server: Server, attempt: _Attempt, supervision: Supervision) -> bool:
        """Delivers in one transaction, or several if the server limits recipients; returns whether all are done."""
        while True:
            rest = attempt.rest
            try:
                result = await self._connections.carry(server, rest, supervision)
            except (NextHopRefused, NextHopUnavailable, DeliveryUnderWay, StoreUnavailable) as error:
                attempt.fail(error)
                if isinstance(error, Gone):
                    self._avoid(server, error)
                break
            except Exception as error:  # noqa: BLE001 - recipients accepted before must not be lost
                attempt.fail(OutcomeUnknown(f"next hop {server}: {type(error).__name__}: {error}"))
                break
            self._avoided.pop(server, None)
            if not attempt.note(result):
                break
            recipients = zip(rest.envelope.recipients, result.outcomes, strict=True)
            try:
                await supervision.taken([recipient for recipient, outcome in recipients if outcome is None])
            except RelayError as error:
                attempt.fail(error)
                break
        return not attempt.pending

    def _avoid(self, server: Server, error: Gone) -> None:
        log.warning("next_hop_failed", next_hop=str(server), cause=str(error))
        now = asyncio.get_running_loop().time()
        self._avoided = {each: until for each, until in self._avoided.items() if until > now}
        self._avoided[server] = now + AVOIDED_S


class _Attempt:
    """A mail being delivered, and the outcome for each recipient.

    `pending` are the indices of recipients for whom another server may be tried.
    """

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._outcomes: dict[int, RelayError | None] = {}
        """Outcomes by index; a recipient without a reply has no entry, since None means accepted."""
        self.pending = list(range(len(mail.envelope.recipients)))
        self._answer = "no recipient was accepted"
        self._next_hop = ""

    @property
    def rest(self) -> Mail:
        """The mail to the pending recipients."""
        recipients = self._mail.envelope.recipients
        if len(self.pending) == len(recipients):
            return self._mail
        return self._mail.to([recipients[place] for place in self.pending])

    def fail(self, error: RelayError) -> None:
        """Sets this error for all pending recipients; a reply about one recipient takes precedence over silence."""
        for place in self.pending:
            if isinstance(self._outcomes.get(place, error), Gone) or not isinstance(error, Gone):
                self._outcomes[place] = error
        self.pending = [place for place in self.pending if isinstance(self._outcomes[place], NotTaken)]

    def note(self, result: NextHopResult) -> bool:
        """Notes a server's result for the pending recipients; returns whether it would accept more of them."""
        for place, outcome in zip(self.pending, result.outcomes, strict=True):
            self._outcomes[place] = outcome
        self.pending = [place for place in self.pending if isinstance(self._outcomes[place], NotTaken)]
        if None not in result.outcomes:
            self._next_hop = self._next_hop or result.next_hop
            return False
        self._answer, self._next_hop = result.answer, result.next_hop
        return bool(self.pending) and RecipientOverLimit in map(type, result.outcomes)

    def result(self) -> NextHopResult:
        """The result; raises the error if it is the same for all recipients."""
        if len(self._outcomes) < len(self._mail.envelope.recipients):
            self.fail(Gone("there was no next hop to try"))
        outcomes = tuple(self._outcomes[place] for place in range(len(self._mail.envelope.recipients)))
        first = next(iter(outcomes), None)
        if first is not None and all(outcome is first for outcome in outcomes):
            raise first
        return NextHopResult(outcomes, self._answer, self._next_hop)


class ConnectionPool:
    """The connections of one direction, at most `next_hop_connections` idle ones to each server.

    Either side may close an idle one.
    """

    def __init__(self, direction: DirectionSettings, hostname: str) -> None:
        """`hostname` is our name in EHLO. Raises ConfigError if a certificate file cannot be used."""
        self._timeouts = Timeouts(direction.timeout)
        self._hostname = hostname.encode("idna" if not hostname.isascii() else "ascii")
        self._tls_mode = direction.next_hop_tls
        self._tls_name = direction.next_hop_tls_name
        self._tls_context = _context(direction.next_hop_ca, verify=self._tls_mode == "required")
        self._most = direction.next_hop_connections
        self._idle: dict[Server, dict[Client, asyncio.TimerHandle]] = {}
        """Idle connections, the most recently used last, each with the timer of its idle timeout."""
        self._closed = False

    async def carry(self, server: Server, mail: Mail, supervision: Supervision) -> NextHopResult:
        """Delivers over an idle connection, or a new one if there is none or it was closed.

        Raises NotTaken or NextHopRefused, for all recipients.
        """
        idle = self._take(server)
        while True:
            client = idle or await self.open(server)
            try:
                result = await transact(client, mail, supervision)
            except BaseException as error:
                client.close()
                if idle is None or isinstance(error, Silent) or not isinstance(error, Gone):
                    raise
                log.debug("idle_connection_was_gone", next_hop=str(server), cause=str(error))
                idle = None
            else:
                break
        client.mails += 1
        if any(result.outcomes):
            client.close()  # after a refusal its state is uncertain
        else:
            self._keep(client)
        return result

    async def open(self, server: Server) -> Client:
        """A new connection after EHLO, encrypted as configured. Raises Gone."""
        client = await Client.connect(server, self._timeouts)
        try:
            await self._greeted(client)
            await self._hello(client)
            if self._uses_tls(client.peer_host):
                await self._secure(client)
        except BaseException:
            client.close()
            raise
        return client

    async def close(self) -> None:
        """Closes all idle connections; no connection is reused any more."""
        self._closed = True
        idle = {client: expiry for server in list(self._idle) for client, expiry in self._idle.pop(server).items()}
        for client, expiry in idle.items():
            expiry.cancel()
            client.close()
        await asyncio.gather(*(client.closed(GOODBYE_S) for client in idle))

    # One connection.

    async def _greeted(self, client: Client) -> None:
        greeting = await client.reply("greeting")
        if greeting.code != 220:
            raise Gone(f"next hop {client.server}: greeting: {greeting}")

    async def _hello(self, client: Client) -> None:
        verb = b"LHLO" if client.server.protocol == "lmtp" else b"EHLO"
        reply = await client.command(verb.decode(), verb + b" " + self._hostname)
        if reply.code >= 500 and verb == b"EHLO":
            verb = b"HELO"
            reply = await client.command("HELO", b"HELO " + self._hostname)
        if not reply.positive:
            raise Gone(f"next hop {client.server}: {verb.decode()}: {reply}")
        offered = [line.partition(" ") for line in reply.lines[1:]] if verb != b"HELO" else []
        client.extensions = {name.upper(): parameters for name, _, parameters in offered}

    def _uses_tls(self, host: str) -> bool:
        """Whether to use STARTTLS if offered; `host` is the server's IP address, "" for a Unix socket."""
        if self._tls_mode == "none" or not host:
            return False
        return self._tls_mode != "auto" or not ipaddress.ip_address(host.partition("%")[0]).is_loopback

    async def _secure(self, client: Client) -> None:
        offered = "STARTTLS" in client.extensions
        reply = await client.command("STARTTLS", b"STARTTLS") if offered else None
        if reply is not None and reply.code == 220:
            await client.start_tls(self._tls_context, self._tls_name or client.server.host)
            await self._hello(client)
        elif self._tls_mode == "required":
            said = reply or "it offers none"
            raise Gone(f"next hop {client.server}: next_hop_tls requires TLS: {said}")

    # Idle connections.

    def _take(self, server: Server) -> Client | None:
        """Takes the most recently used connection, so that others can reach their idle timeout."""
        idle = self._idle.get(server, {})
        while idle:
            client, expiry = idle.popitem()
            expiry.cancel()
            if client.usable:
                return client
        return None

    def _keep(self, client: Client) -> None:
        loop = asyncio.get_running_loop()
        idle = self._idle.setdefault(client.server, {})
        for dead in [each for each in idle if not each.usable]:
            idle.pop(dead).cancel()
        worn = client.mails >= MAILS or loop.time() - client.opened >= AGE_S
        if self._closed or worn or len(idle) >= self._most:
            client.close()
            return
        idle[client] = loop.call_later(IDLE_S, self._expire, client)

    def _expire(self, client: Client) -> None:
        del self._idle[client.server][client]
        client.close()


def _context(ca: Path | str, *, verify: bool) -> ssl.SSLContext:
    """A client context; `ca` is a file of CA certificates, or "system". Raises ConfigError."""
    try:
        if isinstance(ca, Path):
            context = pem.trusting(ca)
        else:  # loading the system's takes milliseconds
            context = ssl.create_default_context() if verify else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    except (OSError, ConfigError) as error:
        raise ConfigError(f"next_hop_ca: {ca} cannot be used as CA certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
