"""What was spent of a rate adds up over processes, is forgotten when its time is over, and takes bounded room.
Standard: two open stores stand for two processes of a site.
"""

from __future__ import annotations

import pytest

from relay.entry.smtp.rates import HourlyRate, Seen, SharedRates, named
from relay.errors import StoreUnavailable
from relay.store import rate_limits
from relay.store.rate_limits import RateLimits, Spending
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.conftest import Clock
from tests.testlib.databases import Backend


class Process:
    """A rate of ten an hour and names seen, shared over a store."""

    def __init__(self, store: Store, clock: Clock, number: int = 10) -> None:
        self.rate = HourlyRate(number, "mails", key=b"k", clock=clock)
        self.seen = Seen("places", key=b"k", clock=clock)
        self.shared = SharedRates(store.rate_limits, (self.rate, self.seen))

    def take(self, number: int, name: str = "ann") -> None:
        for _ in range(number):
            assert self.rate.take(name)

    def left(self, name: str = "ann") -> int:
        number = 0
        while self.rate.take(name):
            number += 1
        for _ in range(number):
            self.rate.give_back(name)
        return number


async def test_what_two_processes_take_adds_up_and_outlives_both(
    store: Store, backend: Backend, secret: SiteSecret, clock: Clock
) -> None:
    async with await open_store(backend.where, secret, clock=clock) as other:
        first, second = Process(store, clock), Process(other, clock)
        for process, number in ((first, 3), (second, 4)):
            process.take(number)
            process.seen.add("home")
        first.take(1, "ben")
        second.rate.give_back("nobody")
        for process in (first, second, first):
            await process.shared.exchange()
        assert (first.left(), second.left(), second.left("ben"), second.left("carol")) == (3, 3, 9, 10)
        first.take(2)
        first.rate.give_back("ann")
        second.take(1)
        await first.shared.exchange()
        await second.shared.exchange()
        assert second.left() == 1
        for _ in range(3):  # nothing is counted twice
            await second.shared.exchange()
            await first.shared.exchange()
        assert (first.left(), second.left()) == (1, 1)
    third = Process(store, clock)
    await third.shared.exchange()
    assert (third.left(), "home" in third.seen, "work" in third.seen) == (1, True, False)
    clock.now += 1800
    assert third.left() == 6


async def test_while_the_store_is_away_each_process_counts_and_tells_it_later(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: RateLimits, spendings: object) -> None:
        raise StoreUnavailable("disk full")

    first, second = Process(store, clock), Process(store, clock)
    with monkeypatch.context() as patched:
        patched.setattr(RateLimits, "add", full)
        for number in (3, 4):
            first.take(number)
            first.seen.add("home")
            with pytest.raises(StoreUnavailable):
                await first.shared.exchange()
        assert first.left() == 3
    await first.shared.close()
    await second.shared.exchange()
    assert (second.left(), "home" in second.seen) == (3, True)


async def test_rows_are_few_and_go_when_their_time_is_over(
    store: Store, backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MOST_ROWS", 50)
    process = Process(store, clock)
    for number in range(2500):
        process.take(1, f"2001:db8:{number:x}::/64")
    process.take(5)
    process.seen.add("home")
    await process.shared.exchange()
    late = Process(store, clock)
    await late.shared.exchange()
    assert [late.left(name) for name in ("2001:db8:9c3::/64", "2001:db8:0::/64", "ann")] == [9, 9, 5]
    assert await store.rate_limits.expire() == 2451
    names = [row[0] for row in await backend.run("SELECT name FROM rate_limits")]
    assert len(names) == 51
    assert all(b"ann" not in bytes(name) for name in names)
    again = Process(store, clock)
    await again.shared.exchange()
    assert again.left() == 5, "what would be forgotten last stays"
    assert "home" in again.seen, "one kind takes no room from another"
    clock.now += 1801
    assert await store.rate_limits.expire() == 50


async def test_a_clock_that_was_wrong_for_a_while_shuts_nobody_out_for_longer_than_an_hour(
    store: Store, clock: Clock
) -> None:
    clock.now += 7 * 86400
    await store.rate_limits.add([Spending("mails", named(b"k", "mails", "ann"), 3600.0)])
    clock.now -= 7 * 86400
    process = Process(store, clock)
    await process.shared.exchange()
    assert process.left() == 0
    assert await store.rate_limits.expire() == 0
    clock.now += 1800
    await process.shared.exchange()
    assert process.left() == 5
