"""The files of the audit record: any process may append lines to the newest one, under a lock.
JSON lines, each with its number and the SHA-256 of the previous line, across all files: deploy/AUDIT.md.

A confirmed line is never changed or removed. A line cut short by a crash was not confirmed; it stays, and the next
record is bound to it and everything before. A finished file is read-only (mode 0400): a process that still has the file
open notices this, and opens the next one. A process likewise leaves a file that was moved away. The chain continues
after the last line of a moved file, so that the gap is detected, and closed when the file returns. A process never
appends to a file that ends before the last record that it knows: it finishes that file, and begins another.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
import re
import stat
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BufferedIOBase
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep
from typing import Any, NamedTuple

import structlog

from relay.files import open_regular, resolved, sync_directory

log = structlog.get_logger(__name__)

BEGUN = "begun"
"""Member of the first record in each file: the day in the file's name."""
GENESIS = "0" * 64
"""Placeholder hash before the first line."""
MAX_LINE_OCTETS, FRAME_OCTETS = 1024 * 1024, 256
"""Maximum length of a line, and of its number and hash, in bytes."""
FILE_OCTETS = 128 * 2**20
"""Size from which a file is finished, in bytes. A file of an earlier day (UTC) is finished too."""
WRITE_S = 0.05
"""Time a reader waits for the rest of a line whose beginning it has read, in seconds."""
LOCK_S, LOOK_S = 5.0, 0.002
"""Maximum wait for the lock, and poll interval, in seconds."""

_NAME = re.compile(r"([0-9]{12,})-([0-9]{4}-[0-9]{2}-[0-9]{2})\.jsonl(\.gz)?")
_WRITABLE, _READ_ONLY = 0o600, 0o400


class ChainFile(NamedTuple):
    """One file: the number of its first line, the day of its creation (UTC), and its path."""

    first: int
    day: str
    path: Path

    @property
    def is_compressed(self) -> bool:
        """Whether it is a gzip file."""
        return self.path.suffix == ".gz"


class ChainPlace(NamedTuple):
    """A place in the chain: the number of a file's first line, and an offset in bytes."""

    first: int
    offset: int


START = ChainPlace(0, 0)


class End(NamedTuple):
    """Number of the last record, the `previous` of the next one, and whether the last line has no end."""

    number: int
    head: str
    broken: bool = False


BEGINNING = End(0, GENESIS)
"""The end of an empty chain."""


def files_of(directory: Path) -> list[ChainFile]:
    """All files in order. Of a file and its compressed copy, the uncompressed one counts. Raises OSError.

    Two files with the same number and different days are both returned: nothing here can tell which is right.
    """
    files: dict[tuple[int, str], ChainFile] = {}
    for path in sorted(directory.iterdir()):
        if match := _NAME.fullmatch(path.name):
            files.setdefault((int(match[1]), match[2]), ChainFile(int(match[1]), match[2], path))
    return [files[each] for each in sorted(files)]


def today() -> str:
    """The day of a file that begins now (UTC)."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


class Chain:
    """The chain as one process appends to it; all methods block, and may be called from any thread."""

    def __init__(self, directory: Path, file_octets: int = FILE_OCTETS) -> None:
        """Opens and creates nothing until the first append."""
        self.directory = directory
        self.place = START
        """A place before all lines appended from now on, as of this process's last append."""
        self._file_octets = file_octets
        self._file = self._lock = -1
        self._newest = ChainFile(0, "", directory)
        self._size = 0
        self._end = self._gone = BEGINNING
        self._one_at_a_time = threading.Lock()

    def look(self) -> None:
        """Opens the newest file and finds the end of the chain, before somebody removes the files. Creates nothing.

        To be called before the first append, and periodically, since a process may append nothing for long. Blocks.
        """
        with self._one_at_a_time, suppress(OSError):
            if self._file >= 0 and os.fstat(self._file).st_mode & stat.S_IWUSR:
                return
            self._look()
            if files := files_of(self.directory):
                locked = self._locked()
                try:
                    self._learn(files, locked=locked)
                finally:
                    if locked:
                        fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _learn(self, files: Sequence[ChainFile], *, locked: bool) -> None:
        newest, end = files[-1], end_of_files(files)
        if end.number < self._end.number:
            return
        self.place = ChainPlace(newest.first, 0 if newest.is_compressed else newest.path.stat().st_size)
        self._open_if_unfinished(newest)
        if locked or self._file < 0:  # otherwise another process may truncate the line that it is writing
            self._end = end
        self._size = -1  # forces a new read before the first append

    def append(self, bodies: Sequence[bytes], *, flush: bool) -> End:
        """Appends a line for each of these JSON members, all or none; with `flush` they are on disk.

        Returns the number and hash of the last line. Raises OSError.
        """
        with self._one_at_a_time:
            with self._alone():
                self._open()
                number, head = self._end.number, self._end.head.encode()
                pieces = [b"\n"] if self._end.broken else []
                for body in bodies:
                    number += 1
                    begun = b'"%b": "%b", ' % (BEGUN.encode(), self._newest.day.encode())
                    begun = begun if number == self._newest.first else b""
                    line = b'{"number": %d, %b%b, "previous": "%b"}' % (number, begun, body, head)
                    head = hashlib.sha256(line).hexdigest().encode()
                    pieces += (line, b"\n")
                self._write(b"".join(pieces))
                end = End(number, head.decode()) if bodies else self._end
                self._end, self.place = end, ChainPlace(self._newest.first, self._size)
            if flush:  # other processes can append meanwhile
                os.fsync(self._file)
            return end

    def flush(self) -> None:
        """Flushes appended lines to disk. Raises OSError."""
        with self._one_at_a_time:
            if self._file >= 0:
                os.fsync(self._file)

    def close(self) -> None:
        """Closes the file."""
        self._close_file()
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Locks the chain against other processes. Raises OSError after LOCK_S."""
        until = monotonic() + LOCK_S
        while not self._locked():
            if monotonic() > until:
                raise OSError(errno.ETIMEDOUT, f"somebody has held its lock for {LOCK_S:.0f} s")
            sleep(LOOK_S)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _locked(self) -> bool:
        if self._lock < 0:
            make_directory(self.directory)
            self._lock = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if leads_to(self.directory, self._lock):
            return True
        os.close(self._lock)  # moved or deleted
        self._lock = -1
        return False

    def _open(self) -> None:
        """Opens the file to append to, and finds the end of the chain. Finishes a full or old file."""
        gone = self._look()
        known, was = self._end, self._newest.path
        if self._file < 0:
            end = self._open_newest()
            if end.number < known.number:
                gone = True
                self._finish()
            else:
                self._end = end
        if gone and known != self._gone:
            log.error("audit_file_gone", file=str(was), last=known.number, head=known.head)
            self._gone = known
        day = today()
        # A file without a record is not finished: the next one would have the same name.
        begun = self._file >= 0 and self._size and self._end.number >= self._newest.first
        if begun and (self._newest.day != day or self._size >= self._file_octets):
            self._finish()
        if self._file < 0:
            self._begin(day)

    def _look(self) -> bool:
        """Reads lines of other processes in the open file, and closes a file that is no longer current.

        Returns whether the file is gone or was truncated.
        """
        if self._file < 0:
            return False
        info, cut = os.fstat(self._file), False
        if info.st_size != self._size:
            end = end_of(self._file)
            end = end if end.number else end_of_files(files_of(self.directory))
            self._size, cut = info.st_size, end.number < self._end.number
            self._end = self._end if cut else end
        if not info.st_mode & stat.S_IWUSR:
            self._close_file()
            return cut
        if cut or not leads_to(self._newest.path, self._file):
            with suppress(OSError):  # nobody appends to it if it is put back
                self._finish()
            self._close_file()
            return True
        return False

    def _open_newest(self) -> End:
        """Opens the newest file unless it is finished; returns the end of the chain."""
        files = files_of(self.directory)
        end = end_of_files(files)
        if files:
            self._open_if_unfinished(files[-1])
        return end

    def _open_if_unfinished(self, newest: ChainFile) -> None:
        self._close_file()
        self._newest = newest
        if newest.is_compressed or not newest.path.stat().st_mode & stat.S_IWUSR:
            return
        self._file = open_regular(newest.path, os.O_RDWR | os.O_APPEND)
        self._size = os.fstat(self._file).st_size

    def _finish(self) -> None:
        if self._file >= 0:
            os.fsync(self._file)
            os.fchmod(self._file, _READ_ONLY)
            self._close_file()

    def _begin(self, day: str) -> None:
        first = self._end.number + 1
        self._newest = ChainFile(first, day, self.directory / f"{first:012}-{day}.jsonl")
        self._file = os.open(
            self._newest.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _WRITABLE
        )
        owner = os.fstat(self._lock)
        if os.geteuid() == 0 and owner.st_uid:  # by a person's command: the relay must be able to append
            os.fchown(self._file, owner.st_uid, owner.st_gid)
        self._size = 0
        self._end = self._end._replace(broken=False)
        sync_directory(self.directory)

    def _write(self, lines: bytes) -> None:
        """Writes all lines or none: a partial write on a full disk is truncated."""
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._file, lines[written:])
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(lines)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def leads_to(path: Path, descriptor: int) -> bool:
    """Whether the descriptor still refers to the file with this name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except (FileNotFoundError, NotADirectoryError):
        return False


def end_of(descriptor: int, before: End = BEGINNING) -> End:
    """Returns the end of the chain in this file, given the end `before` it; number 0 if neither has a record."""
    size = os.fstat(descriptor).st_size
    if not size:
        return before._replace(broken=False)
    for length in (64 * 1024, 4 * MAX_LINE_OCTETS, size):
        start = max(0, size - length)
        *lines, rest = os.pread(descriptor, size - start, start).split(b"\n")
        if start:
            del lines[:1]  # may be incomplete
        lines += [rest] if rest else []
        last = next((place for place in reversed(range(len(lines))) if number_of(lines[place])), None)
        if last is not None:
            return _behind(lines[last:], BEGINNING)._replace(broken=rest != b"")
    return _behind(lines, before)._replace(broken=rest != b"")


def end_of_file(file: ChainFile, before: End = BEGINNING) -> End:
    """As `end_of`, for a file that no process writes. Raises OSError, EOFError and zlib.error."""
    if file.is_compressed:
        return _behind(lines_of(file), before)
    descriptor = open_regular(file.path)
    try:
        return end_of(descriptor, before)
    finally:
        os.close(descriptor)


def end_of_files(files: Sequence[ChainFile]) -> End:
    """Returns the end of the chain in these files; one without a record has the number of its name. Raises OSError."""
    end, without = BEGINNING, list[ChainFile]()
    try:
        for file in reversed(files):
            end = end_of_file(file)
            if end.number:
                break
            without.append(file)
        for file in reversed(without):
            end = end_of_file(file, End(file.first - 1, end.head))
    except (EOFError, zlib.error) as error:
        raise OSError(errno.EIO, f"{file.path.name} cannot be read: {error}") from error
    return end


def _behind(lines: Iterable[bytes], end: End) -> End:
    """Returns the end of the chain after these lines."""
    number, head = end.number, end.head
    for line in lines:
        digest = hashlib.sha256(line).hexdigest()
        number, head = number_of(line) or number, head_behind(head, digest, whole=record_in(line) is not None)
    return End(number, head)


def head_behind(head: str, digest: str, *, whole: bool) -> str:
    """The `previous` of the record after a line with this hash, given `head` before the line; `whole`: it is a record.

    A record includes the hash of the previous line. A line cut short has none, so it is hashed together with that hash:
    otherwise the preceding lines could be changed.
    """
    return digest if whole else hashlib.sha256(f"{head}{digest}".encode()).hexdigest()


def record_in(line: bytes) -> dict[str, Any] | None:
    """The JSON object in a line, None if the line was cut short."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def number_of(line: bytes) -> int:
    """The record number in a line; 0 if it is no record."""
    number = (record_in(line) or {}).get("number")
    return number if isinstance(number, int) else 0


def lines_of(file: ChainFile, behind: ChainPlace = START) -> Iterator[bytes]:
    """The lines without line ends, from that place on. Raises OSError, EOFError and zlib.error."""
    with _opened(file) as opened:
        if file.first == behind.first:
            opened.seek(behind.offset)
        while line := opened.readline(MAX_LINE_OCTETS + 1):
            if not line.endswith(b"\n"):
                sleep(WRITE_S)
                line += opened.readline(MAX_LINE_OCTETS + 1)
            yield line.removesuffix(b"\n")


@contextmanager
def _opened(file: ChainFile) -> Iterator[BufferedIOBase]:
    path = file.path
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        if file.is_compressed:
            raise
        path = path.with_name(f"{path.name}.gz")  # compressed meanwhile
        descriptor = open_regular(path)
    with os.fdopen(descriptor, "rb") as plain:
        if path.suffix != ".gz":
            yield plain
            return
        with gzip.GzipFile(fileobj=plain) as unpacked:
            yield unpacked


def make_directory(directory: Path) -> None:
    """Creates the directory if missing, with the owner of its parent. Raises OSError."""
    if not directory.exists():
        directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0 and (owner := directory.parent.stat()).st_uid:
            os.chown(directory, owner.st_uid, owner.st_gid)
        sync_directory(directory.parent)


def why_not_writable(directory: Path) -> str:
    """Why no line can be written in this directory, or ""; creates nothing. Blocks."""
    place = resolved(directory)
    if directory.exists() and not directory.is_dir():
        return f"{os.strerror(errno.ENOTDIR)}: move it away, or name another directory (audit.directory)"
    try:
        if not os.path.lexists(place):
            place = place.parent
        with TemporaryFile(dir=place):
            pass
        if directory.is_dir() and (files := files_of(directory)):
            newest = files[-1].path
            if not newest.is_file():
                return f"{newest.name} is not a regular file"
            if newest.stat().st_mode & stat.S_IWUSR:
                os.close(open_regular(newest, os.O_RDWR | os.O_APPEND))
        disk = os.statvfs(place)
        return "" if disk.f_bavail * disk.f_frsize >= MAX_LINE_OCTETS else os.strerror(errno.ENOSPC)
    except OSError as error:
        return error.strerror or type(error).__name__
