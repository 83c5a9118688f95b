"""When a mail that waits for its key came first, so that it does not wait for ever.
Standard: one small row for each such mail, which its own queue outweighs by far; forgotten some days later.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Column, Double, LargeBinary, Table, delete, select

from relay.store.database import Database, metadata, to_its_end

KEEP_FOR_S = 10 * 86400.0
"""Seconds; no mail server tries for longer."""

_waiting = Table(
    "waiting_for_keys",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("first_seen", Double, nullable=False),
)


class FirstSeen:
    """The mails of one store that wait."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock

    @to_its_end
    async def waits_for(self, mail: bytes) -> float:
        """Seconds since this mail (32 octets) was asked about first: 0 now. Raises StoreUnavailable."""
        now = self._clock()
        query = select(_waiting.c.first_seen).where(_waiting.c.mail == mail)
        async with self._database.reading() as connection:
            first = await connection.scalar(query)
        if first is None:
            insert = self._database.insert(_waiting).values(mail=mail, first_seen=now).on_conflict_do_nothing()
            async with self._database.writing() as connection:
                await connection.execute(insert)
                first = await connection.scalar(query)
        return max(0.0, now - (now if first is None else first))

    @to_its_end
    async def expire(self, keep_for: float = KEEP_FOR_S) -> int:
        """Forgets mails that came first more than `keep_for` seconds ago; returns how many."""
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(_waiting).where(_waiting.c.first_seen < self._clock() - keep_for))
        return int(gone.rowcount)
