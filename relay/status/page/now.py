"""The data of the page at one moment: metrics of all processes, and the record.
A plain value with everything that the page needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from relay.counting.metric import Labels, Metric, Totals
from relay.status.record import Remembered
from relay.store.history import Stretch


@dataclass(frozen=True, slots=True)
class Now:
    """One moment; `time` is a Unix time; with `addresses`, people may be named.

    `development` has the names of KMEs whose keys are not quantum (relay/keys/development.py).
    """

    site: str
    time: float
    totals: Totals
    past: Remembered
    addresses: bool = False
    development: frozenset[str] = frozenset()

    def stands(self, name: str, about: str = "") -> bool:
        """Whether this alarm is active."""
        return any((each.alarm.name, each.about) == (name, about) for each in self.past.active)

    def series(self, metric: Metric) -> list[tuple[Labels, float]]:
        """The number of each set of labels."""
        return [(labels, numbers[0]) for labels, numbers in sorted(self.totals.get(metric, {}).items())]

    def value(self, metric: Metric, *labels: str) -> float | None:
        """One value, None if unknown."""
        value = self.totals.get(metric, {}).get(labels)
        return value[0] if value else None

    def sum(self, metric: Metric, **labels: str) -> float:
        """Returns the sum over all that have these labels."""
        at = {metric.labels.index(name): value for name, value in labels.items()}
        return sum(value for has, value in self.series(metric) if all(has[place] == each for place, each in at.items()))

    def stretches(self, seconds: int, since: float) -> list[Stretch]:
        """Stretches of the history with this length that began between `since` and this moment."""
        return [each for each in self.past.stretches.get(seconds, ()) if since <= each.at <= self.time]

    def last(self, direction: str, *outcomes: str) -> float:
        """Seconds since a mail of this direction had one of these outcomes, inf for never."""
        ended = [
            self.past.at - self.past.last[direction, each] for each in outcomes if (direction, each) in self.past.last
        ]
        return min(ended, default=math.inf)
