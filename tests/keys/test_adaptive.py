"""Time limits, backoff and budgets in simulated time.
Standard: RFC 6298 for the limits, full jitter for the pauses.
"""

from __future__ import annotations

import pytest

from relay.keys.adaptive import MAX_BACKOFF_S, Backoff, Budget, TimeLimit
from tests.keys.fake_kme import FakeTime


def test_the_limit_is_the_longest_until_an_answer_was_seen() -> None:
    assert TimeLimit(10, 2).seconds == 10


def test_a_quick_kme_gets_a_short_limit_but_not_below_the_shortest() -> None:
    limit = TimeLimit(10, 2)
    for _ in range(50):
        limit.answered(0.02)
    assert limit.seconds == 2
    assert limit.latency == pytest.approx(0.02)


def test_a_slow_kme_gets_a_long_limit_but_not_beyond_the_longest() -> None:
    limit = TimeLimit(10, 2)
    for _ in range(50):
        limit.answered(1.0)
    assert 4 <= limit.seconds < 10
    limit.answered(30)
    assert limit.seconds == 10


def test_each_expiry_doubles_the_limit_until_an_answer_comes() -> None:
    limit = TimeLimit(10, 2)
    for _ in range(50):
        limit.answered(0.02)
    limit.expired()
    assert limit.seconds == 4
    limit.expired()
    limit.expired()
    assert limit.seconds == 10
    limit.answered(0.02)
    assert limit.seconds == 2


def test_pauses_double_and_are_longer_when_little_succeeds(time: FakeTime) -> None:
    healthy, sick = Backoff(1, time.timing), Backoff(1, time.timing)
    for _ in range(50):
        sick.seen(success=False)
    assert [healthy.pause(n) for n in range(3)] == [0.25, 0.5, 1.0]
    assert sick.pause(0) == pytest.approx(4, rel=0.02)
    assert sick.pause(20) == MAX_BACKOFF_S
    assert healthy.success_rate == 1
    assert sick.success_rate < 0.01


def test_a_budget_refills_within_an_hour(time: FakeTime) -> None:
    budget = Budget(100, time.timing)
    budget.spend(120)
    assert not budget.allows(1)
    time.now += 1800
    assert budget.left == pytest.approx(30)
    time.now += 36000
    assert budget.left == 100
