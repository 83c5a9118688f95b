"""The history has each mail once, under kills and clock steps, and never grows beyond its rows.
Standard: the same over SQLite and PostgreSQL; two open stores stand for two relays of a site.
"""

from __future__ import annotations

import asyncio
import math

import pytest

from relay.errors import StoreUnavailable
from relay.store import history
from relay.store.history import KEPT, Stretch
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.databases import Backend

AES = ("outgoing", "aes", "delivered")
OTP = ("outgoing", "otp", "held")
POOL = ("kme", "bob")


async def mails(store: Store, seconds: int = 3600) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for stretch in await store.history.read():
        if stretch.seconds == seconds:
            found = {each: found.get(each, 0) + stretch.mails.get(each, 0) for each in {*found, *stretch.mails}}
    return found


async def test_what_is_counted_is_written_once_and_outlives_the_relay(
    store: Store, backend: Backend, secret: SiteSecret, clock: Clock
) -> None:
    for number in (3, 3, 5):
        await store.history.add("first", {AES: number}, {})
    async with await open_store(backend.where, secret, clock=clock) as anew:
        await anew.history.add("first", {AES: 6, OTP: 1}, {})  # a worker in the place of one that was killed
        await anew.history.add("second", {AES: 2}, {})  # a relay that was started after it
        await store.history.add("first", {AES: 4}, {})  # what another process has seen a moment earlier
        assert await mails(anew) == await mails(anew, 300) == {AES: 8, OTP: 1}


async def test_relays_that_share_a_store_add_up_and_see_what_the_others_wrote(
    store: Store, backend: Backend, secret: SiteSecret, clock: Clock
) -> None:
    async with await open_store(backend.where, secret, clock=clock) as other:
        for number in range(1, 6):
            seen = await asyncio.gather(
                store.history.add("a", {AES: number}, {POOL: (50 - number, math.inf)}),
                other.history.add("b", {AES: 10 * number}, {POOL: (90, 600.0 / number)}),
            )
        both = max(seen, key=lambda each: max(sum(stretch.mails.values()) for stretch in each))
        assert {each.mails[AES] for each in both} == {55}
        assert {each.pools[POOL] for each in both} == {(45, 120.0)}


async def test_keys_are_the_fewest_there_were(store: Store, clock: Clock) -> None:
    for keys, empty in ((9, math.inf), (4, 500.0), (7, 800.0)):
        await store.history.add("board", {}, {POOL: (keys, empty)})
    assert {each.pools[POOL] for each in await store.history.read()} == {(4, 500.0)}
    clock.now += 3600
    await store.history.add("board", {}, {POOL: (8, math.inf)})
    assert [each.pools[POOL] for each in sorted(await store.history.read(), key=lambda each: each.at)][-2:] == [
        (8, math.inf), (8, math.inf),
    ]  # fmt: skip


async def test_it_is_bounded_and_keeps_the_newest(store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", {300: 4, 3600: 3})
    monkeypatch.setattr(history, "BOARDS", 2)
    monkeypatch.setattr(history, "MOST_POOLS", 2)
    began = clock.now
    for number in range(60):
        clock.now = began + 300 * number
        await store.history.add(f"board {number}", {AES: 1}, {(f"kme {each}", "bob"): (1, 1.0) for each in range(5)})
    found = await store.history.read()
    assert [len([each for each in found if each.seconds == seconds]) for seconds in (300, 3600)] == [4, 3]
    assert max(each.at for each in found) == clock.now // 300 * 300
    assert {len(each.pools) for each in found} == {2}
    assert await mails(store) == {AES: 12 + 12 + 2}
    await store.history.add("board 59", {AES: 1}, {})
    assert await mails(store, 300) == {AES: 4}, "the boards that wrote last are known"


async def test_a_clock_that_is_ahead_for_a_while_takes_no_history_with_it(store: Store, clock: Clock) -> None:
    began = clock.now
    await store.history.add("board", {AES: 5}, {})
    clock.now = began + 10 * 365 * 86_400
    await store.history.add("board", {AES: 6}, {})
    clock.now = began - 365 * 86_400
    await store.history.add("board", {AES: 7}, {})
    clock.now = began
    await store.history.add("board", {AES: 8}, {})
    now = [each for each in await store.history.read() if each.at <= began < each.at + each.seconds]
    assert [each.mails[AES] for each in now] == [6, 6]
    assert await mails(store) == {AES: 8}


async def test_a_store_that_cannot_be_written_counts_nothing_twice(
    store: Store, backend: Backend, clock: Clock
) -> None:
    await store.history.add("board", {AES: 1}, {})
    await backend.run("ALTER TABLE history RENAME TO away")
    with pytest.raises(StoreUnavailable):
        await store.history.add("board", {AES: 2}, {})
    await backend.run("ALTER TABLE away RENAME TO history")
    await store.history.add("board", {AES: 3}, {})
    assert await mails(store) == {AES: 3}


def test_a_row_of_a_large_site_is_small() -> None:
    levels, outcomes = ("otp", "aes", "pqc+aes", "rsa+aes", "pqc", "rsa", "plaintext", "none"), ("delivered", "held")
    counted: dict[tuple[str, ...], float] = {
        ("outgoing", level, outcome): 123_456.0 for level in levels for outcome in outcomes
    }
    pools: dict[tuple[str, ...], tuple[float, float]] = {
        (f"kme-of-some-name-{each}", "peer-of-some-name"): (123_456.0, 123_456.5) for each in range(200)
    }
    told = history._as_text(Stretch(300, 0).with_more(counted, pools))
    assert len(told) < 10_000
    assert sum(KEPT.values()) * len(told) < 16 * 2**20
