"""Verifies that the audit record is one chain from the first line to the last, and fits heads and checkpoints.
Standard: deploy/AUDIT.md, "The rule"; needs no secret and no database, so anybody with the files can verify.

The first records may have been removed as too old, which a later record then says. Anybody who can write to the files
can forge that record. So records that a checkpoint covers may only be missing by the days signed in the checkpoint.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial, reduce
from pathlib import Path
from typing import Any

from relay.audit.chain import BEGUN, GENESIS, ChainFile, head_behind
from relay.audit.reading import REMOVED, Line, files_in, lines_in

MAX_PROBLEMS = 100
"""Maximum number of problems listed, and of times that go back."""
CLOCK_TOLERANCE = timedelta(minutes=1)
"""Maximum amount by which times may go back: several processes write, each a moment later."""
_LATER_WRITTEN = ("policies",)
"""Events whose time may be long before their record was written."""

Days = tuple[tuple[int, str], ...]
"""Pairs: from the record with this number on, no record so far is of a later day (UTC, as `2026-11-25`)."""


@dataclass(frozen=True, slots=True)
class ExpectedLine:
    """A line that must exist, with all lines from number `first` to it, as signed in a checkpoint.

    Lines before one more than `keep_days` days old, by `days`, may be missing; None: no line may.
    """

    number: int
    head: str
    first: int = 1
    keep_days: int | None = None
    days: Days = ()


@dataclass(frozen=True, slots=True)
class Verified:
    """The result: numbers of the first and last record, hash of the last line, and the problems.

    `broken_off` are the places of lines that a crash cut short, `times_back` the times that go back: clocks are set.
    `removed` names the record that reports the removal of records before the first one, if any. No record reports the
    removal of records from number `lasting` on. `days` are the days of the records.
    """

    first: int
    number: int
    head: str
    problems: tuple[str, ...]
    broken_off: tuple[str, ...] = ()
    times_back: tuple[str, ...] = ()
    removed: str = ""
    lasting: int = 1
    days: Days = ()

    @property
    def entries(self) -> int:
        """The number of records."""
        return self.number - self.first + 1 if self.number else 0


def verify(
    directory: Path,
    expected: ExpectedLine | None = None,
    head: str | None = None,
    *,
    keep_days: int | None = None,
    now: datetime | None = None,
) -> Verified:
    """Verifies the chain from the first line to the last. Raises ConfigError if a file is unreadable.

    The chain alone does not show that lines are missing at its ends. `expected`, and `head` for a hash alone, were kept
    elsewhere, and must be found. A head signs neither days nor retention: the time of the first remaining record and
    `keep_days` replace them. `now` (aware) is the time at which removed records must be old enough.
    """
    return _RecordVerifier(directory, expected, head, keep_days, now or datetime.now(UTC)).verify()


class _RecordVerifier:
    def __init__(
        self, directory: Path, expected: ExpectedLine | None, head: str | None, keep_days: int | None, now: datetime
    ) -> None:
        self._directory, self._expected, self._wanted, self._now = directory, expected, head, now
        self._keep_days = keep_days
        self._problems: list[str] = []
        self._broken_off: list[str] = []
        self._removals: dict[tuple[int, str], int] = {}
        """For each removed last line (number and hash), the number of the first record that reports the removal."""
        self._before = (0, GENESIS)
        self._torn_first: list[str] = []
        """Hashes of lines cut short before the first record."""
        self._first = self._number = self._number_of_head = 0
        self._head = self._last = GENESIS
        self._file: ChainFile | None = None
        """The file of the previous record."""
        self._begins_files = False
        """Whether a record is marked as the first of its file; then each further file must begin with such a record."""
        # Every record continues an empty one.
        self._seen = {"head": head in (None, GENESIS), "checkpoint": expected is None or expected.number == 0}
        self._times = _Times()

    def verify(self) -> Verified:
        for file in files_in(self._directory):
            for line in lines_in(file):
                self._one(file, line)
        self._times.end()
        removal = self._removal()
        if self._first > 1 and removal is None:
            begins = f"{self._directory}: begins with number {self._first}"
            self._add(f"{begins}, and no record has those before as removed")
        if not self._seen["head"]:
            self._add(f"{self._directory}: no line has the hash {self._wanted}; the record was cut off or replaced")
        elif self._wanted is not None:
            self._check_beginning("head", self._expected_of_head())
        if self._expected is not None and not self._seen["checkpoint"]:
            self._add(self._missing(self._expected))
        elif self._expected is not None:
            self._check_beginning("checkpoint", self._expected)
        removed = ""
        if removal is not None:
            removed = f"numbers up to {self._first - 1} were removed as too old, says record {removal}"
        return Verified(
            self._first, self._number, self._last, tuple(self._problems), tuple(self._broken_off),
            tuple(self._times.back), removed, max(self._first, self._lasting(self._number)), tuple(self._times.days),
        )  # fmt: skip

    def _begin(self, record: dict[str, Any]) -> None:
        """Starts at the first record; earlier ones may have been removed, as a later record then says."""
        number, previous = _number(record), record.get("previous")
        if number > 1 and isinstance(previous, str):
            self._number, self._head = number - 1, previous
            self._before = (number - 1, previous)

    def _removal(self) -> int | None:
        """Number of the record that reports the removal of those before the first one, None if there is none."""
        number, previous = self._before
        for (last, head), removal in self._removals.items():
            if last == number and reduce(partial(head_behind, whole=False), self._torn_first, head) == previous:
                return removal
        return None

    def _lasting(self, number: int) -> int:
        """Number of the first record whose removal no record up to this number reports."""
        return max((last + 1 for (last, _), removal in self._removals.items() if removal <= number), default=1)

    def _one(self, file: ChainFile, line: Line) -> None:
        record, digest = line.record(), hashlib.sha256(line.octets).hexdigest()
        if record is None:
            self._broken_off.append(line.place)  # never confirmed; the next record is bound to it
            if not self._first:
                self._torn_first.append(digest)
        else:
            if not self._first:
                self._begin(record)
            self._number += 1
            self._first = self._first or self._number
            self._check(line, record)
            self._check_name(file, line, record)
        self._head = head_behind(self._head, digest, whole=record is not None)
        if record is not None:
            self._last = self._head
        if self._head == self._wanted:
            self._seen["head"], self._number_of_head = True, self._number
        if self._expected is not None and record is not None and self._number == self._expected.number:
            self._seen["checkpoint"] = True
            if self._head != self._expected.head:
                self._add(f"{line.place}: is another line than that of the checkpoint; the record was replaced")

    def _check(self, line: Line, record: dict[str, Any]) -> None:
        number = _number(record)
        follows = record.get("previous") == self._head
        if number != self._number:
            missing = ""
            if number > self._number and not follows:
                one = number == self._number + 1
                missing = f": {self._number} {'is' if one else f'to {number - 1} are'} missing"
            self._add(f"{line.place}: number {record.get('number')!r}, and {self._number} is expected{missing}")
            follows = follows or missing != ""  # it continues a missing one
            self._number = number or self._number
        if not follows:
            self._add(f"{line.place}: does not continue the line before it; one of them was changed")
        self._times.see(line.place, self._number, record)
        if record.get("event") == REMOVED:
            last, head = _number(record, "last"), record.get("head")
            if not 0 < last < self._number or not isinstance(head, str):
                self._add(f"{line.place}: has records as removed and does not say which before it")
            else:
                self._removals.setdefault((last, head), self._number)

    def _check_name(self, file: ChainFile, line: Line, record: dict[str, Any]) -> None:
        """Checks that the file is named after its first record, which contains the day it was begun."""
        is_first, begun = file != self._file, record.get(BEGUN)
        self._file = file
        self._begins_files |= begun is not None
        number, _, _ = file.path.name.partition("-")
        if is_first and number != f"{_number(record):012}":
            self._add(f"{line.place}: the first record in this file has another number than the file's name")
        elif self._begins_files and begun != (file.day if is_first else None):
            where = "first record in this file" if is_first else "record"
            fits = "which is not in the file's name" if is_first else "and is not the first in its file"
            self._add(f"{line.place}: this {where} says that a file was begun on {begun!r}, {fits}")

    def _expected_of_head(self) -> ExpectedLine:
        """The lines that a head alone covers; only the record itself tells the day of its first line."""
        number = self._number_of_head
        days = tuple(each for each in self._times.days[:1] if each[0] == self._first)
        return ExpectedLine(number, "", self._lasting(number), self._keep_days, days)

    def _check_beginning(self, what: str, expected: ExpectedLine) -> None:
        """Checks that missing first records, covered by checkpoint or head, are old enough by the days signed."""
        if expected.number == 0 or self._first <= expected.first:
            return
        missing = f"numbers {expected.first} to {self._first - 1}, which the {what} covers, are missing"
        day = max((day for number, day in expected.days if number <= self._first), default="")
        if expected.keep_days is None or not day:
            self._add(f"{self._directory}: {missing}, and nothing says how long records are kept")
        elif day >= f"{self._now - timedelta(days=expected.keep_days):%Y-%m-%d}":
            kept = f"records are kept for {expected.keep_days} days, and these may be of {day}"
            self._add(f"{self._directory}: {missing}; {kept}")

    def _missing(self, expected: ExpectedLine) -> str:
        if expected.number < self._first:
            return (
                f"{self._directory}: begins with number {self._first}, so that the checkpoint, of number "
                f"{expected.number}, can be compared with nothing"
            )
        return f"{self._directory}: ends with number {self._number}, before the checkpoint, of number {expected.number}"

    def _add(self, problem: str) -> None:
        if len(self._problems) < MAX_PROBLEMS:
            self._problems.append(problem)


class _Times:
    """Times of records in order: `days` are the days of the records, `back` the places where times go back.

    A clock that was wrong for a while affects many records: one line reports all of them.
    """

    def __init__(self) -> None:
        self.days: list[tuple[int, str]] = []
        self.back: list[str] = []
        self._latest: datetime | None = None
        self._place = ""
        self._number = 0
        self._by = timedelta(0)

    def see(self, place: str, number: int, record: dict[str, Any]) -> None:
        """Takes the next record."""
        time = _time(record)
        if time is None:
            self._add(f"{place}: has no time")
            return
        day = f"{time:%Y-%m-%d}"
        if not self.days or day > self.days[-1][1]:
            self.days.append((number, day))
        if record.get("event") in _LATER_WRITTEN or record.get("reason") == "Killed":
            return
        if self._latest is None or time >= self._latest - CLOCK_TOLERANCE:
            self._latest = time if self._latest is None else max(time, self._latest)
            self.end()
            return
        self._place = self._place or place
        self._number += 1
        self._by = max(self._by, self._latest - time)

    def end(self) -> None:
        """Ends a run of times that go back."""
        if self._number:
            records = "its time is" if self._number == 1 else f"times of {self._number} records from here on are"
            self._add(f"{self._place}: {records} before that of a record in front of it, by up to {_span(self._by)}")
        self._place, self._number, self._by = "", 0, timedelta(0)

    def _add(self, said: str) -> None:
        if len(self.back) < MAX_PROBLEMS:
            self.back.append(said)


def _number(record: dict[str, Any], name: str = "number") -> int:
    """A record number, from 1; 0 if invalid."""
    number = record.get(name)
    return number if type(number) is int and number > 0 else 0


def _time(record: dict[str, Any]) -> datetime | None:
    try:
        time = datetime.fromisoformat(str(record.get("time")))
        return time.astimezone(UTC) if time.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def _span(time: timedelta) -> str:
    """A duration in its largest unit."""
    for unit, seconds in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if (number := int(time.total_seconds()) // seconds) >= 2:
            return f"{number} {unit}"
    return f"{time.total_seconds():.0f} seconds"
