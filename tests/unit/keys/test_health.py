"""The breaker opens after failures and is probed; time limits, pauses and budgets follow what a KME does.
Standard: relay/keys/health.py.
"""

from __future__ import annotations

import pytest

from relay.errors import KeyUnavailable, KMEMisconfigured, KMEUnreachable
from relay.keys.faults import NotAsked
from relay.keys.health import MAX_BACKOFF_S, Backoff, Breaker, BreakerRules, BurnBudget, State
from tests.testlib.fake_kme import FakeTime

RULES = BreakerRules(failures=3, delay=5, longest=20, misconfigured=30)


@pytest.fixture
def breaker(time: FakeTime) -> Breaker:
    return Breaker("kme-a", RULES, time.timing)


def _fail(breaker: Breaker, error: KeyUnavailable | None = None) -> None:
    breaker.check()
    breaker.begin()
    breaker.failed(error or KMEUnreachable("no answer"))


def test_it_opens_after_failures_in_a_row_and_says_what_the_last_one_was(breaker: Breaker) -> None:
    for _ in range(3):
        assert breaker.state is State.CLOSED
        _fail(breaker)
    assert breaker.state is State.OPEN
    with pytest.raises(NotAsked, match="no answer"):
        breaker.check()


def test_a_success_in_between_starts_the_count_again(breaker: Breaker) -> None:
    for _ in range(5):
        _fail(breaker)
        _fail(breaker)
        breaker.answered()
    assert breaker.state is State.CLOSED


def test_a_configuration_fault_opens_it_at_once_and_stays_one(breaker: Breaker) -> None:
    _fail(breaker, KMEMisconfigured("401"))
    assert breaker.opens_in >= 30
    with pytest.raises(KMEMisconfigured, match="401"):
        breaker.check()


def test_after_its_time_one_probe_passes_and_others_wait_for_it(breaker: Breaker, time: FakeTime) -> None:
    for _ in range(3):
        _fail(breaker)
    time.now += 6
    assert breaker.opens_in == 0
    assert breaker.begin()
    with pytest.raises(NotAsked):
        breaker.check()
    breaker.answered()
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
    breaker.begin()
    breaker.given_up()
    breaker.check()
    assert breaker.begin()


def test_failures_of_a_call_that_began_before_it_opened_lengthen_no_pause(breaker: Breaker, time: FakeTime) -> None:
    for _ in range(3):
        _fail(breaker)
    left = breaker.opens_in
    breaker.begin(again=True)
    breaker.failed(KMEUnreachable("still"))
    assert breaker.opens_in == left
    breaker.begin(again=True)
    breaker.answered()
    assert breaker.state is State.CLOSED


def test_however_long_a_kme_was_away_it_is_asked_again_soon_after_it_is_back(time: FakeTime) -> None:
    """The mail that waits for it is tried again by its queue at some time after that, and is there within a minute."""
    breaker = Breaker("kme-a", BreakerRules(), time.timing)
    while time.now < 86_400:
        _fail(breaker)
        if breaker.state is State.OPEN:
            assert breaker.opens_in <= 20
            time.now += breaker.opens_in


def test_pauses_double_and_are_longer_when_little_succeeds(time: FakeTime) -> None:
    healthy, sick = (Backoff(1, time.timing, adaptive=True) for _ in range(2))
    for _ in range(50):
        sick.seen(success=False)
    assert [healthy.pause(n) for n in range(3)] == [0.25, 0.5, 1.0]
    assert sick.pause(0) == pytest.approx(4, rel=0.02)
    assert sick.pause(20) == MAX_BACKOFF_S
    assert healthy.success_rate == 1
    assert sick.success_rate < 0.01


def test_a_budget_refills_within_an_hour(time: FakeTime) -> None:
    budget = BurnBudget(100, time.timing)
    budget.spend(120)
    assert not budget.allows(1)
    time.now += 1800
    assert budget.left == pytest.approx(30)
    time.now += 36000
    assert budget.left == 100
