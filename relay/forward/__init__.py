"""Hands a mail to the next hop and returns only when the next hop has said what becomes of it.
Standard: RFC 5321 6.1; a next hop is one server or several that are tried in turn, by SMTP or LMTP (RFC 2033).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import dns.asyncresolver
import structlog

from relay.config import DirectionSettings, MailDomain, Server
from relay.errors import DeliveryUnderWay, NextHopRefused, NextHopUnavailable, RelayError, StoreUnavailable
from relay.forward.connections import Connections
from relay.forward.conversation import UNSUPERVISED, Supervision, Taken, stuffed
from relay.forward.faults import Gone, NotTaken, TooManyRecipients
from relay.forward.mx import MailExchangers
from relay.mail import Mail, Outcomes

__all__ = ["UNSUPERVISED", "Handed", "NextHop", "Supervision", "stuffed"]

log = structlog.get_logger(__name__)

AVOIDED_S = 60.0
"""So long a server that failed is tried after all others, so that it does not cost each mail its timeout."""


@dataclass(frozen=True, slots=True)
class Handed:
    """What a next hop has said: an outcome for each recipient, its own words of acceptance, and which one it was."""

    outcomes: Outcomes
    answer: str
    next_hop: str


class NextHop:
    """The servers after us, of which one gets each mail. A reply of 4xx holds it, 5xx refuses it, silence holds it."""

    def __init__(
        self, direction: DirectionSettings, hostname: str, resolver: dns.asyncresolver.Resolver | None = None
    ) -> None:
        """`hostname` is what we say in EHLO. Raises ConfigError where a certificate file cannot be used."""
        self._places = direction.next_hop
        self._connections = Connections(direction, hostname)
        self._exchangers = MailExchangers(hostname, resolver)
        self._avoided: dict[Server, float] = {}

    async def deliver(self, mail: Mail, supervision: Supervision = UNSUPERVISED) -> Handed:
        """What the next hop has said for each recipient. Raises NextHopUnavailable or NextHopRefused for all of them.

        Recipients that it does not accept do not stop the others. A server that takes nothing of the mail is followed
        by the next one; one that may have taken it never is.
        """
        attempt = _Attempt(mail, supervision)
        async for server in self._servers(attempt):
            await self._hand_to(server, attempt)
            if not attempt.pending:
                break
        return attempt.handed()

    async def look(self) -> list[tuple[str, str]]:
        """Each next hop, and what is wrong with it or "", after talking to it as far as the first mail."""
        found = []
        for place in self._places:
            try:
                found += [(str(server), await self._look_at(server)) for server in await self._resolved(place)]
            except RelayError as error:
                found.append((str(place), str(error)))
        return found

    async def close(self) -> None:
        """Ends all connections on which no mail is in flight; those end after their mail."""
        await self._connections.close()

    async def _servers(self, attempt: _Attempt) -> AsyncIterator[Server]:
        """In the order of the settings, but those that failed a short while ago after all others."""
        now = asyncio.get_running_loop().time()
        later: list[Server] = []
        for place in self._places:
            try:
                servers = await self._resolved(place)
            except (NextHopRefused, NextHopUnavailable) as error:
                attempt.fail(error)
                continue
            for server in servers:
                if self._avoided.get(server, now) > now:
                    later.append(server)
                else:
                    yield server
        for server in later:
            yield server

    async def _resolved(self, place: Server | MailDomain) -> list[Server]:
        return [place] if isinstance(place, Server) else await self._exchangers.servers(place)

    async def _hand_to(self, server: Server, attempt: _Attempt) -> None:
        """One transaction, or as many as it takes where the server limits their recipients."""
        more = True
        while more:
            try:
                taken = await self._connections.carry(server, attempt.rest, attempt.supervision)
            except (NextHopRefused, NextHopUnavailable, DeliveryUnderWay, StoreUnavailable) as error:
                attempt.fail(error)
                if isinstance(error, Gone):
                    self._avoid(server, error)
                return
            except Exception as error:  # noqa: BLE001 - what was accepted before must not be forgotten
                attempt.fail(NextHopUnavailable(f"next hop {server}: {type(error).__name__}: {error}"))
                return
            before = attempt.mail.envelope.recipients
            has_it = [
                before[place] for place, each in zip(attempt.pending, taken.outcomes, strict=True) if each is None
            ]
            more = attempt.note(server, taken)
            self._avoided.pop(server, None)
            if more:
                try:
                    await attempt.supervision.taken(has_it)
                except RelayError as error:
                    attempt.fail(error)
                    return

    def _avoid(self, server: Server, error: Gone) -> None:
        log.warning("next_hop_failed", next_hop=str(server), cause=str(error))
        now = asyncio.get_running_loop().time()
        self._avoided = {each: until for each, until in self._avoided.items() if until > now}
        self._avoided[server] = now + AVOIDED_S

    async def _look_at(self, server: Server) -> str:
        try:
            connection = await self._connections.open(server)
        except NextHopUnavailable as error:
            return str(error)
        connection.channel.close()
        return ""


@dataclass(slots=True)
class _Attempt:
    """A mail on its way, and what has become of each of its recipients."""

    mail: Mail
    supervision: Supervision
    outcomes: list[RelayError | None] = field(default_factory=list)
    answer: str = "no recipient was accepted"
    next_hop: str = ""

    def __post_init__(self) -> None:
        nobody = Gone("there was no next hop to try")
        self.outcomes = [nobody for _ in self.mail.envelope.recipients]

    @property
    def pending(self) -> list[int]:
        """The places of those recipients for whom another server may be tried."""
        return [place for place, outcome in enumerate(self.outcomes) if isinstance(outcome, NotTaken)]

    @property
    def rest(self) -> Mail:
        """The mail to those."""
        return self.mail.to([self.mail.envelope.recipients[place] for place in self.pending])

    def fail(self, error: RelayError) -> None:
        """The same for all who are pending; but what a server has said of a recipient is worth more than a silence."""
        for place in self.pending:
            if isinstance(self.outcomes[place], Gone) or not isinstance(error, Gone):
                self.outcomes[place] = error

    def note(self, server: Server, taken: Taken) -> bool:
        """What a server has said to those who were pending; whether it would take more of them."""
        for place, outcome in zip(self.pending, taken.outcomes, strict=True):
            self.outcomes[place] = outcome
        if None not in taken.outcomes:
            self.next_hop = self.next_hop or str(server)
            return False
        self.answer, self.next_hop = taken.answer, str(server)
        return any(isinstance(outcome, TooManyRecipients) for outcome in taken.outcomes)

    def handed(self) -> Handed:
        """The result. Raises what is the one failure of all recipients."""
        first = next(iter(self.outcomes), None)
        if first is not None and all(outcome is first for outcome in self.outcomes):
            raise first
        return Handed(tuple(self.outcomes), self.answer, self.next_hop)
