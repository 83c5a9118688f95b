"""The embedded database: its file, its settings, and the lock that lets only one relay serve from it.
Standard: SQLite's durable settings; flock(2) on the file itself, under any name, released with its process.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.engine import URL

from relay.errors import ConfigError, StoreUnavailable
from relay.files.permissions import another_owner, cause, denial_at, why_not_written
from relay.files.sqlite import NOT_REGULAR, connected, make_sqlite_file, said_by_sqlite
from relay.files.stamps import is_gone
from relay.store import secret_file
from relay.store.one_step import driver_of

log = structlog.get_logger(__name__)

WAIT_S = 5.0
"""Maximum wait of a relay that starts for another that ends, in seconds."""
LOOK_S = 0.05
_LOCKS = Path("/proc/locks")
LOG_SUFFIXES = ("-wal", "-shm")
"""Of the files beside a database in WAL mode: the log, and the index of it that all processes share."""
SCHEMA_TABLE = "store_schema"
"""Name of a table that each relay's database has."""
TAKEN_AWAY = (
    "is not the file from which the relay serves, which was moved or deleted: put it back if it was moved, "
    "then restart the relay"
)
NOT_SEEN = "can no longer be looked at by the relay that serves from it"
EMPTIED = "was emptied while the relay serves from it: stop the relay, and restore a backup"
DAMAGED = "it counts as damaged until the relay is restarted: stop the relay, and restore a backup"
UNKNOWN = "unknown"
LOCKS_READ = 5
"""Number of readings: while other locks come and go, one reading may leave some out."""

_AWAY = "move it away, or give the relay another path (store.database)"
# In WAL mode `synchronous = NORMAL` would lose the last commits when the power fails.
_PRAGMAS = ("PRAGMA synchronous = FULL", "PRAGMA secure_delete = ON")


def is_begun_file(path: Path) -> bool:
    """Whether there is something in the file; looking makes nothing. Raises ConfigError; blocks."""
    try:
        found = path.stat()
    except OSError as error:
        if is_gone(error):
            return False
        raise ConfigError(cause(path, error)) from error
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path}: {NOT_REGULAR}")
    return found.st_size > 0


def prepare_sqlite_file(path: Path, busy_timeout: float) -> os.stat_result:
    """Makes the file if need be (its directory too, of mode 0700), puts it in WAL mode, and returns which file it is.

    `busy_timeout` is seconds. Raises ConfigError and StoreUnavailable; blocks.
    """
    try:
        make_sqlite_file(path)
        # SQLite does not wait if two processes change the journal mode at once.
        with (
            secret_file.locked(path.parent),
            closing(connected(path, busy_timeout)) as connection,
        ):
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if tables and SCHEMA_TABLE not in tables:
                raise ConfigError(f"{path}: has another program's tables and none of a relay's: {_AWAY}")
            connection.execute("PRAGMA journal_mode = WAL")
        return path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made or opened: {why_not_written(path, error)}") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise ConfigError(f"{path}: is not an SQLite database: {_AWAY}") from error
        raise StoreUnavailable(f"{path}: {said_by_sqlite(path, error)}") from error


def sqlite_engine(path: Path, begin: str, connections: int, busy_timeout: float) -> Engine:
    """Connections that open every transaction with the statement `begin`; `busy_timeout` is seconds."""
    engine = create_engine(
        # What is gone is not made anew, empty, under a relay that serves.
        URL.create("sqlite", database=path.absolute().as_uri(), query={"mode": "rw", "uri": "true"}),
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        hide_parameters=True,
        # Otherwise the driver begins transactions by itself, and never IMMEDIATE ones.
        connect_args={"timeout": busy_timeout, "isolation_level": None, "check_same_thread": False},
    )

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    def on_begin(connection: Connection) -> None:
        driver_of(connection).execute(begin).close()

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine


def checkpoint(connection: Connection) -> None:
    """Moves the write-ahead log into the file and empties it; blocks. Not within a transaction: SQLite forbids it."""
    driver_of(connection).execute("PRAGMA wal_checkpoint(TRUNCATE)").close()


def first_rows_of_file(path: Path, queries: Sequence[str]) -> list[tuple[Any, ...] | None] | None:
    """The first row of each query, as the file says without its write-ahead log; None if it cannot be said. Blocks.

    A checkpoint may be changing the file meanwhile: what fails says nothing.
    """
    try:
        alone = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True, isolation_level=None)
        with closing(alone) as connection:
            return [connection.execute(each).fetchone() for each in queries]
    except sqlite3.Error:
        return None


@asynccontextmanager
async def sole_relay(database: Path) -> AsyncIterator[int]:
    """Locks this file, created if missing, so that no other relay serves from it; yields the lock's descriptor.

    A process that inherits the descriptor holds the lock too. The store must be opened and closed within the block.
    Waits WAIT_S for a serving process. Raises ConfigError.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    waits = False
    while (file := _locked(database)) is None:
        other = await asyncio.to_thread(_holder, database)
        if loop.time() >= until:
            raise ConfigError(
                f"{database}: another relay (process {other}) serves from this database, and two send mail twice: "
                "stop that one, give this one a database of its own, or let both share PostgreSQL"
            )
        if not waits:
            log.warning("relay_waits", database=str(database), for_process=other, at_most_s=WAIT_S)
            waits = True
        await asyncio.sleep(LOOK_S)
    try:
        yield file
    finally:
        # After the store: closing any descriptor of this file releases SQLite's own locks (fcntl) of the process.
        os.close(file)


def _locked(database: Path) -> int | None:
    """The file under its lock, as a descriptor; None where another process has it."""
    try:
        make_sqlite_file(database)
        file = os.open(database, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        held = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # If the file was moved meanwhile, SQLite would open another one.
            held = os.path.samestat(os.fstat(file), database.stat())
        except BlockingIOError:
            pass
        finally:
            if not held:
                os.close(file)
    except OSError as error:
        raise ConfigError(f"{database}: cannot be made or opened: {why_not_written(database, error)}") from error
    return file if held else None


def why_another_file(path: Path, opened: os.stat_result, *, empty: bool = False) -> str:
    """Why the file at this path is not usable as the one that was opened, "" if it is. It may be `empty`. Blocks."""
    try:
        found = path.stat()
    except OSError as error:
        if is_gone(error):
            return TAKEN_AWAY
        denied = denial_at(path)
        if denied is None or denied.link:
            return f"{NOT_SEEN}: {denied or error.strerror}"
        return f"{NOT_SEEN}: {error.strerror} at {denied.place}{another_owner(Path(denied.place))}"
    if os.path.samestat(found, opened):
        return "" if found.st_size or empty else EMPTIED
    return TAKEN_AWAY


def serving(locked: Path) -> bool | None:
    """Whether a relay has its lock on this file now; None if unknown. Blocks; takes no lock."""
    try:
        locked.stat()
    except OSError as error:
        return False if is_gone(error) else None
    return _holder(locked) != UNKNOWN if _LOCKS.exists() else None


def user_of_server(locked: Path) -> int | None:
    """The number of the user of the process that has its lock on this file; None if there is none or it is unknown.

    Blocks; takes no lock.
    """
    with suppress(OSError):  # a process that may not be traced has its directory from root, and says its user in it
        for line in Path(f"/proc/{_holder(locked)}/status").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name == "Uid":
                return int(numbers.split()[1])
    return None


def _holder(database: Path) -> str:
    """The PID of the serving process, for messages; `UNKNOWN` if there is none or it cannot be determined."""
    with suppress(OSError):
        found = database.stat()
        for _ in range(LOCKS_READ):
            locks = [line.split() for line in _LOCKS.read_text().splitlines()]
            for lock in locks:
                if lock[1:2] == ["FLOCK"] and lock[5].endswith(f":{found.st_ino}") and _has_open(lock[4], found):
                    return lock[4]
    return UNKNOWN


def _has_open(pid: str, file: os.stat_result) -> bool:
    """Whether this process has the file open; True if that cannot be seen.

    Another file system may have a file of the same number. Its device in /proc/locks is not always that of stat(2).
    """
    try:
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(each.stat(), file):
                    return True
    except OSError:
        return True
    return False
