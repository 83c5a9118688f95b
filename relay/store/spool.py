"""Writes record files (record_files.py) of sealed records, flushed to disk: replies with received keys.
Standard: write(2), fdatasync(2): a full disk is an error here, also on a copy-on-write file system. There, allocated
room is no guarantee, and a write to mapped memory may raise SIGBUS.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import structlog

from relay.errors import StoreUnavailable
from relay.files import sync_directory
from relay.store.mapped_file import in_place
from relay.store.record_files import CRC, LENGTH_OCTETS, MAX_OCTETS, needing_room, new_file, sealed
from relay.store.secret import SiteSecret

log = structlog.get_logger(__name__)

SUFFIX = ".spool"
ROOM_OCTETS = 2 * 2**20
"""Number of bytes reserved in a file: more than the largest reply of a real KME."""


class Spool:
    """The file that this process appends to; made when it is first needed, and a new one after each `hand_over`."""

    def __init__(self, directory: Path, secret: SiteSecret) -> None:
        """The directory is made if missing; its name is what the records are bound to."""
        self._directory = directory
        self._secret = secret
        self._path = directory
        self._file = -1
        self._end = self._room = 0
        self._has_records = self._in_directory = False

    @property
    def written(self) -> bool:
        """Whether there is any record in the file."""
        return self._end > 0

    def ready(self) -> None:
        """Reserves room for the next records, in a file where the next process finds them. Raises StoreUnavailable."""
        if self._file >= 0 and not in_place(self._path, self._file):
            before, has_records = self._file, self._has_records
            self._begin(os.pread(before, self._end, 0))
            self._has_records = has_records
            os.close(before)
        if self._file < 0:
            self._begin()
        elif self._room - self._end < ROOM_OCTETS:
            if self._end + 2 * ROOM_OCTETS > MAX_OCTETS:
                raise StoreUnavailable(f"{self._path}: is full, and has not been handed over yet")
            with needing_room(self._directory, 2 * ROOM_OCTETS):
                os.posix_fallocate(self._file, self._end, 2 * ROOM_OCTETS)
            self._room = self._end + 2 * ROOM_OCTETS

    def _begin(self, carried: bytes = b"") -> None:
        """A file with these rows and room. Raises StoreUnavailable, and goes on with the former file then."""
        name, room = f"{self._secret.ids[0]}-*{SUFFIX}", len(carried) + 2 * ROOM_OCTETS
        with new_file(self._directory, name, room) as (path, file):
            os.pwrite(file, carried, 0)
        self._path, self._file = path, file
        self._end, self._room = len(carried), room
        self._has_records = self._in_directory = False

    def append(self, record: bytes) -> None:
        """Writes the record; it then survives this process, but not yet a power failure.

        Contains no await: nothing may happen between an event and its record. Raises StoreUnavailable.
        """
        self.note(record)
        self._has_records = True

    def note(self, record: bytes) -> None:
        """Writes a record that only matters if this process is killed; it alone does not cause a new file.

        Raises StoreUnavailable.
        """
        self.ready()
        self._end += self._write(self._file, self._end, record)

    def _write(self, file: int, end: int, record: bytes) -> int:
        """How many bytes it has there. Raises StoreUnavailable."""
        row = sealed(record, self._directory, self._secret)
        row = CRC.pack(zlib.crc32(row)) + row
        row = len(row).to_bytes(LENGTH_OCTETS, "big") + row
        try:
            written = 0
            while written < len(row):
                written += os.pwrite(file, row[written:], end + written)
        except OSError as error:
            # The next record overwrites it: what is there now has an invalid checksum.
            raise self._not_written(error) from error
        return len(row)

    def flush(self) -> None:
        """Waits until what was written is on the disk. Raises StoreUnavailable; blocks.

        Nothing else here waits for a disk: data of a killed process survives without it.
        """
        try:
            os.fdatasync(self._file)
            if not self._in_directory:
                sync_directory(self._directory)
                self._in_directory = True
        except OSError as error:
            raise self._not_written(error) from error

    def _not_written(self, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(f"{self._directory}: cannot be written: {error.strerror}")

    def hand_over(self, carried: Sequence[bytes] = (), last: bytes = b"") -> None:
        """Closes the file, if it has more than notes, for the process that takes it over.

        Only if a new one could be created: a pending reply may need the room in this one. The `carried` notes go into
        the new file, then the `last` one into the old file.
        """
        if self._file < 0 or (not self._has_records and self._end < ROOM_OCTETS):
            return
        before, end = self._file, self._end
        try:
            self._begin()
            for each in carried:
                self.note(each)
            if last:
                self._write(before, end, last)
        except StoreUnavailable as error:
            log.error("spool_not_handed_over", directory=str(self._directory), cause=str(error))
        finally:
            if self._file != before:
                os.close(before)

    def close(self) -> None:
        """Closes the file, and deletes it if it is empty."""
        if self._file >= 0:
            if not self._end:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
        self._file, self._end, self._room, self._has_records = -1, 0, 0, False
