"""Keys that are not there yet: waited for once, by a few at a time, and not again at each try.
Standard: lag between two KMEs ends soon; a key_ID that never comes must cost its KME and the relay little.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from relay.keys import Key, lag
from relay.keys.group import KMEGroup, Prefetch
from tests.testlib.fake_kme import FakeKME, FakeTime

PATIENCE_S = 30.0
PAUSE_S = lag.FIRST_PAUSE_S / 2
"""Any pause for lag is longer than that, and any other is shorter."""


@pytest.fixture
async def group(kme: FakeKME, time: FakeTime) -> AsyncIterator[KMEGroup]:
    client = kme.client(timing=time.timing, retry_attempts=0, timeout=30)
    group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=PATIENCE_S, lag_waiting=2, timing=time.timing)
    yield group
    await group.close()


async def test_the_patience_with_a_key_counts_from_the_first_try_on(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    began = time.now
    assert await group.fetch("alice", ["never"]) == {}
    assert PATIENCE_S - 5 < time.now - began <= PATIENCE_S
    time.now += 60
    asked, began = len(kme.got("dec_keys")), time.now
    assert await group.fetch("alice", ["never"]) == {}
    assert time.now - began < PAUSE_S, "it was waited for long enough"
    assert len(kme.got("dec_keys")) == asked + 1, "it may have come meanwhile"


async def test_a_second_try_waits_for_the_rest_of_the_patience(group: KMEGroup, time: FakeTime) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await group.fetch("alice", ["never"])
    began = time.now
    await group.fetch("alice", ["never"])
    assert 0 < time.now - began <= PATIENCE_S


async def test_who_is_not_patient_asks_once(kme: FakeKME, group: KMEGroup, time: FakeTime) -> None:
    began = time.now
    assert await group.fetch("alice", ["never"], patient=False) == {}
    assert time.now - began < PAUSE_S
    assert len(kme.got("dec_keys")) == 1


async def test_a_key_that_another_process_got_and_stored_meanwhile_is_waited_for_no_longer(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    looked, began = 0, time.now

    async def elsewhere(key_IDs: Sequence[str]) -> dict[str, Key]:
        nonlocal looked
        looked += 1
        return {key_ID: Key(key_ID, b"k" * 32) for key_ID in key_IDs} if looked == 2 else {}

    assert list(await group.fetch("alice", ["given-away"], elsewhere=elsewhere)) == ["given-away"]
    assert time.now - began < 3 * lag.FIRST_PAUSE_S + PAUSE_S
    assert len(kme.got("dec_keys")) == 2


async def test_a_key_that_came_late_is_given_and_no_longer_remembered(kme: FakeKME, group: KMEGroup) -> None:
    kme.link.lag_asks = 3
    [(key_ID, octets)] = kme.drawn(1)
    assert (await group.fetch("alice", [key_ID]))[key_ID].key == octets
    assert not group._lag._attempts


async def test_only_so_many_wait_at_once_and_who_has_waited_longest_gives_way(
    kme: FakeKME, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = asyncio.Event()

    async def sleep(seconds: float) -> None:
        if seconds > PAUSE_S:
            await went_on.wait()
            time.now += PATIENCE_S
        await asyncio.sleep(0)

    monkeypatch.setattr(time, "sleep", sleep)
    client = kme.client(timing=time.timing, retry_attempts=0, timeout=30)
    group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=PATIENCE_S, lag_waiting=2, timing=time.timing)
    waiting = []
    for number in range(2):
        waiting.append(asyncio.create_task(group.fetch("alice", [f"never-{number}"])))
        while len(group._lag.slots) < number + 1:
            await asyncio.sleep(0)
    waiting.append(asyncio.create_task(group.fetch("alice", ["never-2"])))
    assert await waiting[0] == {}
    assert not any(each.done() for each in waiting[1:])
    went_on.set()
    assert await asyncio.gather(*waiting) == [{}, {}, {}]
    assert not group._lag.slots
    await group.close()


async def test_the_master_whose_mail_waits_most_gives_way(time: FakeTime) -> None:
    places = lag.LagRetries(PATIENCE_S, 3, time.timing)
    with places.slot("bob") as bob, places.slot("alice") as first, places.slot("alice") as second:
        with places.slot("alice") as third:
            assert [each.evicted.done() for each in (bob, first, second, third)] == [False, True, False, False]
        assert len(places.slots) == 2


async def test_nobody_waits_any_more_once_the_relay_stops(group: KMEGroup, time: FakeTime) -> None:
    began = time.now
    waiting = asyncio.create_task(group.fetch("alice", ["never"]))
    while not group._lag.slots:
        await asyncio.sleep(0)
    group.stop_waiting()
    assert await waiting == {}
    assert await group.fetch("alice", ["never-2"]) == {}
    assert time.now - began < 1


async def test_of_many_unknown_keys_only_the_latest_are_remembered(
    kme: FakeKME, group: KMEGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lag, "REMEMBERED", 3)
    for number in range(5):
        await group.fetch("alice", [f"never-{number}"])
    asked = len(kme.got("dec_keys"))
    for number in (2, 3, 4):
        await group.fetch("alice", [f"never-{number}"])
    assert len(kme.got("dec_keys")) == asked + 3
    await group.fetch("alice", ["never-1"])
    assert len(kme.got("dec_keys")) > asked + 4
