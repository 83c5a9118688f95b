"""Counters of the clients: their interface to a board, and one for programs without their own.
Standard: the Prometheus naming practices; the names are those of relay/counting/key_metrics.py.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

from relay.counting.metric import Metric, Totals


class Histogram(Protocol):
    """One histogram with its labels."""

    def observe(self, value: float) -> None:
        """Adds a value."""


class KeyCounts(Protocol):
    """A board of metrics with label values."""

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Adds `by` to a counter."""

    def set(self, metric: Metric, *labels: str, to: float) -> None:
        """Sets a gauge."""

    def spread(self, metric: Metric, *labels: str) -> Histogram:
        """A histogram with these labels."""


class _Observed:
    def __init__(self, numbers: list[float], bounds: tuple[float, ...]) -> None:
        self._numbers, self._bounds = numbers, bounds

    def observe(self, value: float) -> None:
        self._numbers[bisect_left(self._bounds, value)] += 1.0
        self._numbers[-1] += value


class Numbers:
    """A board in the memory of one process, with all counts in `totals`. Several clients may share one."""

    def __init__(self) -> None:
        self.totals: Totals = {}

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """As for a Board."""
        self._numbers(metric, labels)[0] += by

    def set(self, metric: Metric, *labels: str, to: float) -> None:
        """As for a Board."""
        self._numbers(metric, labels)[0] = to

    def spread(self, metric: Metric, *labels: str) -> Histogram:
        """As for a Board."""
        return _Observed(self._numbers(metric, labels), metric.buckets)

    def _numbers(self, metric: Metric, labels: tuple[str, ...]) -> list[float]:
        series = self.totals.setdefault(metric, {})
        if labels not in series:
            series[labels] = [0.0] * metric.numbers
        return series[labels]
