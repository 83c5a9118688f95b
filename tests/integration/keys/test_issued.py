"""A KME that gives keys which it gave before: no relay of the site uses one twice, and no restart makes them forget.
Standard: ETSI GS QKD 014 V1.1.1 does not say what a KME does after it was set back to a backup; keys are used once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import LogCapture

from relay.errors import KeyUnavailable, KMEBadReply, StoreUnavailable
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.ring import KeyRing
from relay.keys.types import Key
from relay.kme import DevelopmentKME, LinkSettings, SimulatedLink
from relay.kme.certificates import prepare, server_context
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.store.conftest import (
    secret as secret,  # fixtures
    secret_path as secret_path,
)
from tests.testlib import mails
from tests.testlib.counted import burnt_by_cause
from tests.testlib.databases import Backend
from tests.testlib.fake_kme import FakeKME, FakeTime
from tests.testlib.pools import accounts_agree
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site


class Rewound(SimulatedLink):
    """Keys that are given again, in their order, once the KME was set back; `change` is made of their IDs then."""

    def __init__(self) -> None:
        super().__init__(LinkSettings(stored_key_limit=100_000_000), time.monotonic)
        self.given: list[Key] = []
        self.again: list[Key] = []

    def set_back(self, *, upper: bool = False, renamed: bool = False) -> None:
        """As a backup restores it that was made before the first key."""
        self.again = [
            replace(key, key_ID=f"renamed-{key.key_ID}" if renamed else key.key_ID.upper() if upper else key.key_ID)
            for key in self.given
        ]

    def issue(self, *, number: int, **wanted: Any) -> list[Key]:
        before, self.again = self.again[:number], self.again[number:]
        new = super().issue(number=number - len(before), **wanted)
        self.given += new
        return before + new


@dataclass
class World:
    """Alice's KME, her site, and the store that her relays share."""

    pair: Rewound
    kme: DevelopmentKME
    site: Site

    @asynccontextmanager
    async def keys(self) -> AsyncIterator[KeyRing]:
        """The keys of a relay of hers that runs."""
        async with assembly.parts(self.site.config, prefetch=False) as parts:
            yield parts.keys


@pytest.fixture
async def world(tmp_path: Path, backend: Backend, sink: Sink) -> AsyncIterator[World]:
    prepare(tmp_path, "127.0.0.1")
    pair = Rewound()
    async with DevelopmentKME("KM1", pair, server_context(tmp_path, "KM1"), other="KM2") as kme:
        site = make_site(tmp_path / "alice", "alice", state=tmp_path, kme_url=kme.url, outgoing=sink.address)
        text = site.config_file.read_text()
        site.config_file.write_text(text.replace('database = "relay.db"', f'database = "{backend.where}"'))
        yield World(pair, kme, site)


async def _taken(keys: KeyRing, number: int) -> list[Key]:
    """`number` keys, in as many KME requests as that takes."""
    found: list[Key] = []
    async with asyncio.timeout(60):
        while len(found) < number:
            try:
                found.append((await keys.take("bob", level="otp")).key)
            except KeyUnavailable:
                await asyncio.sleep(0.05)  # it gave only old ones, and has a rest
    return found


HOW: list[Mapping[str, bool]] = [{}, {"upper": True}, {"renamed": True}]


@pytest.mark.promise("Keys in flight are not used twice after a crash")
@pytest.mark.parametrize("how", HOW, ids=["same", "in upper case", "renamed"])
async def test_a_kme_that_is_set_back_over_a_restart_of_the_relay_gives_no_key_twice(
    world: World, log: LogCapture, how: Mapping[str, bool]
) -> None:
    async with world.keys() as keys:
        before = await _taken(keys, 4)
    world.pair.set_back(**how)
    async with world.keys() as keys:
        after = await _taken(keys, 4)
        [pool] = keys.groups["alice-bob"].pools
        assert burnt_by_cause(pool.client.accounts)["seen before"] == 4
    assert not {key.key for key in before} & {key.key for key in after}
    assert not {key.key_ID.casefold() for key in before} & {key.key_ID.casefold() for key in after}
    assert sum(entry["number"] for entry in log.entries if entry["event"] == "keys_seen_before") == 4


@pytest.mark.promise("Keys in flight are not used twice after a crash")
async def test_two_relays_of_a_site_use_no_key_that_the_other_was_given(world: World) -> None:
    async with world.keys() as one, world.keys() as two:
        before = await _taken(one, 4)
        world.pair.set_back()
        after = await _taken(two, 4)
    assert not {key.key for key in before} & {key.key for key in after}


async def test_a_key_is_on_the_disk_before_it_can_be_used(
    kme: FakeKME, time: FakeTime, backend: Backend, secret: SiteSecret
) -> None:
    """So that a relay which is killed in between can only burn it."""
    seen: list[tuple[object, int]] = []
    async with await open_store(backend.where, secret) as store:
        group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(0, 0), timing=time.timing)

        class Watched:
            async def ready(self) -> None:
                pass

            async def remember(self, of: str, keys: Mapping[str, bytes]) -> frozenset[str]:
                before = await store.issued_keys.remember(of, keys)
                seen.append((await backend.run("SELECT count(*) FROM issued_keys"), group.pools[0].ready("bob", 256)))
                return before

        group.remember_in(Watched())
        await group.take("bob")
        await group.close()
    assert seen == [([(1,)], 0)]


async def test_no_key_is_drawn_while_the_store_cannot_be_written(
    kme: FakeKME, time: FakeTime, backend: Backend, secret: SiteSecret
) -> None:
    tables = "LOCK TABLE issued_keys, store_written IN EXCLUSIVE MODE"
    busy = replace(backend, lock=tables) if backend.name == "postgresql" else backend
    group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(0, 0), timing=time.timing)
    async with await open_store(backend.where, secret, busy_timeout=0.05) as store:
        group.remember_in(store.issued_keys)
        await group.take("bob")
        async with busy.locked():
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await group.take("bob")
                time.now += 10
        assert len(kme.got("enc_keys")) == 1
        await group.take("bob")
        await group.close()
    assert accounts_agree(group)


class Forgetful:
    """A store that can be written until keys have come."""

    async def ready(self) -> None:
        pass

    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        raise StoreUnavailable("disk full")


async def test_keys_that_cannot_be_remembered_are_burnt_and_counted(kme: FakeKME, time: FakeTime) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(4, 16), timing=time.timing)
    group.remember_in(Forgetful())
    waiting = [asyncio.create_task(group.take("bob")) for _ in range(5)]
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    with pytest.raises(StoreUnavailable, match="not asked again"):
        await group.take("bob")
    assert len(kme.got("enc_keys")) == 1, "all share one attempt, and then it rests"
    await group.close()
    assert burnt_by_cause(group.pools[0].client.accounts) == {"not remembered": 5}
    assert accounts_agree(group)


class Busy(Forgetful):
    """A store that cannot be written for some time after keys have come; it knows what it was asked to remember."""

    def __init__(self) -> None:
        self.busy = True
        self.remembered: list[set[str]] = []

    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        if self.busy:
            raise StoreUnavailable("locked")
        self.remembered.append(set(keys))
        return frozenset()


async def test_keys_that_could_not_be_remembered_are_burnt_and_counted(kme: FakeKME, time: FakeTime) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(0, 0), timing=time.timing)
    store = Busy()
    group.remember_in(store)
    with pytest.raises(StoreUnavailable):
        await group.take("bob")
    time.now += 10
    store.busy = False
    key = await group.take("bob")
    assert store.remembered == [{key.key_ID}]
    await group.close()
    assert burnt_by_cause(group.pools[0].client.accounts) == {"not remembered": 1}
    assert accounts_agree(group)


async def test_mail_is_held_and_not_sealed_otherwise_while_keys_cannot_be_remembered(world: World) -> None:
    world.site.write_policies({"default.toml": 'levels = ["aes", "otp"]\n'})
    envelope = Envelope("ann@alice.example", (Recipient("ben@bob.example"),))
    async with assembly.parts(world.site.config, prefetch=False) as parts:
        parts.keys.groups["alice-bob"].remember_in(Forgetful())
        sealed = await parts.sealer.seal(Mail(envelope, mails.plain()))
    assert not sealed.copies
    assert {type(each) for each in sealed.failures.values()} == {StoreUnavailable}


async def test_without_a_store_keys_are_remembered_for_as_long_as_the_group_lives(kme: FakeKME, time: FakeTime) -> None:
    group = KMEGroup("g", [kme.client(timing=time.timing, timeout=60)], Prefetch(0, 0), timing=time.timing)
    await group.take("bob")
    kme.misbehave("enc_keys", "same_again")
    with pytest.raises(KMEBadReply):
        await group.take("bob")
    await group.close()
