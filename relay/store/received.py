"""Keys that a KME gave us to open mail with: stored sealed before use, kept for a while, then destroyed.
Standard: ETSI GS QKD 014 gives a key once, so `put` is durable on return and no key_ID changes its octets.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import bindparam, delete, func, select, update

from relay.cms import KeyUse
from relay.errors import KeyUsed, KMEBadReply, StoreUnavailable, TryLater
from relay.store.database import ROWS_AT_ONCE, Database, batches, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.received_table import KeyName, find, from_column, held, keys, new_row, opened_key, place
from relay.store.secret import SealedOctets, SiteSecret

OTP_KEEP_FOR_S = 900.0
"""Seconds that a key of level otp is kept once all whom its mail names have it: retries of one delivery, no more."""
USED_KEEP_FOR_S = 86_400.0
"""Seconds that any other key is kept then."""
UNUSED_KEEP_FOR_S = 605_400.0
"""Seconds (7 days and 10 minutes, as long as a sealed message may open) that a key is kept whose mail still waits."""
TOMBSTONE_KEEP_FOR_S = 2_592_000.0
"""Seconds (30 days) that the ID of a destroyed key is remembered, to tell expired mail from lost keys."""

PROOF_S = 1.0
"""Seconds for which a store is taken to be one that can be written after something was written."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Keys of one master SAE in one KME group.

    `held` now, `used` at least once among these, `destroyed` and still remembered.
    """

    held: int
    used: int
    destroyed: int


@dataclass(slots=True)
class _Storing:
    """Keys to be stored, and what turned out to be wrong with some of them."""

    keys: dict[KeyName, bytes] = field(repr=False)
    troubles: list[TryLater] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Use:
    """Keys that were used now, and how many seconds they are kept from then on."""

    places: set[bytes]
    keep_for: float


class ReceivedKeys:
    """Received keys, each named by KME group, master SAE and key_ID: opaque strings of any content.

    A key whose time is over is held until destroy_expired has run.
    """

    def __init__(self, database: Database, secret: SiteSecret, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._secret = secret
        self._clock = clock
        self._commit = GroupCommit(self._store)
        self._commit_uses = GroupCommit(self._mark)

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begins work with these keys that nobody need wait for; it ends before the store is closed."""
        return self._database.later(work)

    @to_its_end
    async def ready(self) -> None:
        """Returns when keys can be stored, as was seen less than PROOF_S ago. Raises StoreUnavailable."""
        await self._database.can_be_written(PROOF_S)

    async def put(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Stores keys (octets by key_ID) as the KME gave them; they are on the disk when this returns.

        A key that is already there with the same octets is fine. Raises StoreUnavailable, and KMEBadReply
        where a key_ID came with other octets or after its key was destroyed; the other keys are then stored.
        """
        put = _Storing({KeyName(group, master_sae, key_ID): key for key_ID, key in keys.items()})
        await self._commit(put)
        if put.troubles:
            raise put.troubles[0]

    @to_its_end
    async def look(
        self, group: str, master_sae: str, key_IDs: Iterable[str], use: KeyUse | None = None
    ) -> tuple[dict[str, bytes], frozenset[str]]:
        """The octets of those keys that are held, by key_ID, and the key_IDs of those that were destroyed.

        Raises KeyUsed where one has opened something that forbids this `use`, and StoreUnavailable, also where a row
        was changed or its secret is gone: never another key.
        """
        names = [KeyName(group, master_sae, key_ID) for key_ID in key_IDs]
        async with self._database.reading() as connection:
            found = await find(connection, names)
        if use is not None:
            for name, row in found.items():
                if trouble := use.trouble(row.level, row.bound_to):
                    raise KeyUsed(f"key {name.key_ID}: {trouble}")
        held = {name.key_ID: opened_key(self._secret, name, row.sealed) for name, row in found.items() if row.sealed}
        return held, frozenset(name.key_ID for name, row in found.items() if not row.sealed)

    @to_its_end
    async def mark_used(self, group: str, master_sae: str, key_IDs: Iterable[str], keep_for: float) -> None:
        """Notes that these keys were used now; a first use sets a key's end to `keep_for` seconds from now.

        Later uses change nothing. Raises StoreUnavailable.
        """
        await self._commit_uses(_Use({place(KeyName(group, master_sae, key_ID)) for key_ID in key_IDs}, keep_for))

    @to_its_end
    async def destroy_expired(self, now: float | None = None) -> int:
        """Overwrites, then deletes, all keys whose time is over; forgets old tombstones. Returns how many.

        `now` is seconds since 1970, by default the clock's. What disks, and PostgreSQL until its VACUUM, keep
        of old blocks is out of reach, but was sealed. Raises StoreUnavailable; the next call goes on with it.
        """
        now = self._clock() if now is None else now
        destroyed = 0
        while places := await self._overwrite(now):
            deleted = update(keys).where(keys.c.place.in_(places)).values(sealed=None, secret_id=None)
            await self._database.write(deleted)
            destroyed += len(places)
        if destroyed:
            await self._database.scrub()
        await self._database.write(delete(keys).where(keys.c.destroyed_at <= now - TOMBSTONE_KEEP_FOR_S))
        return destroyed

    async def _overwrite(self, now: float) -> list[bytes]:
        """Puts noise over some expired keys, which count as destroyed from then on; returns their places."""
        due = (
            select(keys.c.place, func.length(keys.c.sealed))
            .where(held, keys.c.expires_at <= now)
            .order_by(keys.c.place)
            .limit(ROWS_AT_ONCE)
            # A relay that does the same work now has locked its part; we take another.
            .with_for_update(skip_locked=True)
        )
        noise = update(keys).where(keys.c.place == bindparam("at")).values(sealed=bindparam("noise"), destroyed_at=now)
        async with self._database.writing() as connection:
            rows = (await connection.execute(due)).all()
            if rows:
                await connection.execute(noise, [{"at": at, "noise": os.urandom(length)} for at, length in rows])
        return [at for at, _ in rows]

    async def counts(self) -> dict[tuple[str, str], Counts]:
        """Counts by (KME group, master SAE). Raises StoreUnavailable."""
        names = (keys.c.kme_group, keys.c.master_sae)
        query = select(
            *names,
            func.count().filter(held),
            func.count().filter(held, keys.c.first_used_at.is_not(None)),
            func.count().filter(~held),
        )
        rows = await self._database.rows(query.group_by(*names))
        return {(from_column(group), from_column(sae)): Counts(*numbers) for group, sae, *numbers in rows}

    @to_its_end
    async def _store(self, puts: Sequence[_Storing]) -> None:
        """One transaction for all; a row that is there stays, and is compared with what came."""
        names = [(place(name), name, key) for put in puts for name, key in put.keys.items()]
        now = self._clock()
        ends = now + UNUSED_KEEP_FOR_S
        insert = self._database.insert(keys).on_conflict_do_nothing()
        async with self._database.writing() as connection:
            # In one order, so that two relays which put the same keys do not wait for each other.
            for some in batches(sorted(names, key=lambda row: row[0])):
                rows = [new_row(self._secret, name, key, now=now, expires_at=ends) for _, name, key in some]
                await connection.execute(insert, rows)
            found = await find(connection, [name for _, name, _ in names])
        for put in puts:
            unlike = (self._unlike(name, key, found[name].sealed) for name, key in put.keys.items())
            put.troubles = [trouble for trouble in unlike if trouble]

    async def _mark(self, uses: Sequence[_Use]) -> None:
        """One transaction for all."""
        now = self._clock()
        fresh = held & keys.c.first_used_at.is_(None)
        async with self._database.writing() as connection:
            # Locked in one order, so that two relays with the same keys do not wait for each other.
            for some in batches(sorted(set().union(*(use.places for use in uses)))):
                rows = select(keys.c.place).where(fresh, keys.c.place.in_(some)).order_by(keys.c.place)
                await connection.execute(rows.with_for_update())
            for use in uses:
                used = update(keys).values(first_used_at=now, expires_at=now + use.keep_for)
                for some in batches(list(use.places)):
                    await connection.execute(used.where(fresh, keys.c.place.in_(some)))

    def _unlike(self, name: KeyName, key: bytes, row: SealedOctets | None) -> TryLater | None:
        """What is wrong with the stored key, seen from the one that came; None where they are the same."""
        if row is None:
            return KMEBadReply(f"group {name.group}: key {name.key_ID!r} came again after it was destroyed")
        try:
            stored = opened_key(self._secret, name, row)
        except StoreUnavailable as error:
            return error
        if hmac.compare_digest(stored, key):
            return None
        return KMEBadReply(f"group {name.group}: key {name.key_ID!r} came before with other octets")
