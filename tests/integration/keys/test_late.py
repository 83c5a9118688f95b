"""A KME that hangs: the next one is asked after the usual time of an answer, and what the first gives is not lost.
Standard: ETSI GS QKD 014 V1.1.1; fresh keys are never asked for twice at one KME, keys by key_ID inside the group.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from relay.errors import KeyUnavailable
from relay.keys.faults import Call
from relay.keys.fetch import Fetcher
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.health import TimeLimit
from relay.keys.ring import KeyRing, PeerKeys
from relay.keys.types import Timing
from tests.testlib.fake_kme import FakeKME
from tests.unit.keys.test_group import accounts_agree, settled
from tests.unit.keys.test_ring import MemoryStore

NO_PREFETCH = Prefetch(low=0, high=0)
TOO_LONG_S = 20.0
"""The limits of the KMEs here are far above this, and the usual times far below."""


def _clients(kmes: tuple[FakeKME, FakeKME], usual: float = 0.4) -> list[Any]:
    slow = {"timeout": 90, "min_timeout": usual, "timing": Timing()}
    return [kme.client(name=name, **slow) for kme, name in zip(kmes, "ab", strict=True)]


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


async def test_a_pad_that_is_the_first_need_does_not_wait_for_status_and_keys_in_turn(
    two_kmes: tuple[FakeKME, FakeKME], group: KMEGroup
) -> None:
    first, second = two_kmes
    first.misbehave("status", "hang", times=None)
    first.misbehave("enc_keys", "hang", times=None)
    async with asyncio.timeout(TOO_LONG_S):
        await group.take_pad("bob", 500)
    assert len(first.requests) <= 2
    assert len(second.got("enc_keys")) == 1


async def test_a_pad_of_many_requests_is_not_late_while_each_of_them_is_answered(
    two_kmes: tuple[FakeKME, FakeKME],
) -> None:
    first, second = two_kmes
    first.limits |= {"max_key_per_request": 1, "max_key_size": 1024}
    first.latency = 0.25
    group = KMEGroup("g", _clients(two_kmes, usual=2), NO_PREFETCH)
    async with asyncio.timeout(TOO_LONG_S):
        assert (await group.take_pad("bob", 112 * 12)).hides >= 112 * 12
    await group.close()
    assert len(first.got("enc_keys")) == 12
    assert second.requests == []


async def test_keys_that_come_late_are_kept_for_the_next_mail(
    two_kmes: tuple[FakeKME, FakeKME], group: KMEGroup
) -> None:
    first, second = two_kmes
    await group.pools[0].store("bob").limits()
    first.latency = 0.9
    second.latency = 0.0
    await group.take("bob")
    assert len(second.got("enc_keys")) == 1
    await settled(group)
    assert group.pools[0].ready("bob", 256) == 1
    assert group.pools[0].client.accounts.totals()["burnt"] == 0
    await group.take("bob")
    assert len(second.got("enc_keys")) == 1


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


async def test_a_late_answer_to_dec_keys_is_kept_and_found_there(two_kmes: tuple[FakeKME, FakeKME]) -> None:
    """The first KME gives the key after all: the second cannot have it, and the next try finds it in the store."""
    first, second = two_kmes
    [(key_ID, octets)] = first.drawn(1)
    first.latency = 1.0
    store, kept = MemoryStore(), asyncio.Event()

    async def keep(master_sae: str, keys: Any) -> None:
        await store.put("g", master_sae, keys)
        kept.set()

    group = KMEGroup("g", _clients(two_kmes), NO_PREFETCH, lag_patience=0, keep=keep)
    second.misbehave("dec_keys", "http", code=404)
    with suppress(KeyUnavailable):  # late, or not known: either holds the mail
        await group.fetch("alice", [key_ID])
    async with asyncio.timeout(TOO_LONG_S):
        await kept.wait()
    assert store.keys == {("g", "alice", key_ID): octets}
    assert len(first.got("dec_keys")) == 1
    await group.close()


def test_the_usual_time_of_a_kme_with_the_usual_settings_is_below_three_seconds() -> None:
    unknown, cloud, sluggish = TimeLimit(10, 2), TimeLimit(10, 2), TimeLimit(10, 2)
    for seconds in (0.65, 0.4, 0.41, 0.4, 0.42):
        cloud.answered(seconds)
    for _ in range(30):
        sluggish.answered(4.0)
    assert (unknown.usual, cloud.usual < 3, 4 < sluggish.usual < 10) == (2, True, True)


async def test_a_status_is_given_up_after_that_time(two_kmes: tuple[FakeKME, FakeKME]) -> None:
    [client, _] = _clients(two_kmes)
    assert client.time_limits[Call.STATUS].seconds == 0.4
    assert client.time_limits[Call.ENC_KEYS].seconds == 90
