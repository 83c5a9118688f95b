"""Received keys, for opening mail: stored sealed before use, kept for a while, then destroyed.
Standard: ETSI GS QKD 014 delivers a key once, so `put` is durable on return, and the bytes of a key_ID never change.
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
"""Retention of a key of level otp once all recipients have the mail, in seconds: enough for retries."""
USED_KEEP_FOR_S = 86_400.0
"""Retention of any other key then, in seconds."""
TOMBSTONE_KEEP_FOR_S = 2_592_000.0
"""Seconds (30 days) that the ID of a destroyed key is remembered, to distinguish expired mail from lost keys."""

PLACES_AT_ONCE = 5000
"""Number of rows whose places are read at once: more would block the event loop."""
PROOF_S = 1.0
"""Time after a write for which the store is assumed to be writable, in seconds."""
FEW = 256
"""Maximum number of keys for which memory is checked before the store."""


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
    """Keys to store, and the errors for some of them."""

    keys: Mapping[bytes, FreshKey]
    troubles: list[TryLater] = field(default_factory=list)


@dataclass(slots=True)
class _KeySearch:
    """A query for keys, by the places of their rows, and the rows found."""

    places: list[bytes]
    found: Mapping[bytes, ReceivedKeyRow] = field(default_factory=dict)


class ReceivedKeys:
    """Received keys, each named by KME group, master SAE and key_ID: opaque strings of any content.

    An expired key is held until destroy_expired has run. A key spooled by the second process (relay/key_receiver) is in
    memory. It gets its row with what it opens, or when the spool is taken over.
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
        """Starts background work with these keys; it ends before the store is closed."""
        return self._database.later(work)

    async def ready(self) -> None:
        """Checks that keys can be stored, now or within the last PROOF_S. Raises StoreUnavailable."""
        await self._database.can_be_written(PROOF_S)

    # From the KME, or from its replies that are written down

    def spooled(self, group: str, master_sae: str, key_IDs: Iterable[str]) -> None:
        """Notes that the reply with these keys is spooled, for the start after a kill."""
        self._spooled.update(KeyName(group, master_sae, key_ID) for key_ID in key_IDs)

    def taken_over_from_now_on(self) -> frozenset[KeyName]:
        """The spooled keys that already have rows; call it before the spool is taken over."""
        written, self._written, self._spooled = self._written, set(), set()
        return frozenset(written)

    async def put(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Stores keys (bytes by key_ID) received from a KME; they survive a kill once this returns.

        A key that already exists with the same bytes is accepted. Raises StoreUnavailable, and KMEBadReply for a key_ID
        with other bytes, or whose key was destroyed; the other keys are stored then.
        """
        names = {key_ID: KeyName(group, master_sae, key_ID) for key_ID in keys}
        # Spooled by the second process before it replied: a kill loses none of them. Opening need not wait for the
        # disk: they are on it before delivery (`admit`). All others would be lost with this process.
        spooled = {key_ID for key_ID, name in names.items() if name in self._spooled}
        self._fresh |= self._new_keys({names[key_ID]: keys[key_ID] for key_ID in spooled})
        self._spooled.difference_update(names.values())
        if others := {key_ID: key for key_ID, key in keys.items() if key_ID not in spooled}:
            await self.store(group, master_sae, others)

    async def store(self, group: str, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """Writes the rows of these keys, as `put` does for keys not spooled."""
        put = _Storing(self._new_keys({KeyName(group, master_sae, key_ID): key for key_ID, key in keys.items()}))
        await self._store_together(put)
        if put.troubles:
            raise put.troubles[0]

    def _new_keys(self, octets: Mapping[KeyName, bytes]) -> dict[bytes, FreshKey]:
        """The keys by the places of their rows, which may exist from now on."""
        fresh = {place(name): FreshKey(name, key) for name, key in octets.items()}
        self._places.add(fresh)
        return fresh

    async def learn_places(self) -> None:
        """Reads which keys have rows, for `has_none_of`. Only for the one process that serves from this store."""
        if not self._database.is_sqlite:
            return
        last = b""
        query = select(keys.c.place).order_by(keys.c.place).limit(PLACES_AT_ONCE)
        # If the store cannot be read, each key is queried.
        with suppress(StoreUnavailable):
            while some := [at for (at,) in await self._database.rows(query.where(keys.c.place > last))]:
                self._places.add(some)
                last = some[-1]
            self._places.complete = True

    async def note_unanswered(self, names: Collection[KeyName]) -> None:
        """Stores keys requested by processes that were killed before they read the reply. Raises StoreUnavailable."""
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
        """Whether one of these was requested so; if no KME has it, it is lost. Raises StoreUnavailable."""
        places = await off_loop_in_turn(KEY_WORK * len(names), lambda: sorted(map(place, names)))
        for some in batches(places):
            query = select(unanswered_keys.c.place).where(unanswered_keys.c.place.in_(some)).limit(1)
            if await self._database.rows(query):
                return True
        return False

    def fresh(self, places: Iterable[bytes]) -> dict[bytes, FreshKey]:
        """Those that are spooled, but have no row yet."""
        return {at: self._fresh[at] for at in places if at in self._fresh}

    def have_rows(self, written: Mapping[bytes, FreshKey]) -> None:
        """Notes that these have rows now."""
        for at, key in written.items():
            if self._fresh.pop(at, None) is not None:
                self._written.add(key.name)

    async def forget_taken_over(self) -> None:
        """Drops the bytes of keys whose rows were written by another process, which will expire.

        Raises StoreUnavailable.
        """
        for some in batches(list(self._fresh)):
            rows = await self._database.rows(select(keys.c.place).where(keys.c.place.in_(some)))
            self.have_rows(self.fresh(at for (at,) in rows))

    # For the opener

    def has_none_of(self, group: str, master_sae: str, key_IDs: Collection[str]) -> bool:
        """Whether none of these few keys was stored by this process, or before it started.

        Keys stored by a command since are only found by `look`.
        """
        if len(key_IDs) > FEW:
            return False
        return self._places.none_of(place(KeyName(group, master_sae, key_ID)) for key_ID in key_IDs)

    async def look(
        self, group: str, master_sae: str, key_IDs: Collection[str], use: KeyUse | None = None
    ) -> tuple[dict[str, bytes], frozenset[str]]:
        """The bytes of the keys held, by key_ID, and the key_IDs of destroyed ones.

        Raises KeyUsed if a key has opened something that forbids this `use`. Raises StoreUnavailable, also if a row was
        modified or its secret is missing.
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
        """Runs one query for all."""
        places = list({at for each in lookings for at in each.places})
        rows = await self._database.reading(lambda connection: find_at(connection, places))
        for each in lookings:
            each.found = rows

    @to_its_end
    async def destroy_expired(self, now: float | None = None) -> int:
        """Overwrites, then deletes, all expired keys, and deletes old tombstones. Returns how many.

        `now` is a Unix time, by default the clock's. Old blocks that remain on disks, or in PostgreSQL until VACUUM,
        are sealed. Raises StoreUnavailable; the next call resumes.
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
        """A writer of rows with the current time."""
        return NewRows(self._new, self._secret, self._clock())

    @to_its_end
    async def _store_all(self, puts: Sequence[_Storing]) -> None:
        """Stores all in one transaction; existing rows stay, and are compared."""
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
        # Rows locked by a relay that does the same now are skipped.
        .with_for_update(skip_locked=True)
    )
    noise = update(keys).where(keys.c.place == bindparam("at")).values(sealed=bindparam("noise"), destroyed_at=now)
    rows = connection.execute(due).all()
    if rows:
        connection.execute(noise, [{"at": at, "noise": os.urandom(length)} for at, length in rows])
    return [at for at, _ in rows]
