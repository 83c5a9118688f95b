"""How long a mail has waited for its key, so that it does not wait for ever.
Standard: one small row for each such mail, which its own queue outweighs by far; forgotten some days later.

Time is counted from try to try: a clock that is set meanwhile must not put mail aside whose key is only late.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sqlalchemy import Column, Double, LargeBinary, Table, delete, select, update

from relay.store.database import Database, metadata, to_its_end

KEEP_FOR_S = 10 * 86400.0
"""Seconds; no mail server tries for longer."""
MOST_BETWEEN_S = 4000.0
"""Seconds that count at most from one try to the next: Postfix's longest pause."""
NOTED_S = 60.0
"""Tries that come sooner are not written down."""

_waiting = Table(
    "waiting_for_keys",
    metadata,
    Column("mail", LargeBinary(32), primary_key=True),
    Column("waited", Double, nullable=False),
    Column("last_seen", Double, nullable=False),
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
        this = _waiting.c.mail == mail
        async with self._database.reading() as connection:
            row = (await connection.execute(select(_waiting).where(this))).first()
        if row is None:
            new = self._database.insert(_waiting).values(mail=mail, waited=0.0, last_seen=now)
            async with self._database.writing() as connection:
                await connection.execute(new.on_conflict_do_nothing())
            return 0.0
        since = now - row.last_seen
        waited = float(row.waited + min(max(since, 0.0), MOST_BETWEEN_S))
        if abs(since) >= NOTED_S:
            async with self._database.writing() as connection:
                await connection.execute(update(_waiting).where(this).values(waited=waited, last_seen=now))
        return waited

    @to_its_end
    async def expire(self, keep_for: float = KEEP_FOR_S) -> int:
        """Forgets mails that came last more than `keep_for` seconds ago; returns how many."""
        async with self._database.writing() as connection:
            gone = await connection.execute(delete(_waiting).where(_waiting.c.last_seen < self._clock() - keep_for))
        return int(gone.rowcount)
