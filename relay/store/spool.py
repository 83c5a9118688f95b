"""What must survive a killed process at once, before it is in the store: sealed records, written without an await.
What write(2) took is kept by the kernel; a file has one writer, which holds its lock (flock) meanwhile.

A record starts with 4 bytes, the length of what follows, most significant first. Then come 8 bytes with the id of the
site secret, a nonce, and the ciphertext with its tag. Room is allocated before it is needed, so that a full disk is
noticed before there is something to write. What is not written yet is zeros, which end a file.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog

from relay.errors import StoreUnavailable
from relay.files import sync_directory
from relay.runtime.aio import in_thread
from relay.store.secret import SealedOctets, SiteSecret
from relay.store.secret_file import open_regular

log = structlog.get_logger(__name__)

SUFFIX = ".spool"
ROOM_OCTETS = 2 * 2**20
"""Number of bytes reserved in a file before they are needed: more than the largest reply of a real KME."""
TORN = "keys that a KME has given are lost"
_ID_OCTETS = 8
_ID = re.compile(r"[0-9a-f]{8}")
_LENGTH_OCTETS = 4


class Spool:
    """The file that this process appends to; made when it is first needed, and a new one after each `hand_over`."""

    def __init__(self, directory: Path, secret: SiteSecret) -> None:
        """The directory is made if missing; its name is what the records are bound to."""
        self._directory = directory
        self._secret = secret
        self._path = directory
        self._file = -1
        self._end = 0
        self._room = 0
        self._has_records = False
        self._in_directory = False

    @property
    def written(self) -> bool:
        """Whether there is any record in the file."""
        return self._end > 0

    def ready(self) -> None:
        """Takes room for the next records. Raises StoreUnavailable where there is none."""
        try:
            if self._file < 0:
                self._begin()
            elif self._room - self._end < ROOM_OCTETS:
                os.posix_fallocate(self._file, self._end, 2 * ROOM_OCTETS)
                self._room = self._end + 2 * ROOM_OCTETS
        except OSError as error:
            raise not_made(self._directory, error, 2 * ROOM_OCTETS) from error

    def _begin(self) -> None:
        """A file with room. Raises OSError."""
        path, file = new_file(self._directory, f"{self._secret.ids[0]}-", SUFFIX)
        try:
            os.posix_fallocate(file, 0, 2 * ROOM_OCTETS)
        except OSError:
            path.unlink()
            os.close(file)
            raise
        self._path, self._file, self._end, self._room = path, file, 0, 2 * ROOM_OCTETS
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
        sealed = self._secret.seal(record, _context(self._directory))
        row = sealed.secret_id.encode() + sealed.data
        row = len(row).to_bytes(_LENGTH_OCTETS, "big") + row
        try:
            written = 0
            while written < len(row):
                written += os.pwrite(file, row[written:], end + written)
        except OSError as error:
            # The next record goes to the same place: what is there now has no right tag.
            raise StoreUnavailable(f"{self._directory}: cannot be written: {error.strerror}") from error
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
            raise StoreUnavailable(f"{self._directory}: cannot be written: {error.strerror}") from error

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
        except OSError as error:
            log.error("spool_not_handed_over", directory=str(self._directory), cause=str(error))
            return
        try:
            for each in carried:
                self.note(each)
            if last:
                self._write(before, end, last)
        except StoreUnavailable as error:
            log.error("spool_not_handed_over", directory=str(self._directory), cause=str(error))
        finally:
            os.close(before)

    def discard(self) -> None:
        """Deletes the file: nobody needs what is in it."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Lets go of the file, and deletes it where nothing was written."""
        if self._file >= 0:
            if not self._end:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
        self._file, self._end, self._room, self._has_records = -1, 0, 0, False


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A file as it stands: its records, how many bytes it has, and how many of these are of no use.

    `records` are those that our secrets open; `secret_ids` are the ids of all secrets that records are under.
    """

    path: Path
    records: list[bytes] = field(repr=False)
    octets: int
    torn: int
    secret_ids: frozenset[str]

    def remove(self) -> None:
        """Overwrites the records, then deletes the file: they are in the store. Blocks.

        What is of no use is reported here, once: a file may be looked at many times before the store takes it.
        """
        if self.torn:
            log.error("spool_torn", file=str(self.path), octets=self.torn, meaning=TORN)
        with suppress(FileNotFoundError):
            with os.fdopen(open_regular(self.path, os.O_RDWR), "r+b") as file:
                file.write(bytes(self.octets))
                file.flush()
                os.fdatasync(file.fileno())
            self.path.unlink()


def left_behind(directory: Path, secret: SiteSecret) -> Generator[SpoolFile]:
    """The files that nobody appends to, one after the other, each for this caller alone while it is looked at.

    A file whose secret we do not hold stays where it is, and is logged. Blocks.
    """
    for path in _paths(directory):
        with _alone(path) as file:
            if file is None:
                continue
            try:
                content = _content(path, file, secret)
            except OSError as error:
                log.error("spool_not_read", file=str(path), cause=str(error))
                continue
            if missing := content.secret_ids.difference(secret.ids):
                log.error("spool_not_read", file=str(path), cause=f"site secret {', '.join(missing)} is missing")
                continue
            yield content


async def take_over(
    directory: Path, secret: SiteSecret, put: Callable[[Sequence[bytes]], Awaitable[int]], unreadable: str
) -> int:
    """Has `put` store the records of each file that was left behind, and removes it; the sum of what `put` returns.

    Where it raises ValueError a newer relay has written them: the file stays, and the log has the event `unreadable`.
    Raises StoreUnavailable: the rest is for the next time.
    """
    number = 0
    async with aclosing(in_thread(left_behind(directory, secret))) as files:
        async for file in files:
            try:
                number += await put(file.records)
            except ValueError:
                log.error(unreadable, file=str(file.path), meaning="written by a newer relay: it stays")
            else:
                # Not before all of it is in the store: until then these bytes are the only copy.
                await asyncio.to_thread(file.remove)
    return number


def spool_contents(directory: Path, secret: SiteSecret) -> Iterator[SpoolFile]:
    """All files, those in use too, without getting in anybody's way.

    A writer's is one of their `secret_ids`, though there is no record yet. Blocks, and raises OSError.
    """
    for path in _paths(directory):
        with suppress(FileNotFoundError), os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
            content = _content(path, file.fileno(), secret)
            writer = {path.name[:_ID_OCTETS]} if _ID.fullmatch(path.name[:_ID_OCTETS]) else set()
            yield replace(content, secret_ids=content.secret_ids | writer)


def _paths(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}")) if directory.is_dir() else []


def _context(directory: Path) -> bytes:
    return b"spool " + directory.name.encode()


def new_file(directory: Path, before: str, behind: str) -> tuple[Path, int]:
    """A file under its lock, with a name that nobody else gives it between these. Raises OSError.

    Somebody who cleans up may have it first, and removes it; then we make another. Its lock is not waited for: who
    cleans up in this process has it until the event loop goes on.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        path = directory / f"{before}{secrets.token_hex(8)}{behind}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:
                return path, file
        os.close(file)


def not_made(directory: Path, error: OSError, octets: int) -> StoreUnavailable:
    """The error where a file with room for `octets` bytes could not be made."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreUnavailable(f"{directory}: no room: {error.strerror}: {octets // 2**20} MiB are needed there")
    return StoreUnavailable(f"{directory}: no file can be made there: {error.strerror}")


@contextmanager
def _alone(path: Path) -> Iterator[int | None]:
    """The file under its lock; None where somebody else has it, or it is gone."""
    try:
        file = open_regular(path, os.O_RDWR)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            log.error("spool_not_read", file=str(path), cause=str(error))
        yield None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield None
    else:
        yield file if os.fstat(file).st_nlink else None
    finally:
        os.close(file)


def _content(path: Path, file: int, secret: SiteSecret) -> SpoolFile:
    """What is in an open file. What was cut short or changed has no right tag."""
    records: list[bytes] = []
    ids: set[str] = set()
    at = torn = 0
    for sealed, whole in _rows(file):
        octets = _LENGTH_OCTETS + len(sealed.secret_id) + len(sealed.data)
        if whole and _ID.fullmatch(sealed.secret_id):
            ids.add(sealed.secret_id)
        try:
            records.append(secret.open(sealed, _context(path.parent)))
        except StoreUnavailable:
            if sealed.secret_id not in ids or sealed.secret_id in secret.ids:
                torn += octets
        at += octets
    return SpoolFile(path, records, at, torn, frozenset(ids))


def _rows(file: int) -> Iterator[tuple[SealedOctets, bool]]:
    """What stands where records should be, in order, and whether each is as long as it says."""
    with os.fdopen(os.dup(file), "rb") as stream:
        size = os.fstat(file).st_size
        while length := int.from_bytes(stream.read(_LENGTH_OCTETS), "big"):
            row = stream.read(min(length, size))
            yield SealedOctets(row[:_ID_OCTETS].decode("latin-1"), row[_ID_OCTETS:]), len(row) == length
