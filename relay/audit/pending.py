"""What this process has yet to write into the audit record of mail that is about to leave: a killed one leaves it.
Standard: mmap(2), MAP_SHARED: what was put there is the kernel's, and so there after a kill, without a call to it.

A file is taken up by one process, which holds its lock (flock), with room in it from the start, so that a full disk is
noticed before there is something to write. An announcement is 4 octets with its length, most significant first, which
are written last, and then a JSON object. A length of 0 ends a file; what is behind it was recorded before. There is
nothing in it but what stands in the audit record, or will, and names of recipients as the store has them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from relay.errors import StoreUnavailable
from relay.store.spool import new_file

FILE_OCTETS = 4 * 2**20
TURN_OCTETS = 64 * 1024
_LENGTH_OCTETS = 4
_END = bytes(_LENGTH_OCTETS)
_SUFFIX = ".announced"


@dataclass(slots=True, eq=False)
class Announced:
    """The file in which mails were announced, how far, and how many of them are not recorded yet."""

    path: Path
    file: int
    memory: mmap.mmap
    end: int = 0
    open: int = 0


class Pending:
    """The announcements of this process, in a few files: one that has nothing to tell any more is written anew."""

    def __init__(self, directory: Path) -> None:
        """Nothing is made before the first one."""
        self._directory = directory
        self._now: Announced | None = None
        self._others: list[Announced] = []

    def add(self, record: bytes) -> Announced:
        """Before the mail leaves; there is no await in here. Raises StoreUnavailable where it cannot be written."""
        where = self._now
        if where is None or where.end + len(record) + 2 * _LENGTH_OCTETS > len(where.memory):
            where = self._another(len(record))
        begin = where.end + _LENGTH_OCTETS
        end = begin + len(record)
        # Behind it may stand what was told before the file was written anew: its length comes last.
        where.memory[begin : end + _LENGTH_OCTETS] = record + _END
        where.memory[where.end : begin] = len(record).to_bytes(_LENGTH_OCTETS, "big")
        where.end = end
        where.open += 1
        return where

    def turn(self) -> None:
        """To be called before what was announced is recorded: what is announced from here on goes elsewhere.

        So a file has soon nothing to tell, and the same memory is written again and again: the first octet of a new
        page costs as much as all else here.
        """
        if self._now is None or self._now.end < TURN_OCTETS:
            return
        if not self._others:
            with suppress(StoreUnavailable):  # then it is filled first
                self._others.append(self._made(FILE_OCTETS))
        if (empty := self._empty()) is not None:
            self._others.append(self._now)
            self._now = empty

    def recorded(self, where: Announced, number: int) -> None:
        """So many that were announced there stand in the audit record."""
        where.open -= number
        if where.open:
            return
        where.memory[:_LENGTH_OCTETS] = _END
        where.end = 0
        if where is not self._now and any(not each.open for each in self._others if each is not where):
            self._others.remove(where)
            _discard(where)

    def close(self) -> None:
        """What is not recorded is left for the next relay."""
        for where in (*self._others, *([self._now] if self._now is not None else [])):
            if where.open:
                _let_go(where)
            else:
                _discard(where)
        self._now, self._others = None, []

    def _empty(self) -> Announced | None:
        """One of the others that has nothing to tell; there is one at least, unless all have."""
        for where in self._others:
            if not where.open:
                self._others.remove(where)
                return where
        return None

    def _another(self, octets: int) -> Announced:
        """One with room for so many. Raises StoreUnavailable."""
        where = self._empty()
        if where is None or octets + 2 * _LENGTH_OCTETS > len(where.memory):
            self._others += [where] if where is not None else []
            where = self._made(max(FILE_OCTETS, octets + 2 * _LENGTH_OCTETS))
        self._others += [self._now] if self._now is not None else []
        self._now = where
        return where

    def _made(self, size: int) -> Announced:
        """A file of so many octets. Raises StoreUnavailable."""
        try:
            path, file = new_file(self._directory, "", _SUFFIX)
            try:
                os.posix_fallocate(file, 0, size)  # else a full disk would end this process
                memory = mmap.mmap(file, size)
            except OSError:
                path.unlink()
                os.close(file)
                raise
        except OSError as error:
            raise StoreUnavailable(f"{self._directory}: no file can be made there: {error.strerror}") from error
        return Announced(path, file, memory)


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
