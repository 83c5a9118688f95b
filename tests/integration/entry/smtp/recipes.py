"""A recipe that remembers the mails it got, gives the outcomes that a test wants, and can be made to wait.
Standard: relay.entry.Recipe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from relay.config import ListenerSettings, TCPAddress
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer, address_of, bound
from relay.entry.smtp.session import LMTPSession, SMTPSession
from relay.errors import RelayError
from relay.mail import Mail, Outcomes

SESSIONS: dict[str, type[SMTPSession]] = {"SMTP": SMTPSession, "LMTP": LMTPSession}


@dataclass
class Recorder:
    """Accepts everything, unless `outcomes` says what becomes of a recipient, or `failure` of the whole mail.

    `gate`, while it is closed, keeps mails inside; `arrived` is set when one is inside.
    """

    mails: list[Mail] = field(default_factory=list)
    client_gone_mails: list[tuple[Mail, Outcomes]] = field(default_factory=list)
    outcomes: dict[str, RelayError] = field(default_factory=dict)
    failure: Exception | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    noted: asyncio.Event = field(default_factory=asyncio.Event)
    inside: int = 0
    cancelled: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    def check_recipient(self, sender: str, recipient: str) -> None:
        if recipient.startswith("held"):
            raise self.outcomes[recipient]

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Their transaction is over."""

    async def process(self, mail: Mail) -> Outcomes:
        self.inside += 1
        self.arrived.set()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.inside -= 1
        if self.failure is not None:
            raise self.failure
        self.mails.append(mail)
        return tuple(self.outcomes.get(address) for address in mail.envelope.addresses)

    def client_answered(self, mail: Mail) -> None:
        """Nothing is forgotten here."""

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        self.client_gone_mails.append((mail, outcomes))
        self.noted.set()


@dataclass
class Running:
    """A listener that serves, and what it works with."""

    entry: SocketServer
    address: TCPAddress
    recipe: Recorder
    budget: Budget


@asynccontextmanager
async def serving(
    protocol: str = "SMTP", *, budget: Budget | None = None, recipe: Recorder | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """An entry on a free port; `settings` are those of [outgoing] and [incoming]."""
    budget, recipe = budget or Budget(512 * 2**20), recipe or Recorder()
    entry = SocketServer(ListenerSettings(**settings), budget)
    sockets = await bound("outgoing.listen", TCPAddress("127.0.0.1", 0))
    await entry.listen(sockets, lambda: SESSIONS[protocol](entry, "relay.alice.example", recipe))
    try:
        yield Running(entry, address_of(sockets), recipe, budget)
    finally:
        await entry.stop(grace=5)
