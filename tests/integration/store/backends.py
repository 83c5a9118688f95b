"""Databases for the tests: looking into them and getting in their way behind the store's back.
Standard: SQL in raw form, so that what is checked is what is there, not what the store thinks is there.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import relay

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

    def create(self) -> None:
        """A new cluster; nobody needs it after a power failure, so it does not sync."""
        if os.geteuid() == 0:
            shutil.chown(self.directory, "postgres", "postgres")
        self._run("initdb", "--no-sync", "--auth=trust", "--username=relay", "--encoding=UTF8", "--locale=C")
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


@asynccontextmanager
async def postgresql_database(server: PostgreSQLServer) -> AsyncIterator[Backend]:
    """The server's database, empty; it is emptied again, since that is quicker than making a new one."""
    url = URL.create("postgresql+asyncpg", username="relay", database="postgres", query={"host": str(server.directory)})
    lock = "LOCK TABLE received_keys IN EXCLUSIVE MODE"
    backend = Backend(server.url(), url, lock=lock, name="postgresql")
    try:
        yield backend
    finally:
        for statement in EMPTIED:
            await backend.run(statement)


EMPTIED = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'qumail-relay%'",
    "DROP SCHEMA public CASCADE",
    "CREATE SCHEMA public",
    "ALTER DATABASE postgres RESET ALL",
)


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
