"""Writes record files (record_files.py) of sealed records, which are flushed to the disk: replies with received keys.
Standard: write(2), fdatasync(2): a full disk is an error here, also on a file system that copies what it writes. There
allocated room promises nothing, and what is put into mapped memory may be a signal that ends the process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import structlog

from relay.errors import StoreUnavailable
from relay.files import sync_directory
from relay.store.record_files import CRC, LENGTH_OCTETS, MAX_OCTETS, needing_room, new_file, sealed
from relay.store.secret import SiteSecret

log = structlog.get_logger(__name__)

SUFFIX = ".spool"
ROOM_OCTETS = 2 * 2**20
"""Number of bytes reserved in a file before they are needed: more than the largest reply of a real KME."""


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
        """Takes room for the next records. Raises StoreUnavailable where there is none."""
        if self._file < 0:
            self._begin()
        elif self._room - self._end < ROOM_OCTETS:
            if self._end + 2 * ROOM_OCTETS > MAX_OCTETS:
                raise StoreUnavailable(f"{self._path}: is full, and has not been handed over yet")
            with needing_room(self._directory, 2 * ROOM_OCTETS):
                os.posix_fallocate(self._file, self._end, 2 * ROOM_OCTETS)
            self._room = self._end + 2 * ROOM_OCTETS

    def _begin(self) -> None:
        """A file with room. Raises StoreUnavailable."""
        name = f"{self._secret.ids[0]}-*{SUFFIX}"
        with new_file(self._directory, name, 2 * ROOM_OCTETS) as (self._path, self._file):
            self._end, self._room = 0, 2 * ROOM_OCTETS
            self._has_records = self._in_directory = False

    def append(self, record: bytes) -> None:
        """Writes the record: once this has returned, it survives this process, not yet a power failure.

        There is no await in here: between what happened and its record nothing else may. Raises StoreUnavailable.
        """
        self.note(record)
        self._has_records = True

    def note(self, record: bytes) -> None:
        """Writes a record that only counts where this process is killed: it alone is no reason for a new file.

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
            # The next record goes to the same place: what is there now has no right checksum.
            raise self._not_written(error) from error
        return len(row)

    def flush(self) -> None:
        """Waits until what was written is on the disk. Raises StoreUnavailable; blocks.

        Without it nothing here waits for a disk: what a killed process leaves is there without.
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
        """Lets go of the file, where there is more than notes in it: the next process finds it, and removes it.

        Not without another one: the room in this one may be needed for a reply that is on its way. The notes that are
        `carried` go into the new file, and then the `last` one into the old file.
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
        """Lets go of the file, and deletes it where nothing was written."""
        if self._file >= 0:
            if not self._end:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
        self._file, self._end, self._room, self._has_records = -1, 0, 0, False
