"""Keys that are not there yet: waited for by a few at a time.
Standard: lag between two KMEs ends soon; a key_ID that never comes must cost its KME and the relay little.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from relay.keys import Key
from relay.keys.group import FIRST_PAUSE_S, KMEGroup, Prefetch
from tests.testlib.fake_kme import FakeKME, FakeTime

PATIENCE_S = 30.0
PAUSE_S = FIRST_PAUSE_S / 2
"""Any pause for lag is longer than that, and any other is shorter."""


@pytest.fixture
async def group(kme: FakeKME, time: FakeTime) -> AsyncIterator[KMEGroup]:
    client = kme.client(timing=time.timing, retry_attempts=0, timeout=30)
    group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=PATIENCE_S, lag_waiting=2, timing=time.timing)
    yield group
    await group.close()


async def test_who_is_not_patient_asks_once(kme: FakeKME, group: KMEGroup, time: FakeTime) -> None:
    began = time.now
    assert await group.fetch("alice", ["never"], patient=False) == {}
    assert time.now - began < PAUSE_S
    assert len(kme.got("dec_keys")) == 1


async def test_keys_that_did_not_come_in_time_are_asked_for_once_when_they_are_tried_again(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    await group.fetch("alice", ["never"])
    began, calls = time.now, len(kme.got("dec_keys"))
    assert await group.fetch("alice", ["never"]) == {}
    assert time.now == began, "else forged mail takes a place again at each try"
    assert len(kme.got("dec_keys")) == calls + 1


async def test_of_many_keys_that_did_not_come_the_oldest_are_forgotten(
    group: KMEGroup, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.keys.group.REMEMBERED", 1)
    await group.fetch("alice", ["never"])
    await group.fetch("alice", ["never either"])
    began = time.now
    await group.fetch("alice", ["never"])
    assert time.now - began >= PATIENCE_S / 2


async def test_a_key_that_another_process_got_and_stored_meanwhile_is_waited_for_no_longer(
    kme: FakeKME, group: KMEGroup, time: FakeTime
) -> None:
    looked, began = 0, time.now

    async def elsewhere(key_IDs: Sequence[str]) -> dict[str, Key]:
        nonlocal looked
        looked += 1
        return {key_ID: Key(key_ID, b"k" * 32) for key_ID in key_IDs} if looked == 2 else {}

    assert list(await group.fetch("alice", ["given-away"], elsewhere=elsewhere)) == ["given-away"]
    assert time.now - began < 3 * FIRST_PAUSE_S + PAUSE_S
    assert len(kme.got("dec_keys")) == 2


async def test_no_more_wait_at_once_than_a_few_and_the_next_is_asked_for_once(
    kme: FakeKME, time: FakeTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    went_on = asyncio.Event()

    async def sleep(_: float) -> None:
        await went_on.wait()
        time.now += PATIENCE_S

    monkeypatch.setattr(time, "sleep", sleep)
    client = kme.client(timing=time.timing, retry_attempts=0, timeout=30)
    group = KMEGroup("g", [client], Prefetch(0, 0), lag_patience=PATIENCE_S, lag_waiting=2, timing=time.timing)
    waiting = [asyncio.create_task(group.fetch("alice", [f"never-{number}"])) for number in range(2)]
    while group._waiting < 2:
        await asyncio.sleep(0)
    assert await group.fetch("alice", ["never-2"]) == {}
    assert not any(each.done() for each in waiting)
    went_on.set()
    assert await asyncio.gather(*waiting) == [{}, {}]
    assert group._waiting == 0
    await group.close()


async def test_nobody_waits_any_more_once_the_relay_stops(group: KMEGroup, time: FakeTime) -> None:
    began = time.now
    waiting = asyncio.create_task(group.fetch("alice", ["never"]))
    while not group._waiting:
        await asyncio.sleep(0)
    group.stop_waiting()
    assert await waiting == {}
    assert await group.fetch("alice", ["never-2"]) == {}
    assert time.now - began < 1
