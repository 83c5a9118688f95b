"""The circuit breaker in simulated time.
Standard: closed, open, half-open; one probe at a time.
"""

from __future__ import annotations

import asyncio

import pytest

from relay.errors import KeyNotFound, KeyUnavailable, KMEExhausted, KMEMisconfigured, KMEUnreachable
from relay.keys.breaker import Breaker, BreakerRules, State
from relay.keys.faults import KMERefusedRequest, NotAsked
from tests.keys.fake_kme import FakeTime

RULES = BreakerRules(failures=3, delay=5, longest=20, misconfigured=30)


@pytest.fixture
def breaker(time: FakeTime) -> Breaker:
    return Breaker("kme-a: enc_keys", RULES, time.timing)


def _fail(breaker: Breaker, error: KeyUnavailable | None = None) -> None:
    failure = error or KMEUnreachable("no answer")
    with pytest.raises(type(failure)), breaker.passing():
        raise failure


def test_it_opens_after_failures_in_a_row_and_says_what_the_last_one_was(breaker: Breaker) -> None:
    for _ in range(3):
        assert breaker.state is State.CLOSED
        _fail(breaker)
    assert breaker.state is State.OPEN
    with pytest.raises(NotAsked, match="no answer"), breaker.passing():
        pass


def test_a_success_in_between_starts_the_count_again(breaker: Breaker) -> None:
    for _ in range(5):
        _fail(breaker)
        _fail(breaker)
        with breaker.passing():
            pass
    assert breaker.state is State.CLOSED


@pytest.mark.parametrize("error", [KMEExhausted("none left"), KeyNotFound("unknown"), KMERefusedRequest("too many")])
def test_a_kme_that_says_no_is_well(breaker: Breaker, error: KeyUnavailable) -> None:
    for _ in range(10):
        _fail(breaker, error)
    assert breaker.state is State.CLOSED


def test_a_configuration_fault_opens_it_at_once_and_stays_one(breaker: Breaker) -> None:
    _fail(breaker, KMEMisconfigured("401"))
    assert breaker.opens_in >= 30
    with pytest.raises(KMEMisconfigured, match="401"), breaker.passing():
        pass


def test_after_its_time_one_probe_passes_and_others_wait_for_it(breaker: Breaker, time: FakeTime) -> None:
    for _ in range(3):
        _fail(breaker)
    time.now += 6
    assert breaker.opens_in == 0
    with breaker.passing() as probing:
        assert probing
        with pytest.raises(NotAsked), breaker.passing():
            pass
    assert breaker.state is State.CLOSED


def test_probes_that_fail_double_its_time_up_to_the_longest(breaker: Breaker, time: FakeTime) -> None:
    for _ in range(3):
        _fail(breaker)
    waits = []
    for _ in range(4):
        waits.append(round(breaker.opens_in / 1.1))
        time.now += breaker.opens_in
        _fail(breaker)
    assert waits == [5, 10, 20, 20]


def test_a_probe_that_is_given_up_lets_the_next_one_pass(breaker: Breaker, time: FakeTime) -> None:
    for _ in range(3):
        _fail(breaker)
    time.now += 6
    with pytest.raises(asyncio.CancelledError), breaker.passing():
        raise asyncio.CancelledError
    with breaker.passing() as probing:
        assert probing


def test_however_long_a_kme_was_away_it_is_asked_again_soon_after_it_is_back(time: FakeTime) -> None:
    """The mail that waits for it is tried again by its queue at some time after that, and is there within a minute."""
    breaker = Breaker("kme-a: dec_keys", BreakerRules(), time.timing)
    while time.now < 86_400:
        _fail(breaker)
        if breaker.state is State.OPEN:
            assert breaker.opens_in <= 20
            time.now += breaker.opens_in
