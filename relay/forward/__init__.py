"""Hands a mail to the next hop and returns only when the next hop has said what becomes of it.
Standard: RFC 5321 6.1; a next hop is one server or several that are tried in turn, by SMTP or LMTP (RFC 2033).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from relay.config import DirectionSettings, MailDomain, Server
from relay.errors import (
    DeliveryUnderWay,
    NextHopRefused,
    NextHopUnavailable,
    OutcomeUnknown,
    RelayError,
    StoreUnavailable,
)
from relay.forward.client import Gone, NotTaken, RecipientOverLimit
from relay.forward.pool import ConnectionPool
from relay.forward.transaction import UNSUPERVISED, NextHopResult, Supervision, stuffed
from relay.mail import Mail

if TYPE_CHECKING:  # 6 MB that only a next hop found by MX needs
    import dns.asyncresolver

    from relay.forward.mx import MailExchangers

__all__ = ["UNSUPERVISED", "NextHop", "NextHopResult", "Supervision", "stuffed"]

log = structlog.get_logger(__name__)

AVOIDED_S = 60.0
"""Time a server that failed is tried after all others, in seconds: else it would cost each mail its timeout."""


class NextHop:
    """The servers after us, of which one gets each mail. A reply of 4xx holds it, 5xx refuses it, silence holds it."""

    def __init__(
        self, direction: DirectionSettings, hostname: str, resolver: dns.asyncresolver.Resolver | None = None
    ) -> None:
        """`hostname` is what we say in EHLO. Raises ConfigError where a certificate file cannot be used."""
        self._places = direction.next_hop
        self._connections = ConnectionPool(direction, hostname)
        self._hostname, self._resolver = hostname, resolver
        self._mail_exchangers: MailExchangers | None = None
        self._avoided: dict[Server, float] = {}

    async def deliver(self, mail: Mail, supervision: Supervision = UNSUPERVISED) -> NextHopResult:
        """What the next hop has said for each recipient. Raises NextHopUnavailable or NextHopRefused for all of them.

        Recipients that it does not accept do not stop the others. A server that takes nothing of the mail is followed
        by the next one; one that may have taken it never is.
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
        """Each next hop, and what is wrong with it or "", after talking to it as far as the first mail."""
        found = []
        for place in self._places:
            try:
                servers = await self._resolved(place)
            except RelayError as error:
                found.append((str(place), str(error)))
                continue
            for server in servers:
                try:
                    (await self._connections.open(server)).close()
                    found.append((str(server), ""))
                except NextHopUnavailable as error:
                    found.append((str(server), str(error)))
        return found

    async def close(self) -> None:
        """Ends all connections on which no mail is in flight; those end after their mail."""
        await self._connections.close()

    async def _resolved(self, place: Server | MailDomain) -> list[Server]:
        if isinstance(place, Server):
            return [place]
        if self._mail_exchangers is None:
            from relay.forward.mx import MailExchangers

            self._mail_exchangers = MailExchangers(self._hostname, self._resolver)
        return await self._mail_exchangers.servers(place)

    async def _hand_to(self, server: Server, attempt: _Attempt, supervision: Supervision) -> bool:
        """One transaction, or as many as it takes where the server limits their recipients; whether that was all."""
        while True:
            rest = attempt.rest
            try:
                result = await self._connections.carry(server, rest, supervision)
            except (NextHopRefused, NextHopUnavailable, DeliveryUnderWay, StoreUnavailable) as error:
                attempt.fail(error)
                if isinstance(error, Gone):
                    self._avoid(server, error)
                break
            except Exception as error:  # noqa: BLE001 - what was accepted before must not be forgotten
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
    """A mail on its way, and what has become of each of its recipients.

    `pending` are the places of those recipients for whom another server may be tried.
    """

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        nobody: RelayError = Gone("there was no next hop to try")
        self._outcomes: list[RelayError | None] = [nobody] * len(mail.envelope.recipients)
        self.pending = list(range(len(self._outcomes)))
        self._answer = "no recipient was accepted"
        self._next_hop = ""

    @property
    def rest(self) -> Mail:
        """The mail to those who are pending."""
        if len(self.pending) == len(self._outcomes):
            return self._mail
        recipients = self._mail.envelope.recipients
        return self._mail.to([recipients[place] for place in self.pending])

    def fail(self, error: RelayError) -> None:
        """Sets this error for all pending recipients; a server's own reply about one outweighs silence."""
        for place in self.pending:
            if isinstance(self._outcomes[place], Gone) or not isinstance(error, Gone):
                self._outcomes[place] = error
        self.pending = [place for place in self.pending if isinstance(self._outcomes[place], NotTaken)]

    def note(self, result: NextHopResult) -> bool:
        """What a server has said to those who were pending; whether it would take more of them."""
        for place, outcome in zip(self.pending, result.outcomes, strict=True):
            self._outcomes[place] = outcome
        self.pending = [place for place in self.pending if isinstance(self._outcomes[place], NotTaken)]
        if None not in result.outcomes:
            self._next_hop = self._next_hop or result.next_hop
            return False
        self._answer, self._next_hop = result.answer, result.next_hop
        return bool(self.pending) and RecipientOverLimit in map(type, result.outcomes)

    def result(self) -> NextHopResult:
        """Raises what is the one failure of all recipients."""
        first = next(iter(self._outcomes), None)
        if first is not None and all(outcome is first for outcome in self._outcomes):
            raise first
        return NextHopResult(tuple(self._outcomes), self._answer, self._next_hop)
