"""Reads the audit record: all records in order, and whether they are one chain from the first to the last.
Verifying needs no secret and no database, so anybody can do it with the files: deploy/AUDIT.md.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from relay.audit.chain import GENESIS, MAX_LINE_OCTETS, START, ChainFile, Place, ended, files_of, lines_of
from relay.errors import ConfigError

REMOVED = "removed"
"""The event of a record that says which line was the last one of those that were deleted as too old."""
_MOST_PROBLEMS = 100


class Line(NamedTuple):
    """One line as it stands: where it was read, and its octets without the end of the line."""

    place: str
    octets: bytes

    def value_of(self, name: str) -> str:
        """What a member near the beginning says, without reading all of the line: `event`, `mail`; "" without it."""
        begin = self.octets.find(b'"%b": "' % name.encode())
        begin += len(name) + 5
        return self.octets[begin : self.octets.find(b'"', begin)].decode("ascii", "replace")

    def record(self) -> dict[str, Any] | None:
        """The record in it, None where it was broken off."""
        try:
            record = json.loads(self.octets)
        except (ValueError, RecursionError):
            return None
        return record if isinstance(record, dict) else None


@dataclass(frozen=True, slots=True)
class ExpectedLine:
    """That a line with this number and this hash must be there."""

    number: int
    head: str


@dataclass(frozen=True, slots=True)
class Verified:
    """What verifying found: number of the first record and of the last, hash of that one's line, and what is wrong.

    `broken_off` are the places of lines that a crash cut short.
    """

    first: int
    number: int
    head: str
    problems: tuple[str, ...]
    broken_off: tuple[str, ...] = ()

    @property
    def entries(self) -> int:
        """How many records there are."""
        return self.number - self.first + 1 if self.number else 0


def lines(directory: Path, since: str = "", behind: Place = START) -> Iterator[Line]:
    """All lines in order, but for files of which all are older than the day of `since`, or before a place.

    Raises ConfigError.
    """
    files = _files(directory)
    for number, file in enumerate(files):
        if file.first < behind.first or (number + 1 < len(files) and ended(file, files[number + 1]) < since[:10]):
            continue
        yield from lines_in(file, behind)


def records(directory: Path, since: str = "", events: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """All records of these events, or of all, the oldest first; lines that were broken off are left out.

    Raises ConfigError.
    """
    for line in lines(directory, since):
        if (not events or line.value_of("event") in events) and (record := line.record()) is not None:
            yield record


def verify(directory: Path, expected: ExpectedLine | None = None, head: str | None = None) -> Verified:
    """Follows the chain from the first line to the last. Raises ConfigError where a file cannot be read.

    The chain alone does not show that lines are missing at the end: `expected`, and `head` for a hash alone, are what
    somebody has kept elsewhere, and must be found.
    """
    return _Verifier(expected, head).verify(directory)


class _Verifier:
    def __init__(self, expected: ExpectedLine | None, head: str | None) -> None:
        self._expected, self._wanted = expected, head
        self._problems: list[str] = []
        self._broken_off: list[str] = []
        self._removed: set[tuple[int, str]] = set()
        self._before = (0, GENESIS)
        self._first = self._number = 0
        self._head = self._last = GENESIS
        # Of a record that was empty any one is the continuation.
        self._seen = {"head": head in (None, GENESIS), "checkpoint": expected in (None, ExpectedLine(0, GENESIS))}

    def verify(self, directory: Path) -> Verified:
        begun = False
        for line in lines(directory):
            if not begun:
                begun = True
                self._begin(line)
            self._one(line)
        if self._first > 1 and self._before not in self._removed:
            self._add(f"{directory}: begins with number {self._first}, and no record has those before as removed")
        if not self._seen["head"]:
            self._add(f"{directory}: no line has the hash {self._wanted}; the record was cut off or replaced")
        if self._expected is not None and not self._seen["checkpoint"]:
            self._add(self._missing(directory, self._expected))
        return Verified(self._first, self._number, self._last, tuple(self._problems), tuple(self._broken_off))

    def _begin(self, line: Line) -> None:
        """Those before the first line may have been removed; then a record further on says so."""
        record = line.record() or {}
        number, previous = record.get("number"), record.get("previous")
        if isinstance(number, int) and number > 1 and isinstance(previous, str):
            self._number, self._head = number - 1, previous
            self._before = (number - 1, previous)

    def _one(self, line: Line) -> None:
        record = line.record()
        if record is None:
            self._broken_off.append(line.place)  # confirmed to nobody; the line after it continues the chain over it
        else:
            self._number += 1
            self._first = self._first or self._number
            if record.get("number") != self._number:
                self._add(f"{line.place}: number {record.get('number')!r}, and {self._number} is expected")
                self._number = record["number"] if isinstance(record.get("number"), int) else self._number
            if record.get("previous") != self._head:
                self._add(f"{line.place}: does not continue the line before it; one of them was changed")
            if record.get("event") == REMOVED:
                self._removed.add((record.get("last", 0), str(record.get("head"))))
        self._head = hashlib.sha256(line.octets).hexdigest()
        if record is not None:
            self._last = self._head
        if self._head == self._wanted:
            self._seen["head"] = True
        if self._expected is not None and record is not None and self._number == self._expected.number:
            self._seen["checkpoint"] = True
            if self._head != self._expected.head:
                self._add(f"{line.place}: is another line than that of the checkpoint; the record was replaced")

    def _missing(self, directory: Path, expected: ExpectedLine) -> str:
        if expected.number < self._first:
            return (
                f"{directory}: begins with number {self._first}, so that the checkpoint, of number {expected.number}, "
                "can be compared with nothing"
            )
        return f"{directory}: ends with number {self._number}, before the checkpoint, of number {expected.number}"

    def _add(self, problem: str) -> None:
        if len(self._problems) < _MOST_PROBLEMS:
            self._problems.append(problem)


def _files(directory: Path) -> list[ChainFile]:
    try:
        return files_of(directory)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror}") from error


def lines_in(file: ChainFile, behind: Place = START) -> Iterator[Line]:
    """The lines of one file, none where it was removed meanwhile. Raises ConfigError."""
    try:
        for place, octets in enumerate(lines_of(file, behind), 1):
            if len(octets) > MAX_LINE_OCTETS:
                raise ConfigError(f"{file.path}:{place}: longer than {MAX_LINE_OCTETS} octets; this is no audit record")
            yield Line(f"{file.path}:{place}", octets)
    except FileNotFoundError:
        return  # it was removed as too old meanwhile; were it anything else, its numbers would be missed
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file.path}: cannot be read: {error}") from error
