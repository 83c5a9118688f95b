"""Databases for the tests, SQLite's and PostgreSQL's: fresh ones, looking into them and getting in their way.
Standard: SQL in raw form, so that what is checked is what is there, not what the store thinks is there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import relay
from tests.testlib.once import made_once

ROOT = str(Path(relay.__file__).parents[1])
"""Where the package `relay` lies, for processes that do not run from there."""


@dataclass(frozen=True)
class Backend:
    """A database of the store (`where`, as open_store takes it) that the test also enters by itself."""

    where: str
    url: URL
    lock: str
    name: str

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the test's own, in a transaction that is committed at the end."""
        engine = create_async_engine(self.url)
        try:
            async with engine.begin() as connection:
                yield connection
        finally:
            await engine.dispose()

    async def run(self, statement: str, *values: object) -> list[Any]:
        """The rows that a statement gives, if any; values take the place of `?`."""
        if self.name == "postgresql":
            for number in range(1, len(values) + 1):
                statement = statement.replace("?", f"${number}", 1)
        async with self.connection() as connection:
            result = await connection.exec_driver_sql(statement, values)
            return list(result.all()) if result.returns_rows else []

    async def end_lease(self, name: str) -> None:
        """As if so much time had passed that the lease of this relay is over."""
        await self.run("UPDATE relays SET until = 0 WHERE relay = ?", name)

    async def end_leases(self, but: str = "") -> None:
        """The same for all others."""
        await self.run("UPDATE relays SET until = 0 WHERE relay != ?", but)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Somebody else is writing and does not come to an end."""
        async with self.connection() as connection:
            await connection.exec_driver_sql(self.lock)
            yield


def sqlite_file(path: Path) -> Backend:
    """A SQLite database, which the store will make."""
    url = URL.create("sqlite+aiosqlite", database=str(path))
    return Backend(str(path), url, lock="BEGIN IMMEDIATE", name="sqlite")


@dataclass(frozen=True)
class PostgreSQLServer:
    """A server of the test's own: its programs, and the directory of its data, socket and log."""

    programs: Path
    directory: Path

    def create(self, original: Path | None = None) -> None:
        """A new cluster; nobody needs it after a power failure, so it does not sync.

        It is a copy of the one in the directory `original`, if given, which the first who calls makes.
        """
        if os.geteuid() == 0:
            shutil.chown(self.directory, "postgres", "postgres")
        if original is not None and (original / "data").exists():
            subprocess.run(["cp", "-a", original / "data", self.directory], check=True)
        else:
            self._run("initdb", "--no-sync", "--auth=trust", "--username=relay", "--encoding=UTF8", "--locale=C")
            if original is not None:
                subprocess.run(["cp", "-a", self.directory / "data", original], check=True)
        with (self.directory / "data" / "postgresql.conf").open("a") as settings:
            settings.write(
                f"unix_socket_directories = '{self.directory}'\nlisten_addresses = ''\n"
                "fsync = off\nfull_page_writes = off\nmax_connections = 60\nshared_buffers = 16MB\n"
            )

    def start(self) -> None:
        """Returns when the server answers."""
        self._run("pg_ctl", "start", "--wait", f"--log={self.directory}/log")

    def stop(self) -> None:
        """Ends it as a crash would."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def url(self, database: str = "postgres") -> str:
        """What an administrator would write into relay.toml."""
        return f"postgresql://relay@/{database}?host={self.directory}"

    def _run(self, program: str, *arguments: str) -> None:
        root = os.geteuid() == 0
        done = subprocess.run(
            [self.programs / program, f"--pgdata={self.directory}/data", *arguments],
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            # PostgreSQL refuses to run as root.
            user="postgres" if root else None,
            group="postgres" if root else None,
            extra_groups=[] if root else None,
        )
        assert done.returncode == 0, f"{program}: {done.stdout}{done.stderr}"


def find_programs() -> Path | None:
    """The directory of the newest PostgreSQL server's programs that Debian installed, or None."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if not found or (os.geteuid() == 0 and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}):
        return None
    return max(found, key=lambda path: float(path.parent.name))


@contextmanager
def new_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQLServer]:
    """One that has not been started."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not below pytest's directory: the server's user may not enter it, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="qumail-pg-") as directory:
        made = PostgreSQLServer(programs, Path(directory))
        with made_once(tmp_path_factory, "postgresql") as original:
            made.create(original)
        yield made


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server that listens on a Unix socket only."""
    with new_server(tmp_path_factory) as server:
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def sqlite(tmp_path: Path) -> Backend:
    """A SQLite database that does not exist yet."""
    return sqlite_file(tmp_path / "state" / "relay.db")


@pytest.fixture
async def postgresql(postgresql_server: PostgreSQLServer) -> AsyncIterator[Backend]:
    """The server's database, empty; it is emptied again, since that is quicker than making a new one."""
    host = str(postgresql_server.directory)
    url = URL.create("postgresql+asyncpg", username="relay", database="postgres", query={"host": host})
    lock = "LOCK TABLE received_keys IN EXCLUSIVE MODE"
    backend = Backend(postgresql_server.url(), url, lock=lock, name="postgresql")
    try:
        yield backend
    finally:
        await empty(backend)


async def empty(postgresql: Backend) -> None:
    """Ends all relays' connections, and drops all that is there."""
    connection = await asyncpg.connect(postgresql.where)
    try:
        for statement in EMPTIED:
            await connection.execute(statement)
    finally:
        await connection.close()


EMPTIED = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'qumail-relay%'",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
    "ALTER DATABASE postgres RESET ALL",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """One after the other: every test with this fixture runs on both."""
    backend: Backend = request.getfixturevalue(request.param)
    return backend


@contextmanager
def python(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that runs `program`, which finds its arguments in sys.argv[1:]; killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, sys.path)])},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
