"""Finds policy records in the audit record, newest first, without reading the records between them.
Standard: deploy/AUDIT.md; each such record has the place of the previous one, and a file has the newest place.

The file is on the disk before the record is written. Without the file, the whole record is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from relay.audit.chain import ChainFile, ChainPlace, files_of, make_directory
from relay.audit.reading import Line, lines, lines_in
from relay.errors import ConfigError
from relay.files import sync_directory
from relay.files.stamps import read_json

log = structlog.get_logger(__name__)

POLICIES = "policies"
"""The event of a record about a set of policies that came into force."""
_NAME = ".policies"


class PolicyRecordPlaces(NamedTuple):
    """A place before the newest policy record, and one before the previous policy record, if known."""

    behind: ChainPlace
    earlier: ChainPlace | None

    @classmethod
    def read(cls, directory: Path) -> PolicyRecordPlaces | None:
        """The stored places, None if there are none. Blocks, and raises nothing."""
        try:
            return read_json(directory / _NAME, cls._taken)
        except (OSError, ValueError):
            return None

    @classmethod
    def _taken(cls, content: Any) -> PolicyRecordPlaces:
        behind, earlier = content
        return cls(_place(behind), _place(earlier) if earlier is not None else None)

    def checked(self, directory: Path) -> PolicyRecordPlaces | None:
        """These places, or the previous one alone if the newest record was never written. Raises ConfigError."""
        if next(records_behind(directory, self.behind), None) is not None:
            return self
        return PolicyRecordPlaces(self.earlier, None) if self.earlier is not None else None

    def write(self, directory: Path) -> None:
        """Writes the file. A failure removes it, since an older one would hide the newest record. Blocks."""
        path = directory / _NAME
        beside = directory / f"{_NAME}.new"
        try:
            make_directory(directory)
            with beside.open("w") as file:
                os.fchmod(file.fileno(), 0o600)
                json.dump(self, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            sync_directory(directory)
        except OSError as error:
            log.warning("policy_places_not_written", file=str(path), cause=error.strerror)
            for each in (path, beside):
                with suppress(OSError):
                    each.unlink()


def _place(value: Any) -> ChainPlace:
    first, octets = value
    return ChainPlace(int(first), int(octets))


def records_behind(directory: Path, place: ChainPlace) -> Iterator[dict[str, Any]]:
    """The policy records from this place on, oldest first; none if the place no longer exists.

    Raises ConfigError.
    """
    if not _is_gone(_files(directory), place):
        yield from filter(None, map(_record, lines(directory, behind=place)))


def newest_first(directory: Path) -> Iterator[dict[str, Any]]:
    """All policy records, newest first. Raises ConfigError."""
    places = PolicyRecordPlaces.read(directory)
    place = _first_behind(directory, (places.behind, places.earlier)) if places is not None else None
    if place is None:
        yield from _backwards(directory)
    while place is not None:
        yield place
        try:
            earlier = _place(place["earlier"])
        except (KeyError, ValueError, TypeError):
            yield from _backwards(directory, place["number"])
            return
        before = _first_behind(directory, (earlier,))
        if before is None:  # removed as too old, or at the beginning of the next file
            yield from _backwards(directory, place["number"], _files(directory)[:1])
            return
        if before["number"] >= place["number"]:
            yield from _backwards(directory, place["number"])
            return
        place = before


def _first_behind(directory: Path, places: Iterable[ChainPlace | None]) -> dict[str, Any] | None:
    firsts = (next(records_behind(directory, place), None) for place in places if place is not None)
    return next(filter(None, firsts), None)


def _is_gone(files: Sequence[ChainFile], place: ChainPlace) -> bool:
    """Whether the file of this place was removed as too old, or moved away."""
    return all(file.first != (place.first or 1) for file in files)


def _backwards(
    directory: Path, below: int | None = None, files: Sequence[ChainFile] | None = None
) -> Iterator[dict[str, Any]]:
    """The policy records with a number `below` this one, in these or all files, newest first."""
    for file in reversed(_files(directory) if files is None else files):
        if below is None or file.first < below:
            records = [each for each in map(_record, lines_in(file)) if each is not None]
            yield from (each for each in reversed(records) if below is None or each["number"] < below)


def _files(directory: Path) -> list[ChainFile]:
    """All files. Raises ConfigError."""
    try:
        return files_of(directory)
    except FileNotFoundError:  # nothing recorded yet
        return []
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be read: {error.strerror}") from error


def _record(line: Line) -> dict[str, Any] | None:
    """The policy record in this line; None for other lines."""
    if line.value_of("event") != POLICIES or (record := line.record()) is None:
        return None
    return record if isinstance(record.get("number"), int) else None
