"""What this process has yet to write into the audit record of mail that is about to leave: a killed one leaves it.
Standard: mmap(2), MAP_SHARED: what was put there is the kernel's, and so there after a kill, without a call to it.

A file is taken up by one process, which holds its lock (flock), with room in it from the start, so that a full disk is
noticed before there is something to write. An announcement is 4 octets with its length, most significant first, which
are written last, and then a JSON object. What is not written yet is zeros, which end a file. There is nothing in it but
what will stand in the audit record, and names of recipients as the store has them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from relay.errors import StoreUnavailable

FILE_OCTETS = 4 * 2**20
KEPT_S = 30.0
"""A file is given up when it is full, or after so many seconds, as soon as all that stands there is recorded."""
_LENGTH_OCTETS = 4
_SUFFIX = ".announced"


@dataclass(slots=True, eq=False)
class Announced:
    """The file in which mails were announced, how far, and how many of them are not recorded yet."""

    path: Path
    file: int
    memory: mmap.mmap
    began: float
    end: int = 0
    open: int = 0


class Pending:
    """The announcements of this process."""

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is made before the first one. `clock` gives seconds that never go back."""
        self._directory = directory
        self._clock = clock
        self._now: Announced | None = None
        self._before: list[Announced] = []

    def add(self, record: bytes) -> Announced:
        """Before the mail leaves; there is no await in here. Raises StoreUnavailable where it cannot be written."""
        where = self._now
        if where is None or where.end + len(record) + 2 * _LENGTH_OCTETS > FILE_OCTETS:
            where = self._fresh(len(record))
        begin, end = where.end + _LENGTH_OCTETS, where.end + _LENGTH_OCTETS + len(record)
        where.memory[begin:end] = record
        where.memory[where.end : begin] = len(record).to_bytes(_LENGTH_OCTETS, "big")
        where.end = end
        where.open += 1
        return where

    def recorded(self, where: Announced) -> None:
        """One that was announced there stands in the audit record."""
        where.open -= 1
        if where.open:
            return
        if where is not self._now:
            self._before.remove(where)
            _discard(where)
        elif self._clock() - where.began > KEPT_S:
            self._now = None
            _discard(where)

    def close(self) -> None:
        """What is not recorded is left for the next relay."""
        for where in (*self._before, *([self._now] if self._now is not None else [])):
            if where.open:
                _let_go(where)
            else:
                _discard(where)
        self._now, self._before = None, []

    def _fresh(self, octets: int) -> Announced:
        """A file that has room for so many."""
        path = self._directory / f"{secrets.token_hex(8)}{_SUFFIX}"
        size = max(FILE_OCTETS, octets + 2 * _LENGTH_OCTETS)
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                # First: without its lock another process takes it for left behind.
                fcntl.flock(file, fcntl.LOCK_EX)
                os.posix_fallocate(file, 0, size)  # else a full disk would end this process
                memory = mmap.mmap(file, size)
            except OSError:
                path.unlink()
                os.close(file)
                raise
        except OSError as error:
            raise StoreUnavailable(f"{self._directory}: no file can be made there: {error.strerror}") from error
        if self._now is not None:
            if self._now.open:
                self._before.append(self._now)
            else:
                _discard(self._now)
        self._now = Announced(path, file, memory, self._clock())
        return self._now


def left_behind(directory: Path) -> Generator[list[bytes]]:
    """The announcements in each file that nobody adds to; it is removed once the next one is asked for.

    Blocks, and raises OSError.
    """
    for path in sorted(directory.glob(f"*{_SUFFIX}")) if directory.is_dir() else ():
        try:
            file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:
                yield list(_announcements(os.pread(file, os.fstat(file).st_size, 0)))
                path.unlink()
        except BlockingIOError:
            continue
        finally:
            os.close(file)


def _announcements(octets: bytes) -> Iterator[bytes]:
    at = 0
    while length := int.from_bytes(octets[at : at + _LENGTH_OCTETS], "big"):
        at += _LENGTH_OCTETS
        yield octets[at : at + length]
        at += length


def _discard(where: Announced) -> None:
    where.path.unlink(missing_ok=True)
    _let_go(where)


def _let_go(where: Announced) -> None:
    where.memory.close()
    os.close(where.file)
