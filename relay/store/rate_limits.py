"""Used rate limits of users and clients, and where users have logged in, for all processes of a site.
Written in bulk, some seconds late, and added up in the database; a killed process loses those seconds.

A row has an expiry time; each process adds its own usage, and reads what has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Double,
    LargeBinary,
    String,
    Table,
    bindparam,
    case,
    delete,
    func,
    select,
    tuple_,
    update,
)

from relay.store.database import Database, metadata, to_its_end

ROWS_AT_ONCE = 200
"""Maximum number of rows in one statement, so that none takes long."""
MOST_ROWS = 50_000
"""Maximum number of rows of one kind; those that expire first are deleted. One takes about 100 bytes."""
OVERLAP_S = 10.0
"""Maximum clock skew between a site's relays, and maximum length of a transaction, in seconds."""

_rate_limits = Table(
    "rate_limits",
    metadata,
    Column("name", LargeBinary(16), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("until", Double, nullable=False),
    Column("changed", Double, nullable=False, index=True),
)
"""Names are keyed hashes, so that the store names nobody; times are seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Spending:
    """Usage of a kind, by its name of 16 bytes, as seconds until it expires.

    When stored, these seconds are added to the stored ones, or with `anew` replace them.
    """

    kind: str
    name: bytes
    seconds: float
    anew: bool = False


class RateLimits:
    """The memory of one store, as one process sees it."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self._seen = 0.0

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts background work; it ends before the store is closed."""
        return self._database.later(work)

    @to_its_end
    async def add(self, spendings: Sequence[Spending]) -> None:
        """Adds usage, at most ROWS_AT_ONCE rows. Raises StoreUnavailable; then nothing was added."""
        now = self._clock()
        # In sorted order, so that two processes with the same names do not deadlock.
        ordered = sorted(spendings, key=lambda each: each.name)

        def add(connection: Connection) -> None:
            for anew in (False, True):
                rows = [
                    {"name": each.name, "kind": each.kind, "until": now + each.seconds, "changed": now}
                    for each in ordered
                    if each.anew == anew
                ]
                if rows:
                    insert = self._database.insert(_rate_limits)
                    stored, new = _rate_limits.c.until, insert.excluded
                    left = case((stored > new.changed, stored), else_=new.changed)
                    until = (
                        case((stored > new.until, stored), else_=new.until) if anew else left + new.until - new.changed
                    )
                    change = insert.on_conflict_do_update(
                        index_elements=[_rate_limits.c.name], set_={"until": until, "changed": new.changed}
                    )
                    connection.execute(change, rows)

        await self._database.writing(add)

    async def changed(self) -> AsyncIterator[list[Spending]]:
        """What any process has added since the last call; at first, everything valid. Raises StoreUnavailable."""
        now = self._clock()
        after = (min(self._seen, now) - OVERLAP_S, b"")
        while rows := await self._page(after, now):
            after = (rows[-1][1], rows[-1][0].name)
            self._seen = max(self._seen, after[0])
            yield [spending for spending, _ in rows]

    async def _page(self, after: tuple[float, bytes], now: float) -> list[tuple[Spending, float]]:
        place = tuple_(_rate_limits.c.changed, _rate_limits.c.name)
        later = place > tuple_(bindparam("at", after[0], Double), bindparam("of", after[1], LargeBinary))
        query = (
            select(_rate_limits)
            .where(later, _rate_limits.c.until > now)
            .order_by(_rate_limits.c.changed, _rate_limits.c.name)
            .limit(ROWS_AT_ONCE)
        )
        rows = await self._database.rows(query)
        return [(Spending(row.kind, row.name, max(0.0, row.until - now)), row.changed) for row in rows]

    @to_its_end
    async def expire(self) -> int:
        """Deletes expired rows, and those beyond MOST_ROWS; returns how many."""
        now = self._clock()

        def forget(connection: Connection) -> int:
            # Written by a clock that was ahead: they expire as if written now, or they would be kept too long.
            ahead = update(_rate_limits).where(_rate_limits.c.changed > now + OVERLAP_S)
            connection.execute(ahead.values(until=_rate_limits.c.until - _rate_limits.c.changed + now, changed=now))
            gone = connection.execute(delete(_rate_limits).where(_rate_limits.c.until < now))
            number = int(gone.rowcount)
            kinds = select(_rate_limits.c.kind, func.count()).group_by(_rate_limits.c.kind)
            for kind, rows in connection.execute(kinds).all():
                if rows > MOST_ROWS:
                    of_kind = select(_rate_limits.c.name).where(_rate_limits.c.kind == kind)
                    first = of_kind.order_by(_rate_limits.c.until).limit(rows - MOST_ROWS)
                    number += int(
                        connection.execute(delete(_rate_limits).where(_rate_limits.c.name.in_(first))).rowcount
                    )
            return number

        return await self._database.writing(forget)
