"""A fresh database of each back end, a site secret, a clock that the test turns, and an open store.
Standard: no fixed port, nothing left behind; without PostgreSQL, skipped tests say what to install.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from relay.store import claims
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.backends import (
    Backend,
    PostgreSQLServer,
    find_programs,
    postgresql_database,
    sqlite_file,
)


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQLServer]:
    """A PostgreSQL server that listens on a Unix socket only."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not below pytest's directory: the server's user may not enter it, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="qumail-pg-") as directory:
        running = PostgreSQLServer(programs, Path(directory))
        running.create()
        running.start()
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def sqlite(tmp_path: Path) -> Backend:
    """A SQLite database that does not exist yet."""
    return sqlite_file(tmp_path / "state" / "relay.db")


@pytest.fixture
async def postgresql(server: PostgreSQLServer) -> AsyncIterator[Backend]:
    """An empty PostgreSQL database."""
    async with postgresql_database(server) as backend:
        yield backend


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """One after the other: every test with this fixture runs on both."""
    backend: Backend = request.getfixturevalue(request.param)
    return backend


class Clock:
    """Seconds since 1970, as the test says."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until the test turns it."""
    return Clock()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is to be taken over is taken over at once."""
    monkeypatch.setattr(claims, "PATIENCE_S", 0.0)


@pytest.fixture
def secret_path(tmp_path: Path) -> Path:
    """The file of a site secret, already made."""
    path = tmp_path / "secret"
    SiteSecret.load_or_create(path)
    return path


@pytest.fixture
def secret(secret_path: Path) -> SiteSecret:
    """The secret in that file."""
    return SiteSecret.load(secret_path)


@pytest.fixture
async def store(backend: Backend, secret: SiteSecret, clock: Callable[[], float]) -> AsyncIterator[Store]:
    """An open store over each back end."""
    async with await open_store(backend.where, secret, clock=clock) as opened:
        yield opened
