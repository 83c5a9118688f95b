"""The tables of received keys: a key's name, its row, and what it has opened.
Standard: ETSI GS QKD 014 key_IDs are only unique within one KME. Different names never share a row, even for hostile
strings, and the bytes of a key are only returned from an unmodified row.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import Column, Connection, Double, Index, LargeBinary, Row, Table, Text, bindparam, func, select, update

from relay.errors import CannotOpen, KeyDestroyed, KeyUsed, KMEBadReply, RelayError, StoreUnavailable, TryLater
from relay.formats.characters import casefold
from relay.formats.cms import KeyUse
from relay.store.database import batches, metadata
from relay.store.one_step import InsertNew, OneStep, steps
from relay.store.resealing import SealedRows
from relay.store.secret import SealedOctets, SiteSecret

KEY_WORK = 256
"""Cost of naming or opening a row, in bytes of other work."""
UNUSED_KEEP_FOR_S = 605_400.0
"""Seconds (7 days and 10 minutes, as long as a sealed message may open) that a key is kept whose mail still waits."""


@dataclass(frozen=True, slots=True)
class KeyName:
    """The three names of one key, all opaque strings of any length.

    A key_ID is kept as spelled by the KME, but compared without case. Otherwise a key could be used again under another
    spelling.
    """

    group: str
    master_sae: str
    key_ID: str

    def context(self, table: str) -> bytes:
        """The table's name and the three, each after its length (4 bytes): what a sealed key is bound to."""
        names = (table, self.group, self.master_sae, casefold(self.key_ID))
        parts = [part.encode("utf-8", "surrogatepass") for part in names]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def place(self, table: str) -> bytes:
        """The primary key of the row: SHA-256 of the context, so 32 bytes whatever the names are."""
        return hashlib.sha256(self.context(table)).digest()


def as_column(name: str) -> str:
    """A name as readable ASCII: PostgreSQL text accepts neither NUL nor lone surrogates."""
    return name.encode("unicode_escape").decode("ascii")


def from_column(value: str) -> str:
    """The name that as_column was given."""
    return value.encode("ascii").decode("unicode_escape")


keys = Table(
    "received_keys",
    metadata,
    Column("place", LargeBinary(32), primary_key=True),
    Column("kme_group", Text, nullable=False),
    Column("master_sae", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("secret_id", Text),
    Column("sealed", LargeBinary),
    Column("level", Text),
    Column("bound_to", LargeBinary),
    Column("stored_at", Double, nullable=False),
    Column("first_used_at", Double),
    Column("expires_at", Double, nullable=False),
    Column("destroyed_at", Double),
    Index("received_keys_expiry", "destroyed_at", "expires_at"),
)
"""A destroyed key's row stays as its tombstone: `destroyed_at` is set, `sealed` is noise and then NULL. `level`
is the one that a key has opened something at, `bound_to` the fingerprints (32 bytes each) of all that it has opened.

Times are seconds since 1970; `place` is the name's SHA-256; the names are as as_column writes them.
"""

unanswered_keys = Table(
    "unanswered_keys",
    metadata,
    Column("place", LargeBinary(32), primary_key=True),
    Column("forget_at", Double, nullable=False),
)
"""Keys requested by a process that was killed before it had read the reply.

If the KME no longer has one of them, it is lost. `place` is that of the missing row; `forget_at` is a Unix time.
"""

held = keys.c.destroyed_at.is_(None)
"""The condition that a row holds a key."""


@lru_cache(maxsize=4096)
def place(name: KeyName) -> bytes:
    """The primary key of this key's row."""
    return name.place(keys.name)


_of_some = keys.c.place.in_(bindparam("some", expanding=True))
# By no column of the index of ends: SQLite would take that for a long list of places, and look through all keys held.
_held = func.coalesce(keys.c.destroyed_at, keys.c.destroyed_at).is_(None)
_at = OneStep(
    select(keys.c.place, keys.c.secret_id, keys.c.sealed, keys.c.level, keys.c.bound_to, held.label("held")).where(
        _of_some
    )
)
_to_bind = (
    select(keys.c.place, keys.c.level, keys.c.bound_to, keys.c.secret_id, keys.c.sealed)
    .where(_held, _of_some)
    .order_by(keys.c.place)
    .with_for_update()
)
_bind = (
    update(keys).where(keys.c.place == bindparam("at")).values(level=bindparam("its_level"), bound_to=bindparam("to"))
)
_unused = _held & keys.c.first_used_at.is_(None) & _of_some
_to_mark = select(keys.c.place).where(_unused).order_by(keys.c.place).with_for_update()
_mark = OneStep(update(keys).where(_unused).values(first_used_at=bindparam("now"), expires_at=bindparam("ends")))


def opened_key(secret: SiteSecret, name: KeyName, sealed: SealedOctets) -> bytes:
    """Opens the bytes. Raises StoreUnavailable if they were not sealed for this row."""
    return secret.open(sealed, name.context(keys.name))


def new_row(secret: SiteSecret, key: FreshKey, at: bytes, now: float, use: KeyUse | None) -> dict[str, Any]:
    """The row of a key by column name; `use` is what it has opened, or None."""
    name = key.name
    sealed = secret.seal(key.key, name.context(keys.name))
    return {
        "place": at,
        "kme_group": as_column(name.group),
        "master_sae": as_column(name.master_sae),
        "key_id": as_column(name.key_ID),
        "secret_id": sealed.secret_id,
        "sealed": sealed.data,
        "level": use.level if use else None,
        "bound_to": use.fingerprint if use else None,
        "stored_at": now,
        "expires_at": now + UNUSED_KEEP_FOR_S,
    }


def _context_of(row: Row[Any]) -> bytes:
    return KeyName(*map(from_column, (row.kme_group, row.master_sae, row.key_id))).context(keys.name)


SEALED_KEYS = SealedRows("stored keys", keys, keys.c.place, held, _context_of, at_once=500)


@dataclass(frozen=True, slots=True)
class ReceivedKeyRow:
    """A row: the sealed key (None: destroyed), and what it has opened so far."""

    sealed: SealedOctets | None
    level: str | None
    bound_to: bytes | None


def find(connection: Connection, names: Sequence[KeyName]) -> dict[KeyName, ReceivedKeyRow]:
    """The rows that exist, by name."""
    places = {name: place(name) for name in names}
    rows = find_at(connection, list(places.values()))
    return {name: rows[at] for name, at in places.items() if at in rows}


def find_at(connection: Connection, places: Sequence[bytes]) -> dict[bytes, ReceivedKeyRow]:
    """The rows that exist at these places."""
    rows = {}
    for some in steps(places):
        for at, secret_id, sealed, level, bound_to, is_held in _at.rows(connection, some=list(some)):
            rows[at] = ReceivedKeyRow(SealedOctets(secret_id, sealed) if is_held else None, level, bound_to)
    return rows


@dataclass(frozen=True, slots=True)
class Bound:
    """Keys of one KME group that have opened a ciphertext, and may open nothing else that `use` forbids."""

    group: str
    master_sae: str
    key_IDs: tuple[str, ...]
    use: KeyUse

    @property
    def places(self) -> dict[bytes, str]:
        """The key_IDs by the primary keys of their rows."""
        return {place(KeyName(self.group, self.master_sae, key_ID)): key_ID for key_ID in self.key_IDs}


@dataclass(frozen=True, slots=True)
class FreshKey:
    """A key that has no row yet."""

    name: KeyName
    key: bytes = field(repr=False)

    def unlike(self, secret: SiteSecret, row: SealedOctets | None) -> TryLater | None:
        """The conflict with an existing row (None: destroyed) of this key, or None."""
        name = self.name
        if row is None:
            return KMEBadReply(f"group {name.group}: key {name.key_ID!r} came again after it was destroyed")
        try:
            stored = opened_key(secret, name, row)
        except StoreUnavailable as error:
            return error
        if hmac.compare_digest(stored, self.key):
            return None
        return KMEBadReply(f"group {name.group}: key {name.key_ID!r} came before with other bytes")


@dataclass(frozen=True, slots=True)
class NewRows:
    """Writes rows of keys, sealed under the site secret; `now` is a Unix time."""

    insert: InsertNew
    secret: SiteSecret
    now: float

    def add(
        self,
        connection: Connection,
        fresh: Mapping[bytes, FreshKey],
        uses: Mapping[bytes, KeyUse] = MappingProxyType({}),
    ) -> set[bytes]:
        """Inserts rows, by place, for keys that have opened what is in `uses`; returns the places of new rows."""
        added: set[bytes] = set()
        # In sorted order, so that two relays with the same keys do not deadlock.
        for some in batches(sorted(fresh)):
            rows = [new_row(self.secret, fresh[at], at, self.now, uses.get(at)) for at in some]
            added |= self.insert.add(connection, rows)
        return added


def bind_keys(
    connection: Connection, messages: Sequence[Sequence[Bound]], fresh: Mapping[bytes, FreshKey], new: NewRows
) -> list[RelayError | None]:
    """Binds the keys of each message to what they have opened; what stands in the way of each, if anything does.

    A `fresh` key of one of them gets its row with that, bound to what it has opened first.
    """
    uses = {at: bound.use for each in reversed(messages) for bound in reversed(each) for at in bound.places}
    added = new.add(connection, fresh, uses)
    opened: dict[bytes, _Opened] = {at: (uses[at].level, uses[at].fingerprint) for at in added}
    other: dict[bytes, TryLater] = {}
    for some in batches(sorted(uses.keys() - added)):
        # Locked in one order, so that two relays with the same keys do not wait for each other.
        for row in connection.execute(_to_bind, {"some": some}):
            opened[row.place] = (row.level, row.bound_to)
            # It has come twice, and what has opened the message need not be what is here.
            if row.place in fresh:
                sealed = SealedOctets(row.secret_id, row.sealed)
                if (cause := fresh[row.place].unlike(new.secret, sealed)) is not None:
                    other[row.place] = cause
    changed: set[bytes] = set()
    troubles: list[RelayError | None] = []
    for each in messages:
        trouble: RelayError | None = None
        for bound in each:  # from the outermost layer inwards: an inner one may not use its keys once more
            unlike = [other[at] for at in bound.places if at in other]
            trouble = unlike[0] if unlike else _trouble(bound, opened)
            if trouble is not None:
                break
            changed.update(_bound(bound, opened))
        troubles.append(trouble)
    if changed:
        connection.execute(
            _bind, [{"at": at, "its_level": opened[at][0], "to": opened[at][1]} for at in sorted(changed)]
        )
    return troubles


@dataclass(frozen=True, slots=True)
class KeysUsed:
    """Keys of one KME group that nobody waits for, and how many seconds they are kept from now on."""

    group: str
    master_sae: str
    key_IDs: tuple[str, ...]
    keep_for: float

    @property
    def places(self) -> set[bytes]:
        """The primary keys of their rows."""
        return {place(KeyName(self.group, self.master_sae, key_ID)) for key_ID in self.key_IDs}


def mark_used(connection: Connection, uses: Sequence[KeysUsed], now: float) -> None:
    """Notes that these keys were used now; a first use sets a key's end, later ones change nothing."""
    places = [use.places for use in uses]
    if connection.dialect.name != "sqlite":
        # Locked in one order, so that two relays with the same keys do not wait for each other.
        for some in batches(sorted(set().union(*places))):
            connection.execute(_to_mark, {"some": some})
    ends: dict[float, set[bytes]] = {}
    for use, its in zip(uses, places, strict=True):
        ends.setdefault(now + use.keep_for, set()).update(its.difference(*ends.values()))
    for expires_at, its in ends.items():
        for some in steps(sorted(its)):
            _mark.changed(connection, some=list(some), now=now, ends=expires_at)


_Opened = tuple[str | None, bytes | None]
"""What a key has opened so far: `level` and `bound_to`."""


def _trouble(bound: Bound, opened: Mapping[bytes, _Opened]) -> CannotOpen | None:
    for at, key_ID in bound.places.items():
        if at not in opened:
            return KeyDestroyed(f"key {key_ID} was destroyed while the message was opened")
        if trouble := bound.use.trouble(*opened[at]):
            return KeyUsed(f"key {key_ID}: {trouble}")
    return None


def _bound(bound: Bound, opened: dict[bytes, _Opened]) -> list[bytes]:
    """Notes in `opened` what these keys have opened now; the places of those for which that is news."""
    news = [at for at in bound.places if not bound.use.opened_before(opened[at][1])]
    for at in news:
        opened[at] = (bound.use.level, (opened[at][1] or b"") + bound.use.fingerprint)
    return news
