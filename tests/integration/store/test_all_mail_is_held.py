"""What a serving relay does with mail whose bookkeeping cannot be kept: all of it is held, as the alarm says.
Standard: the same for each level, both directions, and mail that needs no key.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.sink import Sink
from tests.testlib.sites import SOON_LOCKED_OUT, Site, make_site, relay_process
from tests.testlib.submit import submit

LOOKS_EACH_TIME = (
    "from relay.store import database, delivery_records, received; "
    "database.FILE_LOOK_S = delivery_records.PROOF_S = received.PROOF_S = 0.0"
)
"""Run before a relay, this has no mail go by what was so a second ago."""
LEVELS = {
    "ben@bob.example": "bob.example/ben",
    "otp@bob.example": "bob.example/otp",
    "pqc@bob.example": "bob.example/pqc",
    "rsa@bob.example": "bob.example/rsa",
    "press@open.example": "open.example",
}
POLICIES = {
    "default.toml": 'levels = ["plaintext"]\n',
    "bob.example/ben.toml": 'levels = ["aes"]\n',
    "bob.example/otp.toml": 'levels = ["otp"]\n',
    "bob.example/pqc.toml": 'levels = ["pqc"]\n',
    "bob.example/rsa.toml": 'levels = ["rsa"]\n',
    "open.example.toml": 'levels = ["plaintext"]\n',
}


@pytest.fixture
def sites(tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, wire: Sink, sink: Sink) -> tuple[Site, Site]:
    """Alice, whose mail goes to `wire`, and Bob, whose opened mail goes to `sink`."""
    alice, bob = (
        make_site(
            tmp_path / name, name, state=kmes.state_dir, kme_url=url, policies=POLICIES, identities=identities,
            outgoing=next_hop.address, incoming=next_hop.address,
        )
        for name, url, next_hop in (("alice", kmes.urls[0], wire), ("bob", kmes.urls[1], sink))
    )  # fmt: skip
    return alice, bob


@asynccontextmanager
async def relays(*sites: Site) -> AsyncIterator[tuple[TCPAddress, TCPAddress]]:
    """Alice's outgoing and Bob's incoming address."""
    alice, bob = sites
    before = f"{SOON_LOCKED_OUT}; {LOOKS_EACH_TIME}"
    async with relay_process(alice, before=before) as sends, relay_process(bob, before=before) as opens:
        yield sends.addresses["outgoing"], opens.addresses["incoming"]


async def codes(address: TCPAddress, content: dict[str, bytes]) -> dict[str, int]:
    """The reply to the content for each recipient."""
    return {to: (await submit(address, message, recipients=[to])).code for to, message in content.items()}


def unlike(word: str) -> dict[str, bytes]:
    """A mail for each recipient that none has had yet."""
    return {to: mails.plain().replace(b"figures", f"{word} for {to}".encode()) for to in LEVELS}


async def test_while_the_file_of_the_store_is_away_nothing_leaves_in_either_direction(
    sites: tuple[Site, Site], wire: Sink, sink: Sink
) -> None:
    async with relays(*sites) as (outgoing, incoming):
        assert set((await codes(outgoing, unlike("first"))).values()) == {250}
        arrives = dict(zip(LEVELS, (got.message for got in wire.got), strict=True))
        wire.got.clear()
        for site in sites:
            (site.directory / "relay.db").rename(site.directory / "elsewhere")
        assert await codes(outgoing, unlike("second")) == dict.fromkeys(LEVELS, 451)
        assert (await submit(outgoing, mails.plain(), recipients=[*LEVELS])).code == 451
        assert await codes(incoming, arrives) == dict.fromkeys(LEVELS, 451)
        assert [*wire.got, *sink.got] == []
        for site in sites:
            (site.directory / "elsewhere").rename(site.directory / "relay.db")
        assert set((await codes(outgoing, unlike("second"))).values()) == {250}
        assert set((await codes(incoming, arrives)).values()) == {250}
    assert len(wire.got) == len(sink.got) == len(LEVELS)


async def test_while_another_program_locks_the_store_nothing_leaves(sites: tuple[Site, Site], wire: Sink) -> None:
    async with relays(*sites) as (outgoing, _):
        with closing(sqlite3.connect(sites[0].directory / "relay.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await codes(outgoing, unlike("held")) == dict.fromkeys(LEVELS, 451)
            assert wire.got == []
        assert set((await codes(outgoing, unlike("held"))).values()) == {250}
