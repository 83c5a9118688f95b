"""Files of SQLite: made for the relay alone, opened in one way, and what their errors mean for people.
Standard: the result codes of SQLite; a file of mode 0600 in a directory of mode 0700.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from relay.files import sync_directory
from relay.files.permissions import another_owner

BUSY_S = 5.0
"""Timeout for a file lock held by another process, in seconds."""
ROOM_TO_START = 16 * 2**20
"""Disk space reserved at the start, in bytes; nearly all of it for what must not wait for room."""


def make_sqlite_file(path: Path) -> None:
    """Makes the file, empty and of mode 0600, where there is none. Raises OSError; blocks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)


def connected(path: Path, busy_timeout: float = BUSY_S) -> sqlite3.Connection:
    """A connection that begins no transaction by itself, to a file that is there. Raises sqlite3.Error; blocks."""
    # For writing: a journal that a killed process has left has to be played back, also for one that only reads.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=busy_timeout, isolation_level=None)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it says that the file is damaged, or is something else."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def said_by_sqlite(path: Path, error: BaseException) -> str:
    """What an error says, and what to do where a full disk is or another owner is behind it."""
    said = str(error) or type(error).__name__
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        with suppress(OSError):
            if missing := no_room(path.parent):
                return f"{missing} ({said})"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return said + another_owner(path)
    return said


def no_room(directory: Path) -> str:
    """What to do where its disk has no room for what a relay needs there; "" where it has. Raises OSError."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free >= ROOM_TO_START:
        return ""
    return (
        f"no space left on its disk: {free // 1024} KiB are free, and a relay needs "
        f"{ROOM_TO_START // 2**20} MiB in {directory}: make room there"
    )
