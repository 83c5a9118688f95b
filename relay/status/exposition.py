"""The text of /metrics: the sums over all processes, in the text format of Prometheus.
Standard: https://prometheus.io/docs/instrumenting/exposition_formats/, written by prometheus_client.

Written in pieces, which yield to mail, and at limited cost. In between, clients get the last version.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay.counting.board import Board
from relay.counting.metric import Labels, Metric, Totals
from relay.counting.metrics import all_metrics
from relay.runtime.aio import Turns

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
AT_ONCE = 50
"""Number of label sets written before yielding; those of a histogram take a millisecond."""
SHARE = 0.02
"""Maximum share of time spent on the exposition."""


class Exposition:
    """The text, created on request."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._text = b""
        self._not_before = float("-inf")
        self._writing = asyncio.Lock()

    async def text(self) -> bytes:
        """The current text, or a recent one."""
        async with self._writing:
            if (began := time.monotonic()) >= self._not_before:
                self._text, cost = await self._written()
                self._not_before = began + cost / SHARE
            return self._text

    async def _written(self) -> tuple[bytes, float]:
        """The text, and the time for which it blocked the event loop, in seconds."""
        pieces: list[bytes] = []
        turns, cost = Turns(), 0.0
        steps = _pieces(await self._board.totals())
        while True:
            began = time.thread_time()
            piece = next(steps, None)
            cost += time.thread_time() - began
            if piece is None:
                return b"".join(pieces), cost
            pieces.append(piece)
            await turns.give()


def _pieces(totals: Totals) -> Iterator[bytes]:
    for metric in all_metrics().values():
        series = iter(sorted(totals.get(metric, {}).items()))
        first = True
        while some := list(islice(series, AT_ONCE)):
            text = generate_latest(_One(_family(metric, some)))
            yield text if first else text.split(b"\n", 2)[2]  # HELP and TYPE only once
            first = False


def _family(metric: Metric, series: Sequence[tuple[Labels, list[float]]]) -> Family:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(floatToGoString, metric.buckets), "+Inf"]
        for labels, (*counts, total) in series:
            histogram.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels)
    for labels, [number] in series:
        family.add_metric(labels, number)
    return family


class _One(Collector):
    """A collector of one family, for prometheus_client."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        """The family."""
        yield self._family
