"""Records in a file that is mapped into memory: they survive a killed process, and to write one costs no system call.
Standard: mmap(2), MAP_SHARED: what was put there is the kernel's. A file has one writer, which holds its lock (flock).

A record is 4 bytes with the length of what follows, most significant first, its CRC-32, and its bytes. The length is
written last, so that a killed writer leaves a record or none. The CRC-32 shows whether a machine that lost its power
has kept all of one. A length of 0 ends a file; what is behind it was written before the file was emptied. Room is
allocated first. So a full disk is noticed before there is something to write, and not by a signal that ends the
process.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import zlib
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from relay.store.secret_file import open_regular
from relay.store.spool import new_file, not_made

log = structlog.get_logger(__name__)

_LENGTH_OCTETS = _CRC_OCTETS = 4
_END = bytes(_LENGTH_OCTETS)
MAX_OCTETS = 64 * 2**20
"""Maximum size of a file, in bytes."""
OVERHEAD_OCTETS = _LENGTH_OCTETS + _CRC_OCTETS
"""Overhead of a record beside its own bytes."""


class MappedFile:
    """One that this process writes, from its start on."""

    __slots__ = ("_file", "_memory", "_most", "end", "path")

    def __init__(self, directory: Path, suffix: str, octets: int) -> None:
        """A new file with room for `octets` bytes, whose name ends with `suffix`. Raises StoreUnavailable."""
        try:
            self.path, self._file = new_file(directory, "", suffix)
            try:
                os.posix_fallocate(self._file, 0, octets)
                self._memory = mmap.mmap(self._file, octets)
            except OSError:
                self.path.unlink()
                os.close(self._file)
                raise
        except OSError as error:
            raise not_made(directory, error, octets) from error
        self._most = octets - _LENGTH_OCTETS
        self.end = 0
        """Number of bytes taken."""

    def fits(self, octets: int) -> bool:
        """Whether there is room for a record of `octets` bytes."""
        return self.end + OVERHEAD_OCTETS + octets <= self._most

    def add(self, record: bytes) -> bool:
        """Writes one, and reports whether it did, since there was room; there is no await in here."""
        begin, memory = self.end, self._memory
        body = begin + _LENGTH_OCTETS
        end = body + _CRC_OCTETS + len(record)
        if end > self._most:
            return False
        memory[body : end + _LENGTH_OCTETS] = zlib.crc32(record).to_bytes(_CRC_OCTETS, "big") + record + _END
        # Last: behind it may stand what was written before the file was emptied.
        memory[begin:body] = (end - body).to_bytes(_LENGTH_OCTETS, "big")
        self.end = end
        return True

    def empty(self) -> None:
        """From here on there is nothing in it."""
        self._memory[:_LENGTH_OCTETS] = _END
        self.end = 0

    def close(self) -> None:
        """Leaves it to the next process."""
        self._memory.close()
        os.close(self._file)

    def discard(self) -> None:
        """Deletes it: nobody needs what is in it."""
        self.path.unlink(missing_ok=True)
        self.close()


@dataclass(frozen=True, slots=True)
class LeftFile:
    """One that is no longer written: its records in order, and how many cannot be read."""

    path: Path
    records: list[bytes] = field(repr=False)
    torn: int

    def remove(self) -> None:
        """Deletes it. Raises OSError."""
        self.path.unlink(missing_ok=True)


def left_behind(directory: Path, suffix: str) -> Generator[LeftFile]:
    """The files that nobody writes, each for this caller alone until the next one is asked for. Blocks.

    What cannot be read stays where it is, is logged, and keeps nothing else back.
    """
    for path in _paths(directory, suffix):
        try:
            file = open_regular(path, os.O_RDWR)
        except OSError as error:
            _tell(path, error)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left = _read(path, file) if os.fstat(file).st_nlink else None
            if left is not None:
                yield left
        except BlockingIOError:
            continue
        except OSError as error:
            _tell(path, error)
        finally:
            os.close(file)


def records_in(directory: Path, suffix: str) -> Iterator[bytes]:
    """What stands in all files that can be read, those in use too, without getting in anybody's way. Blocks."""
    for path in _paths(directory, suffix):
        with suppress(OSError):
            yield from _look(path).records


def unreadable(directory: Path, suffix: str) -> Iterator[OSError]:
    """What cannot be read, and why. Blocks."""
    for path in _paths(directory, suffix):
        try:
            _look(path)
        except FileNotFoundError as error:
            if path.is_symlink():
                yield error
        except OSError as error:
            yield OSError(error.errno, error.strerror, str(path))


def _look(path: Path) -> LeftFile:
    file = open_regular(path, os.O_RDONLY)
    try:
        return _read(path, file)
    finally:
        os.close(file)


def _tell(path: Path, error: OSError) -> None:
    if not isinstance(error, FileNotFoundError) or path.is_symlink():
        log.error("mapped_file_not_read", file=str(path), cause=error.strerror, meaning="it stays; move it away")


def _paths(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}")) if directory.is_dir() else []


def _read(path: Path, file: int) -> LeftFile:
    size = os.fstat(file).st_size
    if size > MAX_OCTETS:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    octets = os.pread(file, size, 0)
    records, torn, at = [], 0, 0
    while length := int.from_bytes(octets[at : at + _LENGTH_OCTETS], "big"):
        at += _LENGTH_OCTETS
        crc, record = octets[at : at + _CRC_OCTETS], octets[at + _CRC_OCTETS : at + length]
        if len(crc) + len(record) == length and zlib.crc32(record).to_bytes(_CRC_OCTETS, "big") == crc:
            records.append(record)
        else:
            torn += 1
        at += length
    return LeftFile(path, records, torn)
