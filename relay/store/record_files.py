"""Record files: what must survive a killed process at once, before it is in the store, written without an await.
Standard: what write(2) or a shared mapping took is the kernel's; flock(2): a file has one writer, until that ends.

A record is 4 bytes with the length of what follows, most significant first, its CRC-32, and its bytes. The CRC-32 shows
whether a machine that lost its power has kept all of one. A length of 0 ends a file. Sealed records begin with the 8
bytes of the site secret's id; a nonce and the ciphertext with its tag follow. The first releases wrote sealed records
without the CRC-32, and such are read. Room is allocated before it is needed, so
that a full disk is noticed before there is something to write.

There are two writers: spool.py flushes to the disk and seals, mapped_file.py costs no system call for a record.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import secrets
import zlib
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from struct import Struct

import structlog

from relay.errors import StoreUnavailable
from relay.runtime.aio import in_thread
from relay.store.secret import SealedOctets, SiteSecret
from relay.store.secret_file import open_regular

log = structlog.get_logger(__name__)

LENGTH_OCTETS = 4
CRC = Struct(">I")
"""Form of the CRC-32 of a record, which stands before it."""
OVERHEAD_OCTETS = LENGTH_OCTETS + CRC.size
"""Overhead of a record beside its own bytes."""
MAX_OCTETS = 64 * 2**20
"""Maximum size of a file, in bytes."""
_ID_OCTETS = 8
_SECRET_ID = re.compile(rb"[0-9a-f]{8}")
_WRITER = re.compile(r"([0-9a-f]{8})-")


def sealed(record: bytes, directory: Path, secret: SiteSecret) -> bytes:
    """The record under our newest secret, bound to the name of its directory."""
    its = secret.seal(record, _context(directory))
    return its.secret_id.encode() + its.data


@dataclass(frozen=True, slots=True)
class RecordFile:
    """A file as it stands: its records in order, and how many are torn or changed.

    Of sealed records, `records` are those that our secrets open; `secret_ids` are the ids of all secrets that records
    are under. `error` says why the file cannot be read.
    """

    path: Path
    records: list[bytes] = field(default_factory=list, repr=False)
    torn: int = 0
    size: int = 0
    secret_ids: set[str] = field(default_factory=set)
    error: OSError | None = None

    def remove(self) -> None:
        """Overwrites the records and deletes the file: the store has them. Raises OSError; blocks."""
        # A disk that copies when it is written to overwrites nothing, and may have no room for that.
        with suppress(OSError), os.fdopen(open_regular(self.path, os.O_RDWR), "r+b") as file:
            if os.fstat(file.fileno()).st_nlink == 1:  # what has another name is not ours alone
                file.write(bytes(self.size))
                file.flush()
                os.fdatasync(file.fileno())
        self.path.unlink(missing_ok=True)


def left_behind(directory: Path, suffix: str, secret: SiteSecret | None = None) -> Generator[RecordFile]:
    """The files that nobody writes, each for this caller alone until the next one is asked for. Blocks.

    Their names end with `suffix`; sealed records need a `secret`. What cannot be read, or is under a secret that we do
    not hold, stays where it is, is logged, and keeps nothing else back.
    """
    for path in _paths(directory, suffix):
        try:
            file = open_regular(path, os.O_RDWR)
        except OSError as error:
            _log_unread(path, error)
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            records = _read(path, file, secret) if os.fstat(file).st_nlink else None
            if records is not None and secret is not None and (missing := records.secret_ids.difference(secret.ids)):
                _log_unread(path, f"site secret {', '.join(missing)} is missing")
            elif records is not None:
                yield records
        except BlockingIOError:
            continue
        except OSError as error:
            _log_unread(path, error)
        finally:
            os.close(file)


def contents(directory: Path, suffix: str, secret: SiteSecret | None = None) -> Iterator[RecordFile]:
    """All files, those in use too, without getting in anybody's way. Blocks.

    The secret of a writer is one of `secret_ids`, though there is no record yet.
    """
    for path in _paths(directory, suffix):
        try:
            file = open_regular(path, os.O_RDONLY)
            try:
                content = _read(path, file, secret)
            finally:
                os.close(file)
        except FileNotFoundError:
            continue
        except OSError as error:
            content = RecordFile(path, error=error)
        content.secret_ids.update(_WRITER.findall(path.name))
        yield content


async def take_over(
    directory: Path,
    suffix: str,
    put: Callable[[Sequence[bytes]], Awaitable[int]],
    lost: str,
    secret: SiteSecret | None = None,
) -> int:
    """Has `put` store the records of each file that was left behind, and removes it; the sum of what `put` returns.

    Where it raises ValueError a newer relay has written them, and the file stays. `lost` says in the log what torn
    records mean. Raises StoreUnavailable and OSError: the rest is for the next time.
    """
    number = 0
    async with aclosing(in_thread(left_behind(directory, suffix, secret))) as files:
        async for file in files:
            try:
                number += await put(file.records)
            except ValueError:
                _log_unread(file.path, "written by a newer relay")
                continue
            # Here, once: a file may be looked at many times before the store takes it.
            if file.torn:
                log.error("record_file_torn", file=str(file.path), records=file.torn, meaning=lost)
            # Not before all of it is in the store: until then the file is the only copy.
            await asyncio.to_thread(file.remove)
    return number


@contextmanager
def new_file(directory: Path, name: str, size: int) -> Iterator[tuple[Path, int]]:
    """A file under its lock, with room for `size` bytes; `name` has a `*` where something unique takes its place.

    The directory is made if missing. Where the block raises, no file stays. Raises StoreUnavailable for OSError.
    """
    with needing_room(directory, size):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, file = _locked(directory, name)
        try:
            os.posix_fallocate(file, 0, size)
            yield path, file
        except OSError:
            path.unlink()
            os.close(file)
            raise


@contextmanager
def needing_room(directory: Path, size: int) -> Iterator[None]:
    """What is done within needs room for `size` bytes. Raises StoreUnavailable for OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            cause = f"no room: {error.strerror}: {size // 2**20} MiB are needed there"
        else:
            cause = f"no file can be made there: {error.strerror}"
        raise StoreUnavailable(f"{directory}: {cause}") from error


def _locked(directory: Path, name: str) -> tuple[Path, int]:
    """A new file under its lock. Raises OSError.

    Somebody who cleans up may have it first, and removes it; then we make another. Its lock is not waited for: who
    cleans up in this process has it until the event loop goes on.
    """
    while True:
        path = directory / name.replace("*", secrets.token_hex(8))
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_nlink:
                return path, file
        os.close(file)


def _paths(directory: Path, suffix: str) -> list[Path]:
    return sorted(directory.glob(f"*{suffix}")) if directory.is_dir() else []


def _log_unread(path: Path, cause: OSError | str) -> None:
    if not isinstance(cause, FileNotFoundError):
        _log_once(path, str(cause.strerror) if isinstance(cause, OSError) else cause)


@lru_cache(maxsize=1000)
def _log_once(path: Path, cause: str) -> None:
    """A file that cannot be read is looked at again and again."""
    log.error("record_file_not_read", file=str(path), cause=cause, meaning="it stays where it is")


def _read(path: Path, file: int, secret: SiteSecret | None) -> RecordFile:
    """What is in an open file. Raises OSError."""
    size = os.fstat(file).st_size
    if size > MAX_OCTETS:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    records, torn, at, ids = list[bytes](), 0, 0, set[str]()
    with os.fdopen(file, "rb", closefd=False) as stream:
        while length := int.from_bytes(stream.read(LENGTH_OCTETS), "big"):
            row = stream.read(min(length, size))
            at += LENGTH_OCTETS + len(row)
            record = row[CRC.size :]
            whole = row[: CRC.size] == CRC.pack(zlib.crc32(record))
            if not whole and secret is not None and _SECRET_ID.match(row):
                record, whole = row, True  # of an earlier release, without a CRC-32: its tag says whether it is whole
            if len(row) != length or not whole:
                torn += 1
            elif secret is None:
                records.append(record)
            else:
                its = SealedOctets(record[:_ID_OCTETS].decode("latin-1"), record[_ID_OCTETS:])
                ids.add(its.secret_id)
                try:
                    records.append(secret.open(its, _context(path.parent)))
                except StoreUnavailable:
                    torn += its.secret_id in secret.ids
    return RecordFile(path, records, torn, at, ids)


def _context(directory: Path) -> bytes:
    return b"spool " + directory.name.encode()
