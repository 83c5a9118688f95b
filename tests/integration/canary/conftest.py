"""Alice's and Bob's relays, both ways, and between them mail servers that keep what passes and can lose it.
Standard: a mail server hands a relay what it has, as deploy/POSTFIX.md says: by SMTP, by LMTP or to its milter.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from relay.canary import asking
from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from relay.outgoing import Outgoing
from relay.process import app, assembly
from relay.status import exposition
from tests.integration.entry.milter.mta import MTA, Field, in_thread
from tests.testlib.identities import Identities
from tests.testlib.mail_server import MailServer
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import StatusNumbers, numbers

ALICE, BOB = "qumail-canary@alice.example", "qumail-canary@bob.example"
LISTENERS = 'lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"'
STATUS = '\n[status]\nlisten = "127.0.0.1:0"\n'
ASKS = "\n[canary]\nevery = 60\n"


@dataclass
class BetweenSites(MailServer):
    """A mail server that may ask a milter; `kept` are mails that this has left to it, for those who stay."""

    listener: str = "incoming"
    kept: list[Got] = field(default_factory=list)

    async def handed(self, got: Got) -> str:
        """As any, or the last word of the milter."""
        self.lmtp = self.listener == "lmtp"
        return str(await in_thread(self._milter, got)) if self.listener == "milter" else await super().handed(got)

    def _milter(self, got: Got) -> str:
        header, _, body = got.message.decode().partition("\r\n\r\n")
        lines = header.replace("\r\n ", "\n ").replace("\r\n\t", "\n\t").split("\r\n")
        fields: list[Field] = [(name, value) for name, _, value in (line.partition(":") for line in lines)]
        mta = MTA(self.to)
        try:
            mta.negotiate()
            answer = mta.mail(
                fields, body, sender=f"<{got.sender}>", recipients=[f"<{each}>" for each in got.recipients]
            )
            mta.abort()
        finally:
            mta.close()
        if answer.word == "a":
            stay = tuple(each for each in got.recipients if f"<{each}>" not in answer.removed())
            self.kept.append(replace(got, recipients=stay))
        return answer.text or answer.word


Asked = Callable[[], Awaitable[StatusNumbers]]


@dataclass
class Scene:
    """Both sites; `wires` have what Alice and Bob have sent, `inboxes` what reached their mailboxes."""

    sites: tuple[Site, Site]
    addresses: list[dict[str, TCPAddress]]
    wires: tuple[BetweenSites, BetweenSites]
    inboxes: tuple[Sink, Sink]

    @property
    def questions(self) -> list[Got]:
        return [each for each in self.wires[0].got if each.recipients == (BOB,)]

    @property
    def receipts(self) -> list[Got]:
        return [each for each in self.wires[1].got if each.recipients == (ALICE,)]

    async def alice(self) -> StatusNumbers:
        return await numbers(self.addresses[0]["status"])

    async def bob(self) -> StatusNumbers:
        return await numbers(self.addresses[1]["status"])

    async def until(self, whose: Asked, name: str, value: float = 1, **labels: str) -> StatusNumbers:
        """Waits until a number is that; gives all."""
        return await until_it_says(whose, name, value, **labels)

    async def nothing_is_left(self) -> None:
        """No mailbox, no milter's mail server and no quarantine has anything of it, and nothing waits."""
        assert [each.got for each in self.inboxes] == [[], []]
        assert [each.kept for each in self.wires] == [[], []]
        for each in self.sites:
            async with assembly.parts(each.config, prefetch=False) as parts:
                assert await parts.store.quarantine.all() == []
                async with asyncio.timeout(30):  # what is counted is settled a moment later
                    while await parts.store.deliveries.waiting():
                        await asyncio.sleep(0.02)


async def until_it_says(whose: Asked, name: str, value: float = 1, **labels: str) -> StatusNumbers:
    async with asyncio.timeout(30):
        while (found := await whose()).sum(name, **labels) != value:
            await asyncio.sleep(0.02)
    return found


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits to be asked, and what is told is never a moment old."""
    monkeypatch.setattr(asking, "LOOK_S", 0.05)
    monkeypatch.setattr(exposition, "SHARE", float("inf"))


@pytest.fixture
def dishonest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays seal for everybody who claims to be the canary, as that of a dishonest peer may."""
    monkeypatch.setattr(Outgoing, "_check_sender", lambda *_: None)


@pytest.fixture
async def wires() -> AsyncIterator[tuple[BetweenSites, BetweenSites]]:
    """What Alice sends, and what Bob sends."""
    async with AsyncExitStack() as stack:
        both = (await stack.enter_async_context(BetweenSites()), await stack.enter_async_context(BetweenSites()))
        tasks = [asyncio.create_task(each.carry()) for each in both]
        yield both
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def inboxes() -> AsyncIterator[tuple[Sink, Sink]]:
    """Where mail to people of Alice's and of Bob's ends."""
    async with Sink() as first, Sink() as second:
        yield first, second


@dataclass
class Making:
    """Makes sites, and serves."""

    directory: Path
    kmes: DevelopmentKMEs
    identities: Identities
    wires: tuple[BetweenSites, BetweenSites]
    inboxes: tuple[Sink, Sink]

    def site(self, name: str, level: str = "aes", settings: str = "", directory: str = "") -> Site:
        """With all listeners, and these settings besides."""
        at = 0 if name == "alice" else 1
        site = make_site(
            self.directory / (directory or name), name, state=self.kmes.state_dir, kme_url=self.kmes.urls[at],
            outgoing=self.wires[at].address, incoming=self.inboxes[at].address, settings=LISTENERS,
            kme_settings="lag_patience = 0.1",
            policies={"default.toml": f'levels = ["{level}"]\n'}, identities=self.identities,
        )  # fmt: skip
        site.config_file.write_text(site.config_file.read_text() + STATUS + settings)
        return site

    @asynccontextmanager
    async def both(
        self, level: str = "aes", listener: str = "incoming", alice: str = ASKS, bob: str = ""
    ) -> AsyncIterator[Scene]:
        """Both sites serve in this process; Alice's asks."""
        sites = self.site("alice", level, alice), self.site("bob", level, bob)
        async with self.serving(sites, listener) as scene:
            yield scene

    @asynccontextmanager
    async def with_alice(self, alice: Site) -> AsyncIterator[Scene]:
        """The same with this site of Alice's."""
        async with self.serving((alice, self.site("bob")), "incoming") as scene:
            yield scene

    @asynccontextmanager
    async def serving(self, sites: tuple[Site, Site], listener: str) -> AsyncIterator[Scene]:
        """These serve, and get their mail through this listener."""
        names = {"incoming": "incoming", "lmtp": "incoming_lmtp", "milter": "incoming_milter"}
        async with AsyncExitStack() as stack:
            addresses: list[dict[str, TCPAddress]] = [{}, {}]
            for at in (1, 0):  # who asks comes last
                addresses[at] = await stack.enter_async_context(app.running(sites[at].config))
                wire = self.wires[1 - at]
                wire.to, wire.listener = addresses[at][names[listener]], listener
            yield Scene(sites, addresses, self.wires, self.inboxes)


@pytest.fixture
def making(
    tmp_path: Path,
    kmes: DevelopmentKMEs,
    identities: Identities,
    wires: tuple[BetweenSites, BetweenSites],
    inboxes: tuple[Sink, Sink],
) -> Making:
    """Sites with everything that a canary needs."""
    return Making(tmp_path, kmes, identities, wires, inboxes)


def asked_long_ago(site: Site) -> None:
    """As if an hour had passed since anybody was asked or answered."""
    with closing(sqlite3.connect(site.directory / "relay.db", isolation_level=None)) as connection:
        connection.execute("UPDATE canaries SET asked_at = asked_at - 61, answered_at = answered_at - 61")
