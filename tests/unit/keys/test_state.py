"""The state of a peer's keys alone, without any loop: whatever order things happen in, every caller is answered.
Standard: issued = used + burnt + expired + ready + set aside; a request goes out wherever somebody waits for keys.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from relay.errors import KMEExhausted, KMEUnreachable
from relay.keys.events import Complaint
from relay.keys.refill import Peak
from relay.keys.state import PeerPool, Want
from relay.keys.stock import Accounts, SeenKeys, Stock
from relay.keys.types import Key
from tests.testlib.fake_kme import FakeTime


def _silent(*_: object, **__: object) -> None:
    """Nobody reads it."""


def a_peer_pool(time: FakeTime, accounts: Accounts) -> PeerPool:
    """An empty one, whose keys are good for 100 seconds."""
    clock: Callable[[], float] = time.clock
    complaint = Complaint(_silent, _silent, "", clock)
    return PeerPool("bob", 256, Stock("bob", 100, accounts, SeenKeys(), clock), Peak(clock), complaint, clock)


class Histories(RuleBasedStateMachine):
    """Callers, requests and time, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.time = FakeTime()
        self.accounts = Accounts()
        self.pool = a_peer_pool(self.time, self.accounts)
        self.wants: list[Want] = []
        self.told: list[int] = []
        self.used: list[str] = []
        self.numbers = 0

    @rule(number=st.integers(1, 5), some=st.booleans())
    def somebody_comes(self, number: int, some: bool) -> None:
        if not self.pool.queue and (keys := self.pool.stock.pop(number)):
            self.used += [key.key_ID for key in keys]
            return
        place = len(self.told)
        self.told.append(0)

        def tell() -> None:
            self.told[place] += 1

        self.wants.append(self.pool.want(Want(number, 1 if some else number, tell)))

    @precondition(lambda self: self.wants)
    @rule(data=st.data())
    def somebody_goes(self, data: st.DataObject) -> None:
        want = self.wants.pop(data.draw(st.integers(0, len(self.wants) - 1)))
        self.pool.leave(want)

    @precondition(lambda self: any(want.held or want.error for want in self.wants))
    @rule()
    def somebody_wakes(self) -> None:
        want = next(want for want in self.wants if want.held or want.error)
        self.wants.remove(want)
        assert (want.held is None) != (want.error is None)
        if want.held:
            keys = self.pool.collect(want)
            assert want.least <= len(keys) <= want.number
            self.used += [key.key_ID for key in keys]

    @precondition(lambda self: len(self.pool.flights) < 3)
    @rule(most=st.integers(1, 6))
    def a_request_begins(self, most: int) -> None:
        self.numbers += 1
        number = self.pool.begin(self.numbers, most)
        assert 0 <= number <= most
        assert number or self.pool.missing <= 0

    @precondition(lambda self: self.pool.flights)
    @rule(outcome=st.sampled_from(["all", "fewer", "none", "away"]))
    def a_request_ends(self, outcome: str) -> None:
        flight, number = next(iter(self.pool.flights.items()))
        if outcome in ("none", "away"):
            self.pool.failed(flight, KMEExhausted("none") if outcome == "none" else KMEUnreachable("away"), 0.5)
            return
        given = max(1, number // 2) if outcome == "fewer" else number
        self.pool.stock.add([Key(secrets.token_hex(8), secrets.token_bytes(32)) for _ in range(given)])
        self.pool.landed(flight, short=given < number)

    @rule(low=st.integers(0, 3), more=st.integers(0, 5), to_high=st.booleans())
    def it_is_refilled(self, low: int, more: int, to_high: bool) -> None:
        self.pool.prefetched = True
        self.pool.fill_to = low + more if to_high else low
        self.pool.filling = self.pool.filling or len(self.pool.stock) < low

    @rule(seconds=st.sampled_from([1, 99, 101]))
    def time_goes_by(self, seconds: int) -> None:
        self.time.now += seconds
        self.pool.stock.destroy_expired()

    @invariant()
    def no_key_is_lost_or_comes_twice(self) -> None:
        assert len(self.used) == len(set(self.used)) == self.accounts.totals()["used"]
        assert self.accounts.totals()["in_pool"] == len(self.pool.stock) + self.pool.aside

    @invariant()
    def everybody_is_told_once_and_nobody_is_forgotten(self) -> None:
        assert all(told <= 1 for told in self.told)
        assert all(want in self.pool.queue or want.held or want.error for want in self.wants)
        assert not self.pool.queue or self.pool.flights or self.pool.missing > 0


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
