"""Of all relays that share a store one asks a peer, one answers it, and a receipt counts once, whatever clocks do.
Standard: the same over SQLite and PostgreSQL; two open stores stand for two relays of a site.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.databases import Backend

EVERY, LIMIT = 900.0, 1500.0
FIRST, SECOND = bytes(32), bytes([1]) * 32


@pytest.fixture
async def other(store: Store, backend: Backend, secret: SiteSecret, clock: Clock) -> AsyncIterator[Store]:
    """Another relay's."""
    async with await open_store(backend.where, secret, clock=clock) as opened:
        yield opened


async def test_one_of_two_relays_asks_and_each_knows_of_it(store: Store, other: Store, clock: Clock) -> None:
    for _ in range(3):
        asked = await asyncio.gather(
            *(each.canaries.ask("bob", FIRST, EVERY, LIMIT) for each in (store, other) for _ in "123")
        )
        assert sum(asked) == 1
        for each in (store, other):
            assert (await each.canaries.read())["bob"].is_out
        clock.now += EVERY
    assert await store.canaries.ask("carol", FIRST, EVERY, LIMIT), "each peer is asked by itself"


@pytest.mark.promise("A forged or repeated canary counts for nothing, and nobody answers it")
async def test_a_receipt_counts_once_for_the_peer_that_was_asked_and_no_other(
    store: Store, other: Store, clock: Clock
) -> None:
    for peer, nonce in (("bob", FIRST), ("carol", SECOND)):
        assert await store.canaries.ask(peer, nonce, EVERY, LIMIT)
    clock.now += 2.5
    assert await other.canaries.returned("carol", FIRST, clock.now) is None
    assert await other.canaries.returned("mallory", FIRST, clock.now) is None
    counted = await asyncio.gather(*(each.canaries.returned("bob", FIRST, clock.now) for each in (store, other) * 3))
    assert sorted(counted, key=str) == [2.5, *[None] * 5]
    rows = await store.canaries.read()
    assert (rows["bob"].is_out, rows["bob"].returned_at, rows["bob"].round_trip) == (False, clock.now, 2.5)
    assert (rows["carol"].is_out, rows["carol"].returned_at) == (True, None)
    assert "mallory" not in rows or not rows["mallory"].is_out


async def test_what_was_asked_before_the_last_question_counts_no_more(store: Store, clock: Clock) -> None:
    await store.canaries.ask("bob", FIRST, EVERY, LIMIT)
    clock.now += EVERY
    await store.canaries.ask("bob", SECOND, EVERY, LIMIT)
    assert await store.canaries.returned("bob", FIRST, clock.now) is None
    assert await store.canaries.returned("bob", SECOND, clock.now - 5) == 0.0, "a clock was set back meanwhile"


async def test_a_peer_gets_one_receipt_in_its_time_from_all_relays_together(
    store: Store, other: Store, clock: Clock
) -> None:
    for _ in range(3):
        answered = await asyncio.gather(*(each.canaries.may_answer("bob", 50.0) for each in (store, other) * 3))
        assert sum(answered) == 1
        clock.now += 49
        assert not await store.canaries.may_answer("bob", 50.0)
        clock.now += 1
    assert (await store.canaries.read())["bob"].age(clock.now, LIMIT) is None, "to answer is not to ask"


async def test_its_age_is_since_the_last_came_back_or_since_asking_began(store: Store, clock: Clock) -> None:
    async def age() -> float | None:
        return (await store.canaries.read())["bob"].age(clock.now, LIMIT)

    await store.canaries.ask("bob", FIRST, EVERY, LIMIT)
    clock.now += EVERY
    assert await age() == EVERY
    await store.canaries.ask("bob", SECOND, EVERY, LIMIT)
    assert await age() == EVERY, "that one is out is no heartbeat"
    clock.now += 10
    await store.canaries.returned("bob", SECOND, clock.now)
    assert await age() == 0
    clock.now += LIMIT
    assert await age() is None, "nobody has asked for so long"
    clock.now += 86_400
    await store.canaries.ask("bob", FIRST, EVERY, LIMIT)
    assert await age() == 0, "a relay that was away for a day has missed nothing"


async def test_a_clock_that_was_set_back_by_a_day_keeps_nobody_from_asking_and_answering(
    store: Store, clock: Clock
) -> None:
    await store.canaries.ask("bob", FIRST, EVERY, LIMIT)
    await store.canaries.may_answer("bob", 50.0)
    clock.now -= 86_400
    assert (await store.canaries.read())["bob"].is_due(clock.now, EVERY)
    assert await store.canaries.ask("bob", SECOND, EVERY, LIMIT)
    assert await store.canaries.may_answer("bob", 50.0)
    assert (await store.canaries.read())["bob"].age(clock.now, LIMIT) == 0
