"""A KME that hangs: the next one is asked after its timeout, and fresh keys that it may have issued count as burnt.
Standard: ETSI GS QKD 014 V1.1.1; fresh keys are never asked for twice at one KME, keys by key_ID inside the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from relay.keys.fetch import Fetcher
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.ring import KeyRing, PeerKeys
from relay.keys.types import Timing
from tests.testlib.fake_kme import FakeKME
from tests.testlib.pools import accounts_agree

NO_PREFETCH = Prefetch(low=0, high=0)
TOO_LONG_S = 20.0


def _clients(kmes: tuple[FakeKME, FakeKME]) -> list[Any]:
    return [kme.client(name=name, timeout=0.4, timing=Timing()) for kme, name in zip(kmes, "ab", strict=True)]


@pytest.fixture
async def group(two_kmes: tuple[FakeKME, FakeKME]) -> AsyncIterator[KMEGroup]:
    group = KMEGroup("g", _clients(two_kmes), NO_PREFETCH)
    yield group
    await group.close()
    assert accounts_agree(group)


@pytest.mark.parametrize("hangs", [("enc_keys",), ("status", "enc_keys")])
async def test_fresh_keys_and_pads_come_from_the_next_kme_while_one_hangs(
    two_kmes: tuple[FakeKME, FakeKME], group: KMEGroup, hangs: tuple[str, ...]
) -> None:
    first, second = two_kmes
    for call in hangs:
        first.misbehave(call, "hang", times=None)
    async with asyncio.timeout(TOO_LONG_S):
        await group.take("bob")
        while not first.requests:
            await asyncio.sleep(0.01)
        before = len(first.requests)
        await group.take("bob")
        assert (await group.take_pad("bob", 500)).hides >= 500
    assert len(first.requests) == before, "it is late, and the others are asked first"
    assert len(second.got("enc_keys")) == 3


async def test_kmes_that_hang_keep_a_relay_that_stops_waiting_together(
    two_kmes: tuple[FakeKME, FakeKME], monkeypatch: pytest.MonkeyPatch
) -> None:
    together = asyncio.Barrier(4)
    closed = Fetcher.close

    async def close(self: Fetcher) -> None:
        await together.wait()
        await closed(self)

    monkeypatch.setattr(Fetcher, "close", close)
    groups = {name: KMEGroup(name, _clients(two_kmes), NO_PREFETCH) for name in ("g", "h")}
    async with asyncio.timeout(TOO_LONG_S):
        await KeyRing("alice", groups, {}).close()


async def test_another_group_is_asked_when_all_of_one_hangs(two_kmes: tuple[FakeKME, FakeKME]) -> None:
    first, _ = two_kmes
    first.misbehave("enc_keys", "hang", times=None)
    one, two = (KMEGroup(name, [client], NO_PREFETCH) for name, client in zip("ab", _clients(two_kmes), strict=True))
    ring = KeyRing("alice", {"a": one, "b": two}, {"bob": PeerKeys("bob", ("a", "b"))})
    async with asyncio.timeout(TOO_LONG_S):
        taken = [await ring.take("bob") for _ in range(3)]
    assert {each.reference.kme_group for each in taken} == {"b"}
    assert len(first.got("enc_keys")) == 1
    await ring.close()


async def test_keys_by_id_come_from_the_next_kme_and_the_first_is_not_asked_twice(
    two_kmes: tuple[FakeKME, FakeKME], group: KMEGroup
) -> None:
    first, second = two_kmes
    [(key_ID, octets)] = first.drawn(1)
    first.misbehave("dec_keys", "hang", times=None)
    async with asyncio.timeout(TOO_LONG_S):
        found = await group.fetch("alice", [key_ID])
    assert found[key_ID].key == octets
    assert (len(first.got("dec_keys")), len(second.got("dec_keys"))) == (1, 1)
