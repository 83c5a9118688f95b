"""Tables with rows that are sealed under the site secret: which secrets they need, and how they get under a new one.
Resealing loses nothing, whatever it is cut short by: each row is changed in one step, and only if it is as it was read.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ColumnElement, Row, Table, bindparam, func, select, update

from relay.errors import StoreUnavailable
from relay.store.database import Database
from relay.store.secret import SealedOctets, SiteSecret


@dataclass(frozen=True, slots=True)
class SealedRows:
    """The rows of a table that have `secret_id` and `sealed`, where `held` is true; `at_once` are read together.

    `context` is what the bytes of a row are bound to; `what` they are called in messages.
    """

    what: str
    table: Table
    key: Column[Any]
    held: ColumnElement[bool]
    context: Callable[[Row[Any]], bytes]
    at_once: int

    async def missing_secrets(self, database: Database, secret: SiteSecret) -> Counter[str]:
        """How many rows are under each secret that we do not hold, by its id. Raises StoreUnavailable."""
        under = self.table.c.secret_id
        query = select(under, func.count()).where(self.held, under.not_in(secret.ids)).group_by(under)
        return Counter({str(secret_id): int(number) for secret_id, number in await database.rows(query)})

    async def reseal(self, database: Database, secret: SiteSecret) -> int:
        """Moves all rows under the newest secret; returns how many were not.

        Raises StoreUnavailable, at the end, where some could not be opened.
        """
        resealed = failed = 0
        older = select(self.table).where(self.held, self.table.c.secret_id != secret.ids[0])
        rows = await database.rows(older.order_by(self.key).limit(self.at_once))
        while rows:
            changes = await asyncio.to_thread(self._changes, rows, secret)
            failed += len(rows) - len(changes)
            resealed += await self._apply(database, changes)
            last = rows[-1]._mapping[self.key]
            rows = await database.rows(older.where(self.key > last).order_by(self.key).limit(self.at_once))
        if resealed:
            await database.scrub()
        if failed:
            raise StoreUnavailable(f"{resealed} {self.what} were resealed, but {failed} cannot be opened")
        return resealed

    def _changes(self, rows: Sequence[Row[Any]], secret: SiteSecret) -> list[dict[str, Any]]:
        """Those of these rows that can be opened, sealed anew."""
        changes = []
        for row in rows:
            context = self.context(row)
            try:
                new = secret.seal(secret.open(SealedOctets(row.secret_id, row.sealed), context), context)
            except StoreUnavailable:
                continue
            at = row._mapping[self.key]
            changes.append({"at": at, "before": row.secret_id, "its_octets": new.data, "its_secret": new.secret_id})
        return changes

    async def _apply(self, database: Database, changes: list[dict[str, Any]]) -> int:
        """Changes those rows that nobody else has resealed or destroyed meanwhile."""
        as_read = (self.key == bindparam("at")) & (self.table.c.secret_id == bindparam("before")) & self.held
        new: dict[str, Any] = {"sealed": bindparam("its_octets"), "secret_id": bindparam("its_secret")}
        if changes:
            change = update(self.table).where(as_read).values(new)
            await database.writing(lambda connection: connection.execute(change, changes))
        return len(changes)
