"""Alice, who seals at any level and for any recipient, and Bob's relays, whose opened mail ends in a next hop.
Standard: as everywhere, sites of tests/testlib/sites.py and development KMEs; time goes on when a test says so.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from relay.config import TCPAddress
from relay.journey import opening, planner
from relay.keys.pads import Pad, PadKey
from relay.keys.types import SealingKey
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from relay.process import assembly
from relay.schemes import KeysWithReserve
from relay.store.quarantine_table import Kept
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.testlib import mails
from tests.testlib.databases import Backend, sqlite_file
from tests.testlib.hop import Hop
from tests.testlib.identities import Identities
from tests.testlib.sites import ANY_SENDER, RelayProcess, Site, make_site, relay_process, serving
from tests.testlib.submit import SMTPReply

ANN, BEN, BEA, EVE = "ann@alice.example", "ben@bob.example", "bea@bob.example", "eve@bob.example"
OUTSIDER = "outsider@stranger.example"
NOWHERE = TCPAddress("127.0.0.1", 1)

IMPATIENT = """
from relay.store import claims
claims.PATIENCE_S = 0.0
"""
LEVELS = {
    "otp": 'levels = ["otp"]\n',
    "aes": 'levels = ["aes"]\n',
    "pqc": 'levels = ["pqc"]\n',
    "rsa": 'levels = ["rsa"]\n',
    "pqc+aes": 'levels = ["pqc+aes"]\n',
}
at_every_level = pytest.mark.parametrize("level", LEVELS)


class SameKeys:
    """Gives the keys of the first call each time: what a sender does whose KME was rolled back."""

    def __init__(self, keys: KeysWithReserve) -> None:
        self._keys = keys
        self._taken: SealingKey | None = None
        self._pad: list[PadKey] = []

    async def take(self, peer: str, *, level: str = "aes", size: int = 0, low_priority: bool = False) -> SealingKey:
        self._taken = self._taken or await self._keys.take(peer, level=level, size=size)
        return self._taken

    async def take_pad(self, peer: str, hidden: int, *, level: str = "otp", low_priority: bool = False) -> Pad:
        if not self._pad:
            self._pad = _copied((await self._keys.take_pad(peer, hidden)).keys)
        return Pad(tuple(_copied(self._pad)))

    async def can_supply(self, peer: str, hidden: int, *, low_priority: bool = False) -> int:
        return await self._keys.can_supply(peer, hidden, low_priority=low_priority)


def _copied(keys: Sequence[PadKey]) -> list[PadKey]:
    return [PadKey(key.reference, bytearray(key.octets)) for key in keys]


@dataclass
class Alice:
    """Seals as Alice's relay does; `directory` is for policies, `keys` where they come from if not from her KME."""

    parts: assembly.Parts
    directory: Path
    keys: SameKeys | None = None

    def with_the_same_keys(self) -> Self:
        """All that it seals is under the same keys."""
        return replace(self, keys=SameKeys(self.parts.keys))

    async def seal(
        self, *recipients: str, level: str = "aes", sender: str = ANN, message: bytes = mails.plain()
    ) -> bytes:
        """The sealed form of a message, as it would leave."""
        policies = self._policies(level)
        sealer = replace(self.parts.sealer, policies=lambda: policies, keys=self.keys or self.parts.keys)
        mail = Mail(Envelope(sender, tuple(map(Recipient, recipients or (BEN,)))), message)
        sealed = await sealer.seal(mail)
        assert not sealed.failures, sealed.failures
        [form] = sealed.copies
        assert form.protection == level
        return form.message

    def _policies(self, level: str) -> PolicySet:
        directory = self.directory / level
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "default.toml").write_text(LEVELS[level])
        return load_policies(directory, self.parts.config.peer_domains)


@pytest.fixture
async def alice(tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities) -> AsyncIterator[Alice]:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=NOWHERE,
        peer_settings=ANY_SENDER, identities=identities,
    )  # fmt: skip
    async with assembly.parts(site.config, prefetch=False) as parts:
        yield Alice(parts, tmp_path / "levels")


@dataclass
class Clock:
    """The time, which is `ahead` by so many seconds, for Bob's store and for the check of the window there."""

    ahead: float = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead

    def moved(self) -> type[datetime]:
        """The class datetime, whose now() is this clock's."""
        clock = self

        class Moved(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Moved:
                now = datetime.now(tz) + timedelta(seconds=clock.ahead)
                return cls.fromtimestamp(now.timestamp(), tz)

        return Moved


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Bob's clock, for relays in this process."""
    clock = Clock()
    monkeypatch.setattr(assembly, "open_store", partial(open_store, clock=clock))
    monkeypatch.setattr(opening, "datetime", clock.moved())
    return clock


@pytest.fixture
def alices_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock by which Alice seals."""
    clock = Clock()
    monkeypatch.setattr(planner, "datetime", clock.moved())
    return clock


@pytest.fixture
async def hop() -> AsyncIterator[Hop]:
    """The next hop of all Bob's relays."""
    async with Hop() as server:
        yield server


@dataclass
class Bob:
    """Bob's site: any number of relays over one database."""

    site: Site
    backend: Backend
    hop: Hop
    _twins: list[Site] = field(default_factory=list)

    @asynccontextmanager
    async def running(self, entry: str = "incoming") -> AsyncIterator[TCPAddress]:
        """A relay in this process; with PostgreSQL there may be several."""
        async with serving(self.site) as addresses:
            yield addresses[entry]

    @asynccontextmanager
    async def process(self) -> AsyncIterator[RelayProcess]:
        """A relay in a process of its own, which takes over what is to be taken over at once."""
        async with relay_process(self.site, before=IMPATIENT) as process:
            yield process

    def twin(self) -> Bob:
        """Another host of the site, with the same secret and database."""
        SiteSecret.load_or_create(self.site.config.store.secret)
        directory = self.site.directory.with_name(f"twin-{len(self._twins)}")
        shutil.copytree(self.site.directory, directory, ignore=shutil.ignore_patterns(".*"))  # what is being written
        self._twins.append(Site(directory))
        return replace(self, site=Site(directory))

    def configure(self, before: str, after: str) -> None:
        """An edit of Bob's relay.toml."""
        text = self.site.config_file.read_text()
        assert before in text
        self.site.config_file.write_text(text.replace(before, after))

    def add(self, tables: str) -> None:
        """Bob adds tables to it."""
        with self.site.config_file.open("a") as file:
            file.write(f"\n{tables}\n")

    @asynccontextmanager
    async def store(self, clock: Clock | None = None) -> AsyncIterator[Store]:
        """Bob's store, beside the relay's own."""
        config = self.site.config.store
        async with await open_store(config.database, SiteSecret.load(config.secret), clock=clock or time.time) as store:
            yield store

    async def kept(self) -> list[Kept]:
        """What is in quarantine."""
        async with self.store() as store:
            return await store.quarantine.all()

    async def reasons(self) -> list[str]:
        """Why, in no particular order."""
        return sorted(each.reason for each in await self.kept())

    @property
    def got(self) -> list[tuple[str, tuple[str, ...]]]:
        """Sender and recipients of each mail that the next hop has."""
        return [(each.sender, each.recipients) for each in self.hop.got]


@pytest.fixture(params=["sqlite", "postgresql"])
def bob(request: pytest.FixtureRequest, tmp_path: Path, kmes: DevelopmentKMEs, hop: Hop, identities: Identities) -> Bob:
    """Bob, over both back ends one after the other."""
    return make_bob(request, request.param, tmp_path / "bob", kmes, hop, identities)


@pytest.fixture
def bob_on_sqlite(
    request: pytest.FixtureRequest, tmp_path: Path, kmes: DevelopmentKMEs, hop: Hop, identities: Identities
) -> Bob:
    """Bob, where it is no matter what the store is."""
    return make_bob(request, "sqlite", tmp_path / "bob", kmes, hop, identities)


@pytest.fixture
def bob_on_postgresql(
    request: pytest.FixtureRequest, tmp_path: Path, kmes: DevelopmentKMEs, hop: Hop, identities: Identities
) -> Bob:
    """Bob, where there is more than one relay."""
    return make_bob(request, "postgresql", tmp_path / "bob", kmes, hop, identities)


def make_bob(
    request: pytest.FixtureRequest, kind: str, directory: Path, kmes: DevelopmentKMEs, hop: Hop, identities: Identities
) -> Bob:
    backend = sqlite_file(directory / "relay.db") if kind == "sqlite" else request.getfixturevalue("postgresql")
    site = make_site(
        directory, "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=hop.address, identities=identities,
        settings='lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"', kme_settings="lag_patience = 0.5\nprefetch = false",
    )  # fmt: skip
    bob = Bob(site, backend, hop)
    if kind == "postgresql":
        bob.configure('database = "relay.db"', f'database = "{backend.where}"')
    return bob


def alike(replies: Sequence[SMTPReply]) -> bool:
    """Whether nothing but the mail's number tells these apart."""
    return len({re.sub(r"\b[0-9a-f]{12}\b", "ID", str(reply)) for reply in replies}) == 1
