"""Compresses finished files of the audit record, and deletes those that are too old.
Standard: deploy/AUDIT.md; a deletion is recorded before it happens, so that the chain can be verified.
"""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import os
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BufferedReader, BufferedWriter
from itertools import pairwise, takewhile
from pathlib import Path

import structlog

from relay.audit.chain import ChainFile, end_of_files, files_of, leads_to
from relay.audit.entries import event_members
from relay.audit.reading import REMOVED
from relay.audit.writing import Audit
from relay.files import open_regular, sync_directory

log = structlog.get_logger(__name__)

NEWEST = 2
"""Number of newest files never touched: the newest is in use, and may need the one before it."""
COPY_OCTETS = 1024 * 1024


async def compress_finished(directory: Path) -> None:
    """Compresses the files of earlier days, one by one. Raises OSError."""
    for file in await asyncio.to_thread(_finished, directory):
        if not file.is_compressed:
            await asyncio.to_thread(_compress, file.path)


async def remove_old(audit: Audit, keep_days: int, max_octets: int, now: float) -> None:
    """Deletes files whose records are all older than `keep_days`; if none is, the oldest if all exceed `max_octets`.

    `now` is in seconds since 1970. Raises OSError and StoreUnavailable.
    """
    files = await asyncio.to_thread(_finished, audit.directory)
    too_old = (datetime.fromtimestamp(now, UTC) - timedelta(days=keep_days)).strftime("%Y-%m-%d")
    # A file's last record is of its day or the next file's: clocks may go back. Files are only removed from the
    # beginning: otherwise the chain would have a hole.
    old = [file for file, _ in takewhile(lambda pair: max(each.day for each in pair) < too_old, pairwise(files))]
    if not old and await asyncio.to_thread(_octets, audit.directory) > max_octets:
        old = files[:1]
        log.warning("audit_full", files=len(files), limit=max_octets, meaning="the oldest records are deleted early")
    if not old:
        return
    last, head, _ = await asyncio.to_thread(end_of_files, old)
    await audit.write_now(event_members(REMOVED, {"last": last, "head": head, "files": len(old)}))
    await asyncio.to_thread(_delete, old)
    log.info("audit_removed", files=len(old), last=last, head=head)


def _finished(directory: Path) -> list[ChainFile]:
    """Files that will get no more lines."""
    files = ((file, info.st_mode) for file, info in _found(directory)[:-NEWEST])
    return [file for file, mode in files if stat.S_ISREG(mode) and not mode & stat.S_IWUSR]


def _octets(directory: Path) -> int:
    return sum(info.st_size for _, info in _found(directory))


def _found(directory: Path) -> list[tuple[ChainFile, os.stat_result]]:
    """All files, except those that another process has just compressed or deleted. Raises OSError."""
    files = []
    for file in files_of(directory) if directory.is_dir() else []:
        with suppress(FileNotFoundError):
            files.append((file, file.path.stat()))
    return files


def _compress(path: Path) -> None:
    """Replaces the file by a gzip file; a reader sees either or both, complete. Leaves a file that another process
    compresses.
    """
    beside, to = path.with_name(f".{path.name}.gz"), path.with_name(f"{path.name}.gz")
    with os.fdopen(os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        if not leads_to(beside, file.fileno()):  # already done and renamed
            return
        try:
            with os.fdopen(open_regular(path), "rb") as plain:
                _write_compressed(plain, file)
        except FileNotFoundError:
            beside.unlink()
            return
        beside.replace(to)
    sync_directory(path.parent)
    path.unlink(missing_ok=True)


def _write_compressed(plain: BufferedReader, file: BufferedWriter) -> None:
    info = os.fstat(plain.fileno())
    file.truncate(0)
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as compressed:
        shutil.copyfileobj(plain, compressed, COPY_OCTETS)
    file.flush()
    os.fchmod(file.fileno(), stat.S_IRUSR)
    if os.geteuid() == 0:
        os.fchown(file.fileno(), info.st_uid, info.st_gid)
    os.fsync(file.fileno())


def _delete(files: Sequence[ChainFile]) -> None:
    for each in files:
        each.path.unlink(missing_ok=True)
        each.path.with_name(f"{each.path.name}.gz").unlink(missing_ok=True)
    sync_directory(files[0].path.parent)
