"""The board: what is counted is never lost nor counted twice, whichever process ends; deploy/METRICS.md is what it says.
Standard: the Prometheus naming practices.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from relay.counting import board, metrics, reference
from relay.counting.board import Board, BoardPlaces, shared_board
from relay.counting.metric import Metric
from relay.counting.metrics import all_metrics
from tests.testlib.counted import counted

ROOT = Path(__file__).parents[2]
MAIL = ("outgoing", "smtp", "bob", "aes", "delivered")


@pytest.fixture
def descriptor() -> Iterator[int]:
    memory = shared_board(3)
    yield memory
    os.close(memory)


def test_the_reference_of_metrics_is_what_the_code_says() -> None:
    assert (ROOT / "deploy/METRICS.md").read_text() == reference.markdown()


@pytest.mark.parametrize("name", all_metrics())
def test_names_follow_the_naming_practices(name: str) -> None:
    metric = all_metrics()[name]
    assert re.fullmatch(r"qumail_[a-z_]+", name)
    assert name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"octets|_ms\b|minutes|hours|days", name), "base units: bytes, seconds"
    assert all(before < after for before, after in pairwise(metric.buckets))
    assert not {"le", "quantile", "instance", "job"} & set(metric.labels)


def test_all_processes_count_together_and_the_next_one_goes_on_where_one_has_ended(descriptor: int) -> None:
    places = BoardPlaces(descriptor, 3)
    first, second = (Board(descriptor, places.take()) for _ in range(2))
    first.add(metrics.MAILS, *MAIL, by=2)
    second.add(metrics.MAILS, *MAIL)
    second.spread(metrics.STEP_SECONDS, "outgoing", "seal").observe(0.3)
    places.has_ended(1)
    assert counted(first, metrics.MAILS, *MAIL) == 3
    third = Board(descriptor, places.take())
    third.add(metrics.MAILS, *MAIL, by=10)
    third.spread(metrics.STEP_SECONDS, "outgoing", "seal").observe(70)
    for each in (first, third):
        assert counted(each, metrics.MAILS, *MAIL) == 13
        *numbers, total = each.totals_now()[metrics.STEP_SECONDS]["outgoing", "seal"]
        assert (sum(numbers), numbers[-1], round(total, 6)) == (2, 1, 70.3)


def test_what_an_ended_process_measured_is_forgotten(descriptor: int) -> None:
    places = BoardPlaces(descriptor, 3)
    first, second = (Board(descriptor, places.take()) for _ in range(2))
    first.set(metrics.KEYS_READY, "kme", "bob", to=5)
    second.set(metrics.KEYS_READY, "kme", "bob", to=7)
    first.set(metrics.KME_BREAKER, "kme", to=0)
    second.set(metrics.KME_BREAKER, "kme", to=2)
    assert (counted(first, metrics.KEYS_READY, "kme", "bob"), first.processes) == (12, 2)
    assert counted(first, metrics.KME_BREAKER, "kme") == 2
    places.has_ended(1)
    assert (counted(first, metrics.KEYS_READY, "kme", "bob"), first.processes) == (5, 1)
    assert counted(first, metrics.KME_BREAKER, "kme") == 0
    third = Board(descriptor, places.take())
    assert counted(third, metrics.KEYS_READY, "kme", "bob") == 5, "nothing before the next one has measured"


def test_what_never_happened_is_told_as_well() -> None:
    assert counted(Board(), metrics.TRIPWIRE) == 0


def test_a_gauge_that_is_not_known_is_not_told() -> None:
    alone = Board()
    alone.set(metrics.KEYS_STORED, "kme", "bob", to=math.nan)
    assert counted(alone, metrics.KEYS_STORED, "kme", "bob") is None


def test_there_is_a_place_for_each_process_and_no_more(descriptor: int) -> None:
    places = BoardPlaces(descriptor, 3)
    assert [places.take() for _ in range(4)] == [0, 1, 2, -1]
    places.has_ended(-1)
    places.has_ended(2)
    assert [places.take(), places.take()] == [2, -1]


def test_what_another_version_has_counted_is_left_alone(descriptor: int) -> None:
    older = Board(descriptor, 0)
    unknown = Metric("qumail_older_total", "counter", "What an older relay counts", ("peer",))
    older.add(unknown, "bob")
    other = Metric("qumail_step_seconds", "histogram", "other buckets", ("direction", "step"), (1, 2))
    older.spread(other, "outgoing", "seal").observe(1.5)
    older.add(metrics.MAILS, *MAIL)
    assert {each for each in Board(descriptor, 1).totals_now() if each.labels} == {metrics.MAILS}


def test_a_full_board_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board, "PLACE_OCTETS", 4096)
    small = Board()
    for number in range(1000):
        small.add(metrics.KEYS_BURNT, "kme", str(number))
    small.add(metrics.KEYS_BURNT, "kme", "0")
    assert counted(small, metrics.KEYS_BURNT, "kme", "0") == 2
    assert counted(small, metrics.KEYS_BURNT, "kme", "999") is None


def test_wrong_labels_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="has labels"):
        Board().add(metrics.MAILS, "outgoing")
