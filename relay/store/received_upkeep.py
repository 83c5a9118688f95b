"""What time does to received keys: they expire and are destroyed, or move under a newer site secret.
Standard: destroyed means overwritten, then deleted; resealing loses no key, whatever it is cut short by.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, bindparam, delete, func, select, update

from relay.errors import StoreUnavailable
from relay.store.database import ROWS_AT_ONCE, Database
from relay.store.key_name import KeyName, from_column
from relay.store.received_table import held, keys, opened_key, sealed_key
from relay.store.secret import Sealed, SiteSecret


async def destroy_expired(database: Database, now: float) -> int:
    """Destroys all keys whose time is over at `now`; returns how many. Raises StoreUnavailable."""
    destroyed = 0
    while places := await _overwrite(database, now):
        async with database.writing() as connection:
            deleted = update(keys).where(keys.c.place.in_(places)).values(sealed=None, secret_id=None)
            await connection.execute(deleted)
        destroyed += len(places)
    if destroyed:
        await database.scrub()
    return destroyed


async def forget_destroyed(database: Database, before: float) -> None:
    """Deletes the tombstones of keys that were destroyed at `before` or earlier. Raises StoreUnavailable."""
    async with database.writing() as connection:
        await connection.execute(delete(keys).where(keys.c.destroyed_at <= before))


async def missing_secrets(database: Database, secret: SiteSecret) -> dict[str, int]:
    """Held keys under secrets that are not at hand: their number by secret id. Raises StoreUnavailable."""
    query = (
        select(keys.c.secret_id, func.count())
        .where(held, keys.c.secret_id.not_in(secret.ids))
        .group_by(keys.c.secret_id)
    )
    async with database.reading() as connection:
        return {str(secret_id): int(number) for secret_id, number in await connection.execute(query)}


async def reseal(database: Database, secret: SiteSecret) -> int:
    """Moves every key that is under an older secret to the newest; returns how many.

    Raises StoreUnavailable, at the end, where some could not be opened.
    """
    resealed = failed = 0
    last = b""
    while rows := await _under_older_secrets(database, secret, last):
        last = rows[-1].place
        changes = [change for row in rows if (change := _resealed(row, secret))]
        failed += len(rows) - len(changes)
        resealed += len(changes)
        await _replace(database, changes)
    if resealed:
        await database.scrub()
    if failed:
        raise StoreUnavailable(f"{resealed} stored keys were resealed, but {failed} cannot be opened")
    return resealed


async def _overwrite(database: Database, now: float) -> list[bytes]:
    """Puts noise over some expired keys, which count as destroyed from then on; returns their places."""
    due = (
        select(keys.c.place, func.length(keys.c.sealed))
        .where(held, keys.c.expires_at <= now)
        .order_by(keys.c.place)
        .limit(ROWS_AT_ONCE)
        # A relay that does the same work now has locked its part; we take another.
        .with_for_update(skip_locked=True)
    )
    noise = update(keys).where(keys.c.place == bindparam("at"))
    async with database.writing() as connection:
        rows = (await connection.execute(due)).all()
        if rows:
            await connection.execute(
                noise.values(sealed=bindparam("noise"), destroyed_at=now),
                [{"at": place, "noise": os.urandom(length)} for place, length in rows],
            )
    return [place for place, _ in rows]


async def _under_older_secrets(database: Database, secret: SiteSecret, after: bytes) -> Sequence[Row[*tuple[Any, ...]]]:
    """Some held keys that are not under the newest secret, in order of place, from behind `after`."""
    query = (
        select(keys)
        .where(held, keys.c.secret_id != secret.ids[0], keys.c.place > after)
        .order_by(keys.c.place)
        .limit(ROWS_AT_ONCE)
    )
    async with database.reading() as connection:
        return (await connection.execute(query)).all()


def _resealed(row: Row[*tuple[Any, ...]], secret: SiteSecret) -> dict[str, Any] | None:
    """The change of one row, or None where it cannot be opened."""
    name = KeyName(*(from_column(value) for value in (row.kme_group, row.master_sae, row.key_id)))
    try:
        new = sealed_key(secret, name, opened_key(secret, name, Sealed(row.secret_id, row.sealed)))
    except StoreUnavailable:
        return None
    return {"at": row.place, "before": row.sealed, "sealed": new.data, "secret_id": new.secret_id}


async def _replace(database: Database, changes: list[dict[str, Any]]) -> None:
    """Applies the changes to those rows that are still as they were."""
    row = update(keys).where(keys.c.place == bindparam("at"), keys.c.sealed == bindparam("before"))
    if changes:
        async with database.writing() as connection:
            await connection.execute(row, changes)
