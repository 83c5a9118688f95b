"""The metrics of all processes of a relay, in shared memory: each writes its own, and readers add them up.
Standard: memfd_create(2); the values of a killed process stay, and its successor continues with them.

Each process has its own place, so that counting needs no lock. It is an append-only list of names with labels, each
followed by its numbers. The supervisor gives the place of an ended process to the next one: counters only grow. Behind
the places is the table that all write: the recipients whose mail was held (held.py).

prometheus_client's multiprocess mode uses mapped files: on a full disk, counting would kill the relay (SIGBUS). Its
text format is used for output (relay/status).
"""

from __future__ import annotations

import json
import math
import mmap
import operator
import os
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from relay.counting.held import KEY_OCTETS, SECTION_OCTETS, HeldMail
from relay.counting.metric import Labels, Metric, Totals
from relay.counting.metrics import all_metrics
from relay.runtime.aio import Turns

log = structlog.get_logger(__name__)

PLACE_OCTETS = 8 * 2**20
"""Size of one process's place, in bytes: some 80,000 names with labels. Memory is only used as it fills."""
_HEAD = 4096
"""Bytes before the first place: for each place, whether its process is alive; at the end, the board's name."""
_NAME_OCTETS = 16
_ENTRY = struct.Struct("<II")
"""Length of a name with its labels, padded to 8, and the number of values that follow it."""
_TURN = 500
"""Number of values added up before yielding to other tasks."""


class Cell:
    """This process's value of a counter or gauge."""

    __slots__ = ("_at", "_numbers")

    def __init__(self, numbers: memoryview[float], at: int) -> None:
        self._numbers = numbers
        self._at = at

    def add(self, amount: float = 1.0) -> None:
        """Adds to it. Only one thread may count."""
        self._numbers[self._at] += amount

    def set(self, value: float) -> None:
        """Sets the value; NaN if unknown."""
        self._numbers[self._at] = value

    @property
    def value(self) -> float:
        """The current value."""
        return self._numbers[self._at]


class SpreadCell:
    """This process's values of a histogram."""

    __slots__ = ("_at", "_bounds", "_numbers", "_sum_at")

    def __init__(self, numbers: memoryview[float], at: int, bounds: tuple[float, ...]) -> None:
        self._numbers = numbers
        self._at = at
        self._bounds = bounds
        self._sum_at = at + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Adds an observation."""
        self._numbers[self._at + bisect_left(self._bounds, value)] += 1.0
        self._numbers[self._sum_at] += value

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Context manager that observes its duration, in seconds, in any case."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - began)


@dataclass(slots=True)
class _Entry:
    metric: Metric
    labels: Labels
    at: int


@dataclass(slots=True)
class _KnownPlace:
    """The parsed entries of one place, up to `end`."""

    end: int = 8
    entries: list[_Entry] = field(default_factory=list)


class Board:
    """The board, as used by one process."""

    def __init__(self, descriptor: int = -1, place: int = 0) -> None:
        """`descriptor` is from `shared_board`, and `place` that of this process; without them, the board is private."""
        alone = descriptor < 0
        size = _octets(1) if alone else os.fstat(descriptor).st_size
        places = _places_in(size)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if alone else mmap.MAP_SHARED
        self._memory = mmap.mmap(descriptor, size, flags=flags)
        self._numbers: memoryview[float] = memoryview(self._memory).cast("d")
        self.held = _held(self._memory, places, place)
        self.missed: dict[str, str] = {}
        """Why a key was last missing, by peer, in this process."""
        self.unwatched: dict[str, str] = {}
        """Why a mailbox is not watched, or "", by account, in this process; not there while that is unknown."""
        self._begin = _HEAD + place * PLACE_OCTETS
        self._cells: dict[tuple[Metric, Labels], Cell | SpreadCell] = {}
        self._making = threading.Lock()
        self._places = [_KnownPlace() for _ in range(places)]
        self._full = False
        if alone:
            self._memory[_HEAD - _NAME_OCTETS : _HEAD] = os.urandom(_NAME_OCTETS)
            self.held.begin(os.urandom(KEY_OCTETS))
        self._take_over(place)

    def _take_over(self, place: int) -> None:
        """Continues the counters of the previous process there, and resets its gauges."""
        for each in self._read(place):
            self._cells[each.metric, each.labels] = self._cell(each.metric, self._numbers, each.at)
            if each.metric.kind == "gauge":
                self._numbers[each.at] = math.nan
        for metric in all_metrics().values():
            if metric.kind == "counter" and not metric.labels:
                self.cell(metric)  # 0 is exported too, so that growth can be computed
        self._memory[place] = 1

    def cell(self, metric: Metric, *labels: str) -> Cell:
        """A counter or gauge with these labels, 0 at first."""
        cell = self._cells.get((metric, labels)) or self._made(metric, labels)
        assert isinstance(cell, Cell)  # noqa: S101 - else the metric is of another kind
        return cell

    def spread(self, metric: Metric, *labels: str) -> SpreadCell:
        """A histogram with these labels."""
        cells = self._cells.get((metric, labels)) or self._made(metric, labels)
        assert isinstance(cells, SpreadCell)  # noqa: S101 - as above
        return cells

    def add(self, metric: Metric, *labels: str, by: float = 1.0) -> None:
        """Adds `by` to a counter."""
        self.cell(metric, *labels).add(by)

    def set(self, metric: Metric, *labels: str, to: float) -> None:
        """Sets a gauge."""
        self.cell(metric, *labels).set(to)

    @property
    def name(self) -> str:
        """The unique name of this board, whose counters began at 0."""
        return self._memory[_HEAD - _NAME_OCTETS : _HEAD].hex()

    @property
    def processes(self) -> int:
        """The number of living processes on this board."""
        return sum(self._memory[: len(self._places)])

    def elsewhere(self, metric: Metric) -> dict[Labels, float]:
        """The maximum of a gauge over the other living processes, by labels; thread-safe."""
        totals: dict[Labels, float] = {}
        for place in range(len(self._places)):
            if self._memory[place] and _HEAD + place * PLACE_OCTETS != self._begin:
                for each in self._read(place, _KnownPlace()):
                    if each.metric == metric and not math.isnan(value := self._numbers[each.at]):
                        totals[each.labels] = max(value, totals.get(each.labels, value))
        return totals

    async def totals(self) -> Totals:
        """The totals over all processes; yields to other tasks."""
        totals: Totals = {}
        turns = Turns()
        for number, _ in enumerate(self._add_up(totals)):
            if number % _TURN == 0:
                await turns.give()
        return totals

    def totals_now(self) -> Totals:
        """As `totals`, without yielding: for tests and small boards."""
        totals: Totals = {}
        for _ in self._add_up(totals):
            pass
        return totals

    def _add_up(self, totals: Totals) -> Iterator[None]:
        """Adds up in steps of _TURN."""
        for place in range(len(self._places)):
            lives = self._memory[place]
            for entry in self._read(place):
                yield
                numbers = list(self._numbers[entry.at : entry.at + entry.metric.numbers])
                if entry.metric.kind == "gauge" and (not lives or math.isnan(numbers[0])):
                    continue
                series = totals.setdefault(entry.metric, {})
                before = series.get(entry.labels)
                add = max if entry.metric.together == "max" else min if entry.metric.together == "min" else operator.add
                series[entry.labels] = numbers if before is None else list(map(add, before, numbers))

    def _read(self, place: int, cached: _KnownPlace | None = None) -> Iterator[_Entry]:
        """The entries of one place; of another version of the relay, those with known metrics.

        `cached` has what was parsed so far; it is for one thread.
        """
        cached, start = cached or self._places[place], _HEAD + place * PLACE_OCTETS
        yield from cached.entries
        while cached.end < self._end(start):
            size, numbers = _ENTRY.unpack_from(self._memory, start + cached.end)
            at = start + cached.end + _ENTRY.size
            cached.end += _ENTRY.size + size + 8 * numbers
            name, *labels = json.loads(self._memory[at : at + size])
            metric = all_metrics().get(name)
            if metric is not None and (metric.numbers, len(metric.labels)) == (numbers, len(labels)):
                cached.entries.append(_Entry(metric, tuple(labels), (at + size) // 8))
                yield cached.entries[-1]

    def _end(self, start: int) -> int:
        """The end of the data in a place, from its first 8 bytes."""
        return int.from_bytes(self._memory[start : start + 8], "little") or 8

    def _made(self, metric: Metric, labels: Labels) -> Cell | SpreadCell:
        with self._making:
            if cells := self._cells.get((metric, labels)):
                return cells
            made = self._cells[metric, labels] = self._new(metric, labels)
            return made

    def _new(self, metric: Metric, labels: Labels) -> Cell | SpreadCell:
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has labels {metric.labels}, not {labels}")
        name = json.dumps([metric.name, *labels]).encode()
        name += b" " * (-len(name) % 8)
        size = _ENTRY.size + len(name) + 8 * metric.numbers
        end = self._end(self._begin)
        if end + size > PLACE_OCTETS:
            if not self._full:
                log.error("board_is_full", meaning="what is new is not counted", octets=PLACE_OCTETS)
            self._full = True
            return self._cell(metric, memoryview(bytearray(8 * metric.numbers)).cast("d"), 0)
        at = self._begin + end
        self._memory[at : at + _ENTRY.size + len(name)] = _ENTRY.pack(len(name), metric.numbers) + name
        # Last: a concurrent reader sees all of it or nothing.
        self._memory[self._begin : self._begin + 8] = (end + size).to_bytes(8, "little")
        return self._cell(metric, self._numbers, (at + _ENTRY.size + len(name)) // 8)

    @staticmethod
    def _cell(metric: Metric, numbers: memoryview[float], at: int) -> Cell | SpreadCell:
        return SpreadCell(numbers, at, metric.buckets) if metric.kind == "histogram" else Cell(numbers, at)


def shared_board(processes: int) -> int:
    """Empty shared memory for a number of processes, as a descriptor that they inherit."""
    descriptor = os.memfd_create("board")
    os.ftruncate(descriptor, _octets(processes))
    os.pwrite(descriptor, os.urandom(_NAME_OCTETS), _HEAD - _NAME_OCTETS)
    held_on(descriptor).begin(os.urandom(KEY_OCTETS))
    return descriptor


def held_on(descriptor: int) -> HeldMail:
    """The held mail on a shared board, for a process without a place."""
    memory = mmap.mmap(descriptor, 0)
    return _held(memory, _places_in(len(memory)))


def _octets(places: int) -> int:
    return _HEAD + places * (PLACE_OCTETS + SECTION_OCTETS)


def _places_in(size: int) -> int:
    return (size - _HEAD) // (PLACE_OCTETS + SECTION_OCTETS)


def _held(memory: mmap.mmap, places: int, own: int = 0) -> HeldMail:
    return HeldMail(memory, _HEAD + places * PLACE_OCTETS, places, own)


class BoardPlaces:
    """Assigns places to processes, in the supervisor."""

    def __init__(self, descriptor: int, processes: int) -> None:
        """`descriptor` is from `shared_board`, for this number of `processes`; it is not closed here."""
        self._descriptor = descriptor
        self._free = list(range(processes))

    def take(self) -> int:
        """A place for a process about to be started; -1 if there is none."""
        return self._free.pop(0) if self._free else -1

    def has_ended(self, place: int) -> None:
        """Frees the place of an ended process: its gauges no longer count, its counters do."""
        if place >= 0:
            os.pwrite(self._descriptor, b"\0", place)
            self._free.insert(0, place)
