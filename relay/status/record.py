"""Data over time for the page: ten minutes in memory, some weeks in the store (relay/store/history.py).
One process writes, once a minute, in the background; failures are logged and retried.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import structlog

from relay.counting import metrics
from relay.counting.metric import Labels, Metric, Totals
from relay.errors import StoreUnavailable
from relay.runtime.aio import in_background
from relay.status import Watched
from relay.status.active_alarms import ActiveAlarm
from relay.status.alarms import Alarms
from relay.store.history import KEPT, MOST_POOLS, Stretch
from relay.store.quarantine_table import Kept

log = structlog.get_logger(__name__)

LOOK_S = 10.0
WRITE_S = 60.0
RECENT_S = 600.0
"""Maximum age of recent data, in seconds."""
ENDED = 10
"""Maximum number of ended alarms kept until a restart."""
MOST_ASIDE = 20
"""Maximum number of messages in quarantine that the page lists."""
LAST_WORD_S = 2.0
"""Maximum wait at shutdown for the last minute's write, in seconds."""

Counts = dict[Labels, float]


@dataclass(frozen=True, slots=True)
class _Snapshot:
    at: float
    counts: dict[Metric, Counts]
    times: dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Ended:
    """An ended alarm; Unix times."""

    name: str
    about: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Remembered:
    """The record at one moment, `at` of time.monotonic.

    `recent` is the recent growth of each counter, and `last` the time of each outcome by direction. `stretches` has the
    history by length of a stretch, oldest first. `active` are the active alarms, oldest first, `ended` the ended
    ones, latest first. `aside` are the latest messages in quarantine. `times` is the recent growth of the histogram of
    total times by direction (qumail_step_seconds, step all).
    """

    at: float
    recent: Mapping[Metric, Counts]
    times: Mapping[str, Sequence[float]]
    last: Mapping[tuple[str, str], float]
    stretches: Mapping[int, Sequence[Stretch]]
    active: Sequence[ActiveAlarm]
    ended: Sequence[Ended]
    aside: Sequence[Kept]


_LOOKED_AT = (metrics.MAILS, metrics.FAILURES, metrics.REJECTIONS)


class Record:
    """The record, which starts with the counters at its creation."""

    def __init__(self, watched: Watched, alarms: Alarms, totals: Totals) -> None:
        self._watched = watched
        self._alarms = alarms
        self._active: list[ActiveAlarm] = []
        self._ended: deque[Ended] = deque(maxlen=ENDED)
        self._aside: list[Kept] = []
        self._looks: deque[_Snapshot] = deque()
        self._last: dict[tuple[str, str], float] = {}
        self._stretches: dict[tuple[int, int], Stretch] = {}
        self._written: Counts | None = None
        self._sorted: dict[int, list[Stretch]] = {}
        self.note(totals)

    def note(self, totals: Totals) -> None:
        """Adds a snapshot."""
        now = time.monotonic()
        counts = {
            metric: {labels: numbers[0] for labels, numbers in totals.get(metric, {}).items()} for metric in _LOOKED_AT
        }
        if self._looks:
            for (direction, _, _, _, outcome), more in _grown(counts, self._looks[-1].counts, metrics.MAILS).items():
                if more > 0:
                    self._last[direction, outcome] = now
            if len(self._looks) > 1 and now - self._looks[-2].at < LOOK_S:
                self._looks.pop()
        steps = totals.get(metrics.STEP_SECONDS, {})
        times = {direction: list(numbers) for (direction, step), numbers in steps.items() if step == "all"}
        self._looks.append(_Snapshot(now, counts, times))
        while len(self._looks) > 2 and self._looks[1].at <= now - RECENT_S:
            self._looks.popleft()
        active = self._alarms.active
        over = [each for each in self._active if each not in active]
        self._ended.extendleft(Ended(each.alarm.name, each.about, each.since, time.time()) for each in over)
        self._active = active

    def view(self) -> Remembered:
        """The current record, as an immutable value."""
        now, before = self._looks[-1], self._looks[0]
        recent = {metric: _grown(now.counts, before.counts, metric) for metric in _LOOKED_AT}
        times = {
            direction: [
                number - old
                for number, old in zip(numbers, before.times.get(direction, [0.0] * len(numbers)), strict=True)
            ]
            for direction, numbers in now.times.items()
        }
        return Remembered(
            now.at,
            recent,
            times,
            dict(self._last),
            self._history(now),
            [*self._active],
            [*self._ended],
            [*self._aside],
        )

    def _history(self, now: _Snapshot) -> dict[int, list[Stretch]]:
        """The history, including unwritten data, so that it matches all other numbers."""
        if self._written is None:
            return dict(self._sorted)
        counted, at = _mails(now.counts[metrics.MAILS]), time.time()
        new = {each: count - self._written.get(each, 0.0) for each, count in counted.items()}
        stretches: dict[int, list[Stretch]] = {}
        for seconds, (*others, last) in self._sorted.items():
            begun = int(at // seconds * seconds)
            ours = [last.with_more(new, {})] if last.at == begun else [last, Stretch(seconds, begun, new)]
            stretches[seconds] = [*others, *ours]
        return stretches

    async def keep_up(self) -> None:
        """Records and writes, until cancelled."""
        due = 0.0
        while True:
            totals = await self._watched.board.totals()
            self.note(totals)
            await self._look_aside(totals)
            if time.monotonic() >= due:
                due = time.monotonic() + WRITE_S
                await self.write(totals)
            await asyncio.sleep(LOOK_S)

    async def _look_aside(self, totals: Totals) -> None:
        """Updates the latest messages in quarantine; keeps the old ones if the store cannot be read."""
        if self._aside or any(number for [number] in totals.get(metrics.QUARANTINE_MESSAGES, {}).values()):
            with suppress(StoreUnavailable):
                self._aside = await self._watched.store.quarantine.latest(MOST_ASIDE)

    async def write(self, totals: Totals) -> None:
        """Writes the counters; a failure is noted in the history's `trouble`."""
        history = self._watched.store.history
        try:
            if self._written is None:
                self._take(await history.read())
            counted = _mails({labels: numbers[0] for labels, numbers in totals.get(metrics.MAILS, {}).items()})
            self._take(await history.add(self._watched.board.name, counted, _pools(totals)))
            self._written = counted
        except Exception as error:  # noqa: BLE001 - the next write may succeed
            cause = str(error) if isinstance(error, StoreUnavailable) else f"{type(error).__name__}: {error}"
            if not history.trouble:
                log.warning("history_not_written", cause=cause)
            history.trouble = cause
        else:
            history.trouble = ""

    def _take(self, stretches: list[Stretch]) -> None:
        for each in stretches:
            self._stretches[each.seconds, each.at] = each
        for seconds, most in KEPT.items():
            ours = sorted(at for length, at in self._stretches if length == seconds)
            for at in ours[:-most]:
                del self._stretches[seconds, at]
            self._sorted[seconds] = [self._stretches[seconds, at] for at in ours[-most:]]


@asynccontextmanager
async def recording(watched: Watched, alarms: Alarms) -> AsyncIterator[Record]:
    """Keeps a record until the block ends; then writes the last minute."""
    record = Record(watched, alarms, await watched.board.totals())
    try:
        async with in_background("history", record.keep_up):
            yield record
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                await record.write(await watched.board.totals())


def _grown(now: Mapping[Metric, Counts], before: Mapping[Metric, Counts], metric: Metric) -> Counts:
    return {labels: number - before[metric].get(labels, 0.0) for labels, number in now[metric].items()}


def _mails(counts: Counts) -> Counts:
    """The counts by direction, level and outcome."""
    totals: Counts = {}
    for (direction, _, _, level, outcome), count in counts.items():
        totals[direction, level, outcome] = totals.get((direction, level, outcome), 0.0) + count
    return totals


def _pools(totals: Totals) -> dict[Labels, tuple[float, float]]:
    """The number of each KME's keys for each peer, and when they run out."""
    stored, empty = totals.get(metrics.KEYS_STORED, {}), totals.get(metrics.KEYS_EMPTY, {})
    pools: dict[Labels, tuple[float, float]] = {}
    for pool, [ready] in sorted(totals.get(metrics.KEYS_READY, {}).items())[:MOST_POOLS]:
        if pool in stored:
            pools[pool] = ready + stored[pool][0], empty.get(pool, [math.inf])[0]
    return pools
