"""Reads the audit record: all lines and records in order, over all files.
Standard: deploy/AUDIT.md; reading needs no secret and no database.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from relay.audit.chain import BEGUN, MAX_LINE_OCTETS, START, ChainFile, ChainPlace, files_of, lines_of, record_in
from relay.errors import ConfigError

REMOVED = "removed"
"""The event of a record with the last line deleted as too old."""


class Line(NamedTuple):
    """One line: its place, and its bytes without the line end."""

    place: str
    octets: bytes

    def value_of(self, name: str) -> str:
        """The value of a member near the beginning (`event`, `mail`) without parsing the line; "" without the
        member.
        """
        begin = self.octets.find(b'"%b": "' % name.encode())
        begin += len(name) + 5
        return self.octets[begin : self.octets.find(b'"', begin)].decode("ascii", "replace")

    def record(self) -> dict[str, Any] | None:
        """The record in the line, None if it was cut short."""
        return record_in(self.octets)


def lines(directory: Path, since: str = "", behind: ChainPlace = START) -> Iterator[Line]:
    """All lines in order, without files that are older than the day of `since`, or before a place.

    The day of a file is in its first record; its name alone is not trusted. Raises ConfigError.
    """
    files = [file for file in files_in(directory) if file.first >= behind.first]
    begun = [_begun(file) for file in files] if since else []
    for file, days in zip_longest(files, pairwise(begun)):
        if days is not None and all(days) and max(days) < since[:10]:
            continue
        yield from lines_in(file, behind)


def _begun(file: ChainFile) -> str:
    """The day (UTC) on which the file was begun, "" in files of earlier releases. Raises ConfigError."""
    first = next(filter(None, (line.record() for line in lines_in(file))), {})
    return str(first.get(BEGUN, ""))


def records(directory: Path, since: str = "", events: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """All records of these events, or of all, oldest first; lines cut short are left out.

    Raises ConfigError.
    """
    for line in lines(directory, since):
        if (not events or line.value_of("event") in events) and (record := line.record()) is not None:
            yield record


def files_in(directory: Path) -> list[ChainFile]:
    """All files, in order. Raises ConfigError."""
    try:
        return files_of(directory)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror}") from error


def lines_in(file: ChainFile, behind: ChainPlace = START) -> Iterator[Line]:
    """The lines of one file, none if it was removed meanwhile. Raises ConfigError."""
    try:
        for place, octets in enumerate(lines_of(file, behind), 1):
            if len(octets) > MAX_LINE_OCTETS:
                raise ConfigError(f"{file.path}:{place}: longer than {MAX_LINE_OCTETS} octets; this is no audit record")
            yield Line(f"{file.path}:{place}", octets)
    except FileNotFoundError:
        return  # removed as too old; otherwise verification would miss its numbers
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{file.path}: cannot be read: {error}") from error
