"""One store for many cases: opened once, and before each case as empty as a new one, in its tables and in memory.
Standard: what the database holds beside the rows of a new one is deleted, whatever table it is in.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store


class WipedStore:
    """A SQLite store in a directory of its own; all is to be used in one event loop."""

    def __init__(self, store: Store, secret: SiteSecret, wiping: sqlite3.Connection) -> None:
        self._store = store
        self._secret = secret
        self._wiping = wiping
        tables = wiping.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
        counts = {name: wiping.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in tables}
        filled = [name for name, rows in counts.items() if rows]
        assert filled == ["store_schema"], f"a new store has rows in {filled}"
        deletes = (f'DELETE FROM "{name}";' for name in counts if name != "store_schema")
        self._wipe = "".join(["BEGIN IMMEDIATE;", *deletes, "COMMIT;"])

    @asynccontextmanager
    async def empty(self) -> AsyncIterator[Store]:
        """A store that knows nothing, over the same connections; it is gone after the block."""
        self._wiping.executescript(self._wipe)
        store = Store(self._store._database, self._secret, time.time, None)
        # As open_store does. There is no mark to be read, for its row is wiped.
        await store.deliveries.load()
        try:
            yield store
        finally:
            await store._database.quiet()
            await store.deliveries.go_on()
            await store.claims.close()


@asynccontextmanager
async def wiped_store(directory: Path) -> AsyncIterator[WipedStore]:
    """The store, made in this directory."""
    secret = SiteSecret.load_or_create(directory / "site.secret")
    database = directory / "relay.db"
    async with await open_store(database, secret) as store:
        with closing(sqlite3.connect(database, isolation_level=None)) as wiping:
            wiping.execute("PRAGMA synchronous = OFF")
            yield WipedStore(store, secret, wiping)
