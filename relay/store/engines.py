"""How each back end is connected to: SQLite's file and pragmas, PostgreSQL's session settings.
Standard: what SQLite and PostgreSQL document as durable; a database URL means what it means to libpq.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, PoolProxiedConnection, event
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from relay.errors import ConfigError, StoreUnavailable
from relay.store import secret_file
from relay.store.tls import check_tls

if TYPE_CHECKING:
    import aiosqlite

CONNECT_TIMEOUT_S = 10.0
"""Seconds for a connection to PostgreSQL."""
COMMAND_TIMEOUT_S = 30.0
"""Seconds for one statement on PostgreSQL."""
FROZEN_S = 20.0
"""Seconds after which the server ends a transaction in which nothing is said any more."""
POOL_TIMEOUT_S = 30.0
"""Seconds to wait until one of our own connections is free."""

ROOM_TO_START = 16 * 2**20
"""Octets that a relay takes of its store's disk when it starts; nearly all of them for what must not wait for room."""

# In WAL mode `synchronous = NORMAL` would lose the last commits when the power fails.
_PRAGMAS = ("PRAGMA synchronous = FULL", "PRAGMA secure_delete = ON")


def prepare_sqlite_file(path: Path, busy_timeout: float) -> None:
    """Makes the file if need be (its directory too, of mode 0700) and puts it in WAL mode.

    `busy_timeout` is seconds. Raises ConfigError and StoreUnavailable; blocks.
    """
    try:
        make_sqlite_file(path)
        # SQLite does not wait for its turn when two processes change the journal mode at once.
        with (
            secret_file.locked(path.parent),
            closing(sqlite3.connect(path, timeout=busy_timeout, isolation_level=None)) as connection,
        ):
            connection.execute("PRAGMA journal_mode = WAL")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made or opened: {error.strerror}") from error
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise ConfigError(f"{path}: is not an SQLite database") from error
        raise StoreUnavailable(f"{path}: {said_by_sqlite(path, error)}") from error


def make_sqlite_file(path: Path) -> None:
    """Makes the file, empty and of mode 0600, where there is none. Raises OSError; blocks."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        secret_file.sync_directory(path.parent)


def said_by_sqlite(path: Path, error: BaseException) -> str:
    """What an error says, and what to do where a full disk is behind it, of which SQLite says "disk I/O error"."""
    said = str(error) or type(error).__name__
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        with suppress(OSError):
            if missing := no_room(path.parent):
                return f"{missing} ({said})"
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


def sqlite_engine(path: Path, begin: str, *, connections: int, busy_timeout: float) -> AsyncEngine:
    """Connections that open every transaction with the statement `begin`; `busy_timeout` is seconds."""
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=POOL_TIMEOUT_S,
        hide_parameters=True,
        # Otherwise the driver begins transactions by itself, and never IMMEDIATE ones.
        connect_args={"timeout": busy_timeout, "isolation_level": None},
    )

    def on_connect(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in _PRAGMAS:
            cursor.execute(pragma)
        cursor.close()

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
    return engine


def aiosqlite_connection(raw: PoolProxiedConnection) -> aiosqlite.Connection:
    """The driver's own connection."""
    return cast("aiosqlite.Connection", raw.driver_connection)


def postgresql_engine(url: URL, *, busy_timeout: float) -> AsyncEngine:
    """A pool of connections; a lock that is not had within `busy_timeout` seconds is an error.

    Raises ConfigError.
    """
    try:
        import asyncpg
    except ImportError as error:
        raise ConfigError("a store in PostgreSQL needs the Python package asyncpg") from error
    check_tls(url)
    settings = {
        "application_name": "qumail-relay",
        "lock_timeout": f"{busy_timeout * 1000:.0f}",
        # A relay that is frozen, or whose host is gone, in the middle of a transaction keeps nobody waiting for long.
        "idle_in_transaction_session_timeout": f"{FROZEN_S * 1000:.0f}",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "4",
    }
    # Whatever the server's default, what we stored must be on its disk; stricter settings are left alone.
    durable = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"

    async def connect() -> Any:
        try:
            connection = await asyncpg.connect(
                url.render_as_string(hide_password=False),
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings=settings,
            )
            await connection.execute(durable)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise StoreUnavailable(f"{without_secrets(url)}: {error}") from error
        return connection

    return create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        pool_pre_ping=True,
        pool_timeout=POOL_TIMEOUT_S,
        hide_parameters=True,
    )


def without_secrets(url: URL) -> str:
    """The URL as text for messages: no password, and no options, which might hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)
