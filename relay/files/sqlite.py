"""SQLite files: created for the relay alone, opened in one way, with helpful error texts.
Standard: the result codes of SQLite; a file of mode 0600 in a directory of mode 0700.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
from contextlib import suppress
from pathlib import Path

from relay.files import sync_directory
from relay.files.permissions import another_owner

BUSY_S = 5.0
"""Timeout for a file lock held by another process, in seconds."""
ROOM_TO_START = 16 * 2**20
"""Disk space required at the start, in bytes; nearly all of it for data that must not wait for room."""
NOT_REGULAR = "it is no regular file: move it away"


def make_sqlite_file(path: Path) -> None:
    """Creates the file, empty and of mode 0600, if it is missing. Raises OSError, also if not regular; blocks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError as error:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(errno.EINVAL, NOT_REGULAR, str(path)) from error
    else:
        sync_directory(path.parent)


def connected(path: Path, busy_timeout: float = BUSY_S) -> sqlite3.Connection:
    """A connection in autocommit mode to an existing file. Raises sqlite3.Error; blocks."""
    # For writing: even a reader has to roll back the journal of a killed process.
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=busy_timeout, isolation_level=None)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether the file is damaged or no database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


def said_by_sqlite(path: Path, error: BaseException) -> str:
    """The error text, with a remedy if the disk is full or the owner is another user."""
    text = str(error) or type(error).__name__
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        with suppress(OSError):
            if missing := no_room(path.parent):
                return f"{missing} ({text})"
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return text + another_owner(path)
    return text


def no_room(directory: Path) -> str:
    """The remedy if the disk has not enough room for a relay; "" if it has. Raises OSError."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free >= ROOM_TO_START:
        return ""
    return (
        f"no space left on its disk: {free // 1024} KiB are free, and a relay needs "
        f"{ROOM_TO_START // 2**20} MiB in {directory}: make room there"
    )
