"""Received keys that were asked for when all processes of a relay were killed, so that no answer was read.
Standard: ETSI GS QKD 014 V1.1.1, 5.4 gives a key once: where its KME no longer knows one of these, it is gone.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Column, Connection, Double, LargeBinary, Table, delete, select

from relay.runtime.aio import off_loop_in_turn
from relay.store.database import Database, batches, metadata, to_its_end
from relay.store.received_table import KEY_WORK, UNUSED_KEEP_FOR_S, KeyName, place

unanswered_keys = Table(
    "unanswered_keys",
    metadata,
    Column("place", LargeBinary(32), primary_key=True),
    Column("forget_at", Double, nullable=False),
)
"""`place` is that of the row which the key has not (received_table.py); `forget_at` is in seconds since 1970."""


class UnansweredKeys:
    """Those of one store, for as long as a message under them could be opened."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def note(self, names: Collection[KeyName], now: float) -> None:
        """Remembers these; `now` is in seconds since 1970. Raises StoreUnavailable."""
        rows = [{"place": at, "forget_at": now + UNUSED_KEEP_FOR_S} for at in sorted(map(place, names))]
        new = self._database.insert(unanswered_keys).on_conflict_do_nothing()

        def add(connection: Connection) -> None:
            for some in batches(rows):
                connection.execute(new, some)

        if rows:
            await self._database.writing(add)

    @to_its_end
    async def any_of(self, names: Collection[KeyName]) -> bool:
        """Whether one of these is among them. Raises StoreUnavailable."""
        places = await off_loop_in_turn(KEY_WORK * len(names), lambda: sorted(map(place, names)))
        for some in batches(places):
            query = select(unanswered_keys.c.place).where(unanswered_keys.c.place.in_(some)).limit(1)
            if await self._database.rows(query):
                return True
        return False

    async def forget(self, now: float) -> None:
        """Those whose messages could no longer be opened. Raises StoreUnavailable."""
        await self._database.write(delete(unanswered_keys).where(unanswered_keys.c.forget_at < now))
