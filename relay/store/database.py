"""One database, SQLite or PostgreSQL: transactions, schema version, errors as StoreUnavailable.
A committed transaction is on disk (SQLite synchronous=FULL, PostgreSQL synchronous_commit).

A transaction is a function of a connection, for both back ends. With SQLite it runs in a thread, with one hand-over for
the whole transaction. With PostgreSQL the event loop continues during each statement.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Executable,
    Integer,
    MetaData,
    Table,
    delete,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from relay.errors import ConfigError, StoreUnavailable
from relay.files.sqlite import is_damage, said_by_sqlite
from relay.files.stamps import is_gone
from relay.store.postgresql import exposed, postgresql_engine, postgresql_insert, without_secrets
from relay.store.sqlite import (
    DAMAGED,
    EMPTIED,
    LOG_SUFFIXES,
    SCHEMA_TABLE,
    TAKEN_AWAY,
    checkpoint,
    first_rows_of_file,
    is_begun_file,
    prepare_sqlite_file,
    sqlite_engine,
    why_another_file,
)

if TYPE_CHECKING:  # 10 MB that only a store in PostgreSQL needs
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.ext.asyncio import AsyncEngine

SCHEMA_VERSION = 6
"""Incremented with each change of a table, also for a new one: SCHEMA.md says what else it needs."""
POOL_TIMEOUT_S = 30.0
"""Seconds to wait until one of our own connections to a server is free."""
READERS = 4
"""Maximum number of transactions that read from an embedded database at once."""
FILE_LOOK_S = 1.0
"""Seconds between two looks at the file of an embedded database, whether it is the one that was opened."""
SCHEMA_LOCK = 0x51754D61
"""The PostgreSQL advisory lock for creating the schema."""

ROWS_AT_ONCE = 500
"""Maximum number of rows in one statement, well below either back end's limit on parameters."""

Insert: TypeAlias = "sqlite.Insert | postgresql.Insert"
"""An INSERT with ON CONFLICT, which has the same syntax in both back ends."""
_Result = TypeVar("_Result")
_Arguments = ParamSpec("_Arguments")

metadata = MetaData()
"""All tables of the store; each table's file adds its own."""

schema = Table(SCHEMA_TABLE, metadata, Column("version", Integer, primary_key=True, autoincrement=False))
_written = Table(
    "store_written",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, nullable=False),
)
"""Always empty: a row is written and deleted to check that the store can be written."""


class Runner(Protocol):
    """Runs transactions, as many at once as it has connections."""

    @property
    def dialect(self) -> str:
        """SQLAlchemy's name of the back end."""

    async def run(self, work: Callable[[Connection], _Result]) -> _Result:
        """Runs `work` in one transaction."""

    async def close(self) -> None:
        """Closes the connections."""


class InThreads:
    """Transactions of an embedded database, each from beginning to end in one thread, which has a connection."""

    dialect = "sqlite"

    def __init__(self, engine: Engine, threads: int) -> None:
        self._engine = engine
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="store")
        self._of_thread = threading.local()
        self._open: set[Connection] = set()

    async def run(self, work: Callable[[Connection], _Result]) -> _Result:
        """As Runner.run."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, work)

    def _run(self, work: Callable[[Connection], _Result]) -> _Result:
        connection = self._connection()
        try:
            with connection.begin():
                return work(connection)
        except BaseException:
            # Its state is unknown; the next transaction gets a new one.
            del self._of_thread.connection
            self._open.remove(connection)
            connection.close()
            raise

    async def checkpoint(self) -> None:
        """Moves the write-ahead log into the file and empties it, between two transactions."""
        await asyncio.get_running_loop().run_in_executor(self._threads, lambda: checkpoint(self._connection()))

    async def close(self) -> None:
        """As Runner.close."""
        await asyncio.to_thread(self._threads.shutdown)
        while self._open:
            self._open.pop().close()
        self._engine.dispose()

    def _connection(self) -> Connection:
        if not hasattr(self._of_thread, "connection"):
            self._of_thread.connection = self._engine.connect()
            self._open.add(self._of_thread.connection)
        connection: Connection = self._of_thread.connection
        return connection


class OnServer:
    """Transactions of a database server."""

    dialect = "postgresql"

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def run(self, work: Callable[[Connection], _Result]) -> _Result:
        """As Runner.run."""
        async with self._engine.begin() as connection:
            return await connection.run_sync(work)

    def check_connections(self, name: str) -> None:
        """Has each new connection find the schema as it was. `name` is for messages."""
        trouble = self._engine.dialect.loaded_dbapi.Error

        def check(connection: Any, _record: object) -> None:
            try:
                cursor = connection.cursor()
                # Shared: not while another relay is changing it.
                cursor.execute(f"SELECT pg_advisory_xact_lock_shared({SCHEMA_LOCK})")
                cursor.execute(f"SELECT version FROM {schema.name}")  # noqa: S608 - a name of ours
                found = cursor.fetchone()
                cursor.close()
                connection.rollback()
                why = "" if found == (SCHEMA_VERSION,) else str(not_ours(name, found[0]) if found else "has no schema")
            except trouble as error:
                why = f"{name}: {error}"
            if why:
                connection.close()
                raise StoreUnavailable(why)

        event.listen(self._engine.sync_engine, "connect", check)

    async def close(self) -> None:
        """As Runner.close."""
        await self._engine.dispose()


class Database:
    """Connections to one database; created by open_database. `name` is for messages, without a password.

    `file` is that of an embedded one, as it was when it was opened.
    """

    def __init__(self, name: str, reader: Runner, writer: Runner, file: os.stat_result | None = None) -> None:
        self.name = name
        self._reader = reader
        self._writer = writer
        self._file = file
        self._log_files: dict[Path, os.stat_result] = {}
        self._file_looked_at = float("-inf")
        self._not_here = ""
        self._damage = ""
        self._proof: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[Any]] = set()
        self._written_at = float("-inf")
        self._inserts: dict[Table, Insert] = {}
        self.is_sqlite = writer.dialect == "sqlite"
        """Whether this is the embedded database."""

    def insert(self, table: Table) -> Insert:
        """Returns the back end's INSERT for this table."""
        if table not in self._inserts:
            self._inserts[table] = sqlite.insert(table) if self.is_sqlite else postgresql_insert(table)
        return self._inserts[table]

    async def reading(self, work: Callable[[Connection], _Result]) -> _Result:
        """Runs `work` in a read-only transaction. Raises StoreUnavailable."""
        return await self._run(self._reader, work)

    async def writing(self, work: Callable[[Connection], _Result]) -> _Result:
        """Runs `work` in a write transaction, which is on disk when this returns, or rolled back if it raises.

        On SQLite no other transaction writes meanwhile. `work` runs in a thread, once. Raises StoreUnavailable, also
        where the file was moved away: what is written to it then is lost. Raises what `work` raises.
        """
        await self._look_at_file()
        if why := self._damage or self._not_here:
            raise StoreUnavailable(why)
        try:
            result = await self._run(self._writer, work)
        except BaseException:
            self._written_at = float("-inf")
            raise
        self._written_at = time.monotonic()
        return result

    async def rows(self, query: Executable) -> Sequence[Any]:
        """The result of one query, finished despite cancellation. Raises StoreUnavailable."""
        return await self.to_its_end(self.reading(lambda connection: connection.execute(query).all()))

    async def write(self, *statements: Executable) -> int:
        """Runs these in one transaction despite cancellation; returns the number of changed rows.

        Raises StoreUnavailable.
        """

        def run(connection: Connection) -> int:
            return sum(connection.execute(each).rowcount for each in statements)

        return await self.to_its_end(self.writing(run))

    async def can_be_written(self, proof_s: float = 0.0) -> None:
        """Checks that the store can be written, now or within the last `proof_s` seconds. Raises StoreUnavailable.

        Callers at the same time share one row, and one wait for a lock.
        """
        await self._look_at_file()
        if not self._not_here and time.monotonic() - self._written_at < proof_s:
            return
        if self._proof is None or self._proof.done():
            self._proof = self.later(self._write_row())
        await asyncio.shield(self._proof)

    async def _write_row(self) -> None:
        # A row of our own: with a shared row, a frozen relay would block all others.
        mine = secrets.randbelow(2**31)

        def write(connection: Connection) -> None:
            connection.execute(insert(_written).values(one=mine, number=0))
            connection.execute(delete(_written).where(_written.c.one == mine))

        await self.writing(write)

    async def _look_at_file(self) -> None:
        if self._file is None or time.monotonic() - self._file_looked_at < FILE_LOOK_S:
            return
        self._file_looked_at = time.monotonic()
        why = await asyncio.to_thread(why_another_file, Path(self.name), self._file)
        self._not_here = (why and f"{self.name}: {why}") or await asyncio.to_thread(self._log_taken_away)
        if why == EMPTIED:
            self._damage = self._not_here

    def _log_taken_away(self) -> str:
        """Why what is written now would be lost: SQLite goes on writing to a log that no other process finds.

        After a write these files exist until the last connection is closed, which only a failed write may cause.
        """
        if self._written_at == float("-inf"):
            self._log_files = {}
            return ""
        for path in (Path(f"{self.name}{suffix}") for suffix in LOG_SUFFIXES):
            try:
                why = why_another_file(path, self._log_files.setdefault(path, path.stat()), empty=True)
            except OSError as error:
                why = TAKEN_AWAY if is_gone(error) else str(error.strerror)
            if why:
                return f"{path}: {why}"
        return ""

    def watch_schema(self) -> None:
        """Refuses connections of ours to a server whose schema another relay of the site has changed meanwhile."""
        if isinstance(self._writer, OnServer):
            self._writer.check_connections(self.name)

    async def scrub(self) -> None:
        """Checkpoints and truncates SQLite's write-ahead log, which has old versions of rows."""
        if isinstance(self._writer, InThreads):
            await self._translated(self._writer.checkpoint())

    async def first_rows_of_file(self, *queries: str) -> list[tuple[Any, ...] | None] | None:
        """The first row of each query in SQLite's file without its write-ahead log; None if it cannot be said."""
        if not self.is_sqlite:
            return None
        return await asyncio.to_thread(first_rows_of_file, Path(self.name), queries)

    async def to_its_end(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Runs `work` despite cancellation; it ends before the database is closed.

        A cancelled transaction could leave its connection, and SQLite's lock, behind.
        """
        return await asyncio.shield(self.later(work))

    def later(self, work: Coroutine[Any, Any, _Result]) -> asyncio.Task[_Result]:
        """Starts work in the background; it ends before the database is closed."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as retrieved, for a caller that is gone

    async def quiet(self) -> None:
        """Waits for background work."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Closes all connections."""
        await self.quiet()
        await self._reader.close()
        if self._writer is not self._reader:
            await self._writer.close()

    async def _run(self, runner: Runner, work: Callable[[Connection], _Result]) -> _Result:
        return await self._translated(runner.run(work))

    async def _translated(self, work: Awaitable[_Result]) -> _Result:
        try:
            return await work
        except (SQLAlchemyError, sqlite3.Error, OSError, EOFError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
            said = said_by_sqlite(Path(self.name), cause) if self.is_sqlite else str(cause)
            if isinstance(cause, sqlite3.Error) and is_damage(cause):
                self._damage = f"{self.name}: {said}: {DAMAGED}"
            raise StoreUnavailable(f"{self.name}: {said or type(cause).__name__}") from error


class _OnDatabase(Protocol):
    _database: Database


_Owner = TypeVar("_Owner", bound=_OnDatabase)


def to_its_end(
    method: Callable[Concatenate[_Owner, _Arguments], Coroutine[Any, Any, _Result]],
) -> Callable[Concatenate[_Owner, _Arguments], Coroutine[Any, Any, _Result]]:
    """Decorates a method that makes transactions: it finishes even if its caller is cancelled."""

    @wraps(method)
    async def run(self: _Owner, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        return await self._database.to_its_end(method(self, *args, **kwargs))

    return run


_Row = TypeVar("_Row")


def batches(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """The rows in order, ROWS_AT_ONCE at a time."""
    for start in range(0, len(rows), ROWS_AT_ONCE):
        yield rows[start : start + ROWS_AT_ONCE]


async def open_database(where: str | Path, *, busy_timeout: float) -> Database:
    """Opens the database at a path or URL, and creates or checks its schema.

    `busy_timeout` is in seconds. Raises ConfigError, also for the schema of another release, and StoreUnavailable.
    """
    database = await _unchecked(where, busy_timeout)
    try:
        await database.writing(partial(_make_schema, database))
        database.watch_schema()
    except BaseException:
        await database.close()
        raise
    return database


@asynccontextmanager
async def connect(where: str | Path, *, busy_timeout: float) -> AsyncIterator[Database]:
    """The database, whatever its schema. Raises ConfigError and StoreUnavailable."""
    database = await _unchecked(where, busy_timeout)
    try:
        yield database
    finally:
        await database.close()


async def _unchecked(where: str | Path, busy_timeout: float) -> Database:
    url = _url(where)
    if url.drivername != "sqlite":
        return _on_server(url, busy_timeout)
    path = Path(url.database or "")
    file = await asyncio.to_thread(prepare_sqlite_file, path, busy_timeout)
    return Database(
        str(path),
        reader=InThreads(sqlite_engine(path, "BEGIN", READERS, busy_timeout), READERS),
        writer=InThreads(sqlite_engine(path, "BEGIN IMMEDIATE", 1, busy_timeout), 1),
        file=file,
    )


async def is_begun(where: str | Path, *, busy_timeout: float) -> bool:
    """Whether a store exists there; creates nothing. Raises ConfigError and StoreUnavailable."""
    url = _url(where)
    if url.drivername == "sqlite":
        return await asyncio.to_thread(is_begun_file, Path(url.database or ""))
    database = _on_server(url, busy_timeout)
    try:
        return await database.reading(lambda connection: inspect(connection).has_table(schema.name))
    finally:
        await database.close()


def _on_server(url: URL, busy_timeout: float) -> Database:
    server = OnServer(postgresql_engine(url, SCHEMA_VERSION, busy_timeout=busy_timeout, pool_timeout=POOL_TIMEOUT_S))
    return Database(without_secrets(url), reader=server, writer=server)


def transport_problem(where: str | Path) -> str:
    """Why the connection could be intercepted or redirected, and what to write instead; "" if it is safe.

    Raises ConfigError if this is not the location of a store.
    """
    url = _url(where)
    return "" if url.drivername == "sqlite" else exposed(url)


def lock_schema(connection: Connection) -> None:
    """Lets one relay of a site at a time make or change the schema, until the transaction ends."""
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": SCHEMA_LOCK})


def _make_schema(database: Database, connection: Connection) -> None:
    lock_schema(connection)
    schema.create(connection, checkfirst=True)
    version = connection.scalar(select(schema.c.version))
    if version is None:
        connection.execute(schema.insert().values(version=SCHEMA_VERSION))
    elif version != SCHEMA_VERSION:
        raise not_ours(database.name, version)
    metadata.create_all(connection)


def not_ours(name: str, version: int) -> ConfigError:
    """What to say of a store whose schema is that of another release."""
    if version > SCHEMA_VERSION:
        return ConfigError(
            f"{name}: this store was written by a newer relay (schema {version}, and this one knows {SCHEMA_VERSION}): "
            "install that release again, or restore the backup that was made before the upgrade"
        )
    return ConfigError(
        f"{name}: this store is of an earlier release (schema {version}, and this one has {SCHEMA_VERSION}): "
        "start the relay, which takes it over"
    )


def _url(where: str | Path) -> URL:
    """A URL with driver name sqlite or postgresql. Raises ConfigError, without a password in its text."""
    if isinstance(where, Path) or "://" not in where:
        return URL.create("sqlite", database=str(where))
    try:
        url = make_url(where)
    except (ArgumentError, ValueError) as error:
        raise ConfigError("the store's URL is not one; write postgresql://user@host/database") from error
    backend = {"postgres": "postgresql"}.get(url.get_backend_name(), url.get_backend_name())
    if backend not in ("sqlite", "postgresql") or not url.database:
        raise ConfigError(
            f"{without_secrets(url)}: the store is a path, or a URL such as postgresql://user@host/database"
        )
    return url.set(drivername=backend)
