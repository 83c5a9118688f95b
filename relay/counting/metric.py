"""What one metric is: its name, its meaning, its labels, and how the numbers of several processes make one.
Standard: https://prometheus.io/docs/practices/naming/ (base units, `_total` for what only grows).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Together = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One name of the public set, compared by identity.

    `labels` are names, whose values are bounded by the configuration or by a fixed list that `help` gives. A gauge of
    several processes is the sum, the largest or the smallest of theirs: `together`. `buckets` are a histogram's upper
    bounds, ascending.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Together = "sum"

    @property
    def numbers(self) -> int:
        """How many numbers one set of labels has: a histogram's are those of each bucket, the rest, and the sum."""
        return len(self.buckets) + 2 if self.kind == "histogram" else 1


Labels = tuple[str, ...]
Totals = dict[Metric, dict[Labels, list[float]]]
"""All numbers of each set of labels: one, or those of a histogram, whose last is the sum."""
