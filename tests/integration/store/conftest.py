"""A site secret, a clock that the test turns, and an open store over each back end.
Standard: nothing left behind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from relay.store import claims
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.testlib.databases import Backend


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
