"""Keys that a KME gave us to open mail with: stored sealed before use, kept for a while, then destroyed.
Standard: ETSI GS QKD 014 gives a key once, so `put` is durable on return and no key_ID changes its bytes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update

from relay.errors import KeyUsed, StoreUnavailable, TryLater
from relay.formats.cms import KeyUse
from relay.runtime.aio import off_loop_in_turn
from relay.store.database import ROWS_AT_ONCE, Database, batches, to_its_end
from relay.store.group_commit import GroupCommit
from relay.store.one_step import InsertNew
from relay.store.places import Places
from relay.store.received_table import (
    KEY_WORK,
    UNUSED_KEEP_FOR_S,
    FreshKey,
    KeyName,
    NewRows,
    ReceivedKeyRow,
    find_at,
    from_column,
    held,
    keys,
    opened_key,
    place,
    unanswered_keys,
)
from relay.store.secret import SiteSecret

OTP_KEEP_FOR_S = 900.0
"""Seconds that a key of level otp is kept once all whom its mail names have it: retries of one delivery, no more."""
USED_KEEP_FOR_S = 86_400.0
"""Seconds that any other key is kept then."""
TOMBSTONE_KEEP_FOR_S = 2_592_000.0
"""Seconds (30 days) that the ID of a destroyed key is remembered, to distinguish expired mail from lost keys."""

PLACES_AT_ONCE = 5000
"""Number of rows whose places are read at once: more would hold the event loop."""
PROOF_S = 1.0
"""Seconds for which a store is taken to be one that can be written after something was written."""
FEW = 256
"""Number of keys up to which it is worth asking memory before the store."""


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

    keys: Mapping[bytes, FreshKey]
    troubles: list[TryLater] = field(default_factory=list)


@dataclass(slots=True)
class _KeySearch:
    """Keys that are looked for, by the places of their rows, and the rows that were found."""

    places: list[bytes]
    found: Mapping[bytes, ReceivedKeyRow] = field(default_factory=dict)


class ReceivedKeys:
    """Received keys, each named by KME group, master SAE and key_ID: opaque strings of any content.

    A key whose time is over is held until destroy_expired has run. One that the second process has written down
    (relay/key_receiver) is in memory. It gets its row with what it opens, or when the spool is taken over.
    """

    def __init__(self, database: Database, secret: SiteSecret, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._secret = secret
        self._clock = clock
        self._new = InsertNew(keys.c.place, database.insert(keys).on_conflict_do_nothing().returning(keys.c.place))
        self._store_together = GroupCommit(self._store_all)
        self._look_together = GroupCommit(self._look_all)
        self._spooled: set[KeyName] = set()
        self._fresh: dict[bytes, FreshKey] = {}
        self._written: set[KeyName] = set()
        self._places = Places()

    def later(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begins work with these keys that nobody need wait for; it ends before the store is closed."""
        return self._database.later(work)

    @to_its_end
    async def ready(self) -> None:
        """Returns when keys can be stored, as was seen less than PROOF_S ago. Raises StoreUnavailable."""
        await self._database.can_be_written(PROOF_S)

    # From the KME, or from its replies that are written down

    def spooled(self, group: str, master_sae: str, key_IDs: Iterable[str]) -> None:
        """The reply that has these keys, or some of them, is written down for the start after a kill."""
        self._spooled.update(KeyName(group, master_sae, key_ID) for key_ID in key_IDs)

    def taken_over_from_now_on(self) -> frozenset[KeyName]:
        """To be called before what is on the disk is taken over: of that, these are in their table already."""
        written, self._written, self._spooled = self._written, set(), set()
        return frozenset(written)

    async def put(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Takes keys (bytes by key_ID) as the KME gave them; no kill takes them once this returns.

        A key that is already there with the same bytes is fine. Raises StoreUnavailable, and KMEBadReply
        where a key_ID came with other bytes or after its key was destroyed; the other keys are then stored.
        """
        names = {key_ID: KeyName(group, master_sae, key_ID) for key_ID in keys}
        # Written down by the second process before it answered: a kill from here on costs none of them. Nobody has to
        # wait for the disk before a mail is opened: they are on it before anybody gets what they have opened (`admit`).
        # All others would be lost with this process.
        spooled = {key_ID for key_ID, name in names.items() if name in self._spooled}
        self._fresh |= self._new_keys({names[key_ID]: keys[key_ID] for key_ID in spooled})
        self._spooled.difference_update(names.values())
        if others := {key_ID: key for key_ID, key in keys.items() if key_ID not in spooled}:
            await self.store(group, master_sae, others)

    async def store(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Gives these keys their rows, as `put` does with keys that are on no disk yet."""
        put = _Storing(self._new_keys({KeyName(group, master_sae, key_ID): key for key_ID, key in keys.items()}))
        await self._store_together(put)
        if put.troubles:
            raise put.troubles[0]

    def _new_keys(self, octets: Mapping[KeyName, bytes]) -> dict[bytes, FreshKey]:
        """By the places of their rows, which may be there from now on."""
        fresh = {place(name): FreshKey(name, key) for name, key in octets.items()}
        self._places.add(fresh)
        return fresh

    async def learn_places(self) -> None:
        """Reads of which keys there are rows, for `has_none_of`. For the one process that serves from this store."""
        if not self._database.is_sqlite:
            return
        last = b""
        query = select(keys.c.place).order_by(keys.c.place).limit(PLACES_AT_ONCE)
        # Where the store cannot be read, it is asked of each key.
        with suppress(StoreUnavailable):
            while some := [at for (at,) in await self._database.rows(query.where(keys.c.place > last))]:
                self._places.add(some)
                last = some[-1]
            self._places.complete = True

    async def note_unanswered(self, names: Collection[KeyName]) -> None:
        """These were asked for by processes that were killed before they read the answer. Raises StoreUnavailable."""
        forget_at = self._clock() + UNUSED_KEEP_FOR_S
        rows = [{"place": at, "forget_at": forget_at} for at in sorted(map(place, names))]
        new = self._database.insert(unanswered_keys).on_conflict_do_nothing()

        def add(connection: Connection) -> None:
            for some in batches(rows):
                connection.execute(new, some)

        if rows:
            await self._database.writing(add)

    @to_its_end
    async def unanswered(self, names: Collection[KeyName]) -> bool:
        """Whether one of these was asked for so: where no KME knows it, it is gone. Raises StoreUnavailable."""
        places = await off_loop_in_turn(KEY_WORK * len(names), lambda: sorted(map(place, names)))
        for some in batches(places):
            query = select(unanswered_keys.c.place).where(unanswered_keys.c.place.in_(some)).limit(1)
            if await self._database.rows(query):
                return True
        return False

    def fresh(self, places: Iterable[bytes]) -> dict[bytes, FreshKey]:
        """Those that are written down, but have no row yet."""
        return {at: self._fresh[at] for at in places if at in self._fresh}

    def have_rows(self, written: Mapping[bytes, FreshKey]) -> None:
        """These have their rows now."""
        for at, key in written.items():
            if self._fresh.pop(at, None) is not None:
                self._written.add(key.name)

    async def forget_taken_over(self) -> None:
        """Forgets the bytes of keys that have rows since another process has taken them over: these destroy them.

        Raises StoreUnavailable.
        """
        for some in batches(list(self._fresh)):
            rows = await self._database.rows(select(keys.c.place).where(keys.c.place.in_(some)))
            self.have_rows(self.fresh(at for (at,) in rows))

    # For the opener

    def has_none_of(self, group: str, master_sae: str, key_IDs: Collection[str]) -> bool:
        """Whether none of these few keys was put into the store by this process, or by any one before it started.

        Where a command has put one there since, `look` knows it.
        """
        if len(key_IDs) > FEW:
            return False
        return self._places.none_of(place(KeyName(group, master_sae, key_ID)) for key_ID in key_IDs)

    async def look(
        self, group: str, master_sae: str, key_IDs: Collection[str], use: KeyUse | None = None
    ) -> tuple[dict[str, bytes], frozenset[str]]:
        """The bytes of those keys that are held, by key_ID, and the key_IDs of those that were destroyed.

        Raises KeyUsed where one has opened something that forbids this `use`. Raises StoreUnavailable, also where a row
        was changed or its secret is gone: never another key.
        """
        work = KEY_WORK * len(key_IDs)
        names = await off_loop_in_turn(work, _at_their_places, group, master_sae, key_IDs)
        fresh = self.fresh(names) if self._fresh else {}
        looking = _KeySearch([at for at in names if at not in fresh])
        if looking.places:
            await self._look_together(looking)
        octets = {names[at].key_ID: key.key for at, key in fresh.items()}
        keys = {names[at]: looking.found[at] for at in looking.places if at in looking.found}
        opened, destroyed = await off_loop_in_turn(KEY_WORK * len(keys), _opened, self._secret, keys, use)
        return octets | opened, destroyed

    @to_its_end
    async def _look_all(self, lookings: Sequence[_KeySearch]) -> None:
        """One query for all."""
        places = list({at for each in lookings for at in each.places})
        rows = await self._database.reading(lambda connection: find_at(connection, places))
        for each in lookings:
            each.found = rows

    @to_its_end
    async def destroy_expired(self, now: float | None = None) -> int:
        """Overwrites, then deletes, all keys whose time is over; forgets old tombstones. Returns how many.

        `now` is seconds since 1970, by default the clock's. What disks, and PostgreSQL until its VACUUM, keep
        of old blocks is out of reach, but was sealed. Raises StoreUnavailable; the next call goes on with it.
        """
        now = self._clock() if now is None else now
        destroyed = 0
        while places := await self._database.writing(partial(_overwrite, now)):
            deleted = update(keys).where(keys.c.place.in_(places)).values(sealed=None, secret_id=None)
            await self._database.write(deleted)
            destroyed += len(places)
        if destroyed:
            await self._database.scrub()
        await self._database.write(delete(keys).where(keys.c.destroyed_at <= now - TOMBSTONE_KEEP_FOR_S))
        await self._database.write(delete(unanswered_keys).where(unanswered_keys.c.forget_at < now))
        return destroyed

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

    def new_rows(self) -> NewRows:
        """What gives keys their rows now."""
        return NewRows(self._new, self._secret, self._clock())

    @to_its_end
    async def _store_all(self, puts: Sequence[_Storing]) -> None:
        """One transaction for all; a row that is there stays, and is compared with what came."""
        new = self.new_rows()
        fresh = {at: key for put in puts for at, key in put.keys.items()}

        def store(connection: Connection) -> dict[bytes, ReceivedKeyRow]:
            new.add(connection, fresh)
            return find_at(connection, list(fresh))

        rows = await self._database.writing(store)
        self.have_rows(fresh)
        for put in puts:
            unlike = (key.unlike(self._secret, rows[at].sealed) for at, key in put.keys.items())
            put.troubles = [trouble for trouble in unlike if trouble]


def _at_their_places(group: str, master_sae: str, key_IDs: Iterable[str]) -> dict[bytes, KeyName]:
    """The names of these keys, by the places of their rows."""
    return {place(name): name for key_ID in key_IDs if (name := KeyName(group, master_sae, key_ID))}


def _opened(
    secret: SiteSecret, rows: Mapping[KeyName, ReceivedKeyRow], use: KeyUse | None
) -> tuple[dict[str, bytes], frozenset[str]]:
    """The bytes of the keys in these rows, and the key_IDs of those that were destroyed. Raises as `look` does."""
    if use is not None:
        for name, row in rows.items():
            if trouble := use.trouble(row.level, row.bound_to):
                raise KeyUsed(f"key {name.key_ID}: {trouble}")
    octets = {name.key_ID: opened_key(secret, name, row.sealed) for name, row in rows.items() if row.sealed}
    return octets, frozenset(name.key_ID for name, row in rows.items() if not row.sealed)


def _overwrite(now: float, connection: Connection) -> list[bytes]:
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
    rows = connection.execute(due).all()
    if rows:
        connection.execute(noise, [{"at": at, "noise": os.urandom(length)} for at, length in rows])
    return [at for at, _ in rows]
