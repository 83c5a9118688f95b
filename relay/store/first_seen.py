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
        rows = await self._database.rows(select(_waiting).where(this))
        if not rows:
            new = self._database.insert(_waiting).values(mail=mail, waited=0.0, last_seen=now)
            await self._database.write(new.on_conflict_do_nothing())
            return 0.0
        since = now - rows[0].last_seen
        waited = float(rows[0].waited + min(max(since, 0.0), MOST_BETWEEN_S))
        if abs(since) >= NOTED_S:
            await self._database.write(update(_waiting).where(this).values(waited=waited, last_seen=now))
        return waited

    async def expire(self, keep_for: float = KEEP_FOR_S) -> int:
        """Forgets mails that came last more than `keep_for` seconds ago; returns how many."""
        return await self._database.write(delete(_waiting).where(_waiting.c.last_seen < self._clock() - keep_for))
