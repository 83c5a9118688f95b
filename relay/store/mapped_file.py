"""Writes record files (record_files.py) that are mapped into memory: a record is not flushed.
Standard: mmap(2), MAP_SHARED: written data survives the process. The next one looks for the file at its path.

The length of a record is written last, so that a killed writer leaves a whole record or none. Data behind a length of 0
is from before the file was emptied. Room is allocated: else a full disk would raise SIGBUS.
"""

from __future__ import annotations

import mmap
import os
import zlib
from pathlib import Path

from relay.store.record_files import CRC, LENGTH_OCTETS, OVERHEAD_OCTETS, new_file

_END = bytes(LENGTH_OCTETS)


class MappedFile:
    """A mapped file, written by this process."""

    __slots__ = ("_file", "_memory", "_most", "end", "path")

    def __init__(self, directory: Path, suffix: str, size: int) -> None:
        """A new file with room for `size` bytes, whose name ends with `suffix`. Raises StoreUnavailable."""
        with new_file(directory, f"*{suffix}", size) as (self.path, self._file):
            self._memory = mmap.mmap(self._file, size)
        self._most = size - LENGTH_OCTETS
        self.end = 0
        """Number of bytes taken."""

    def fits(self, size: int) -> bool:
        """Whether there is room for a record of `size` bytes, where the next process finds it."""
        return self.end + OVERHEAD_OCTETS + size <= self._most and in_place(self.path, self._file)

    def add(self, record: bytes) -> bool:
        """Writes a record; returns whether there was room. Contains no await."""
        begin, memory = self.end, self._memory
        body, end = begin + LENGTH_OCTETS, begin + OVERHEAD_OCTETS + len(record)
        if end > self._most:
            return False
        memory[body : end + LENGTH_OCTETS] = CRC.pack(zlib.crc32(record)) + record + _END
        # Last: behind it may stand what was written before the file was emptied.
        memory[begin:body] = (end - body).to_bytes(LENGTH_OCTETS, "big")
        self.end = end
        return True

    def empty(self) -> None:
        """Empties the file."""
        self._memory[:LENGTH_OCTETS] = _END
        self.end = 0

    def close(self) -> None:
        """Closes the file and leaves it for the next process."""
        self._memory.close()
        os.close(self._file)

    def discard(self) -> None:
        """Closes and deletes the file."""
        self.path.unlink(missing_ok=True)
        self.close()


def in_place(path: Path, file: int) -> bool:
    """Whether the open file is still at its path, where the next process looks for it. Blocks."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(file))
    except OSError:
        return False
