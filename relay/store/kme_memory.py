"""Memory about KMEs: the keys issued to this site, so that none is used twice, and results of trials.
Standard: ETSI GS QKD 014 V1.1.1; a key is stored, on disk and as digests only, before it can be used.

A KME that was rolled back may issue keys again. A key is recognised by its case-folded key_ID within its KME group, and
by its bytes in any group. The digests reveal whether a key_ID, which is public, was issued here; about bytes they
reveal nothing without the site's secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Final, NamedTuple

from sqlalchemy import BigInteger, Column, Connection, Double, Integer, LargeBinary, String, Table, delete, func, select

from relay.store.database import Database, batches, metadata, to_its_end
from relay.store.received_table import KeyName
from relay.store.secret import SiteSecret

KEEP_FOR_S = 400 * 86_400.0
"""Retention of a key's digests, in seconds; longer than the age of any backup of a KME."""
MOST: int = 5_000_000
"""Maximum number of keys, 110 bytes of disk each; beyond that, the oldest are deleted."""
AT_ONCE: int = 5_000
"""Maximum number of rows deleted in one transaction, so that no other writer waits long."""
TELLING_OCTETS: Final = 16
"""Minimum length of keys that are compared by their bytes too; shorter ones may be equal by chance."""
DIGEST_OCTETS: Final = 16
BELIEVED_S = 30 * 86400.0
"""Validity of a trial's result, in seconds."""
TRYING_S = 20.0
"""Time after which a trial counts as interrupted, in seconds: its process was killed."""

_issued = Table(
    "issued_keys",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("name", LargeBinary(DIGEST_OCTETS), nullable=False, unique=True),
    Column("octets", LargeBinary(DIGEST_OCTETS), unique=True),
    Column("issued_at", Double, nullable=False),
)
"""Numbers ascend, and may have gaps; `name` is a digest of group and key_ID; `octets` is NULL for short keys."""

_trials = Table(
    "kme_trials",
    metadata,
    Column("kme", LargeBinary(32), primary_key=True),
    Column("described", LargeBinary(32), nullable=False),
    Column("found", String(16), nullable=False),
    Column("tried_at", Double, nullable=False),
)
"""SHA-256 over the KME's URL and the SAEs, and over what it says of itself; when, in seconds since 1970. A row in which
nothing was `found` stands for a trial that is under way."""


class _MemoryRow(NamedTuple):
    name: bytes
    key_ID: str
    octets: bytes | None


class IssuedKeyMemory:
    """The memory of one store, for all relays of a site."""

    def __init__(self, database: Database, secret: SiteSecret, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._digest_keys = secret.derived(b"issued keys")
        self._clock = clock

    @to_its_end
    async def ready(self) -> None:
        """Checks that the store can be written. Raises StoreUnavailable: then no key may be drawn."""
        await self._database.can_be_written()

    @to_its_end
    async def remember(self, group: str, keys: Mapping[str, bytes]) -> frozenset[str]:
        """Stores keys (bytes by key_ID) just issued by a KME of this group; returns those issued before.

        These must not be used. New ones are on disk when this returns. Raises StoreUnavailable: then none may be used.
        """
        rows = await asyncio.to_thread(self._rows, group, keys)

        def remember(connection: Connection) -> set[bytes]:
            new: set[bytes] = set()
            older = self._under_older_secrets(connection, keys)
            for some in batches([row for row in rows.values() if row.key_ID not in older]):
                new.update(self._inserted(connection, some))
            return new

        return frozenset(keys) - {rows[name].key_ID for name in await self._database.writing(remember)}

    @to_its_end
    async def expire(self, now: float | None = None) -> int:
        """Deletes expired keys, and the oldest beyond the limit; returns how many.

        `now` is a Unix time, by default the clock's.
        """
        forgotten = 0
        too_old = partial(_too_old, (self._clock() if now is None else now) - KEEP_FOR_S)
        while gone := await self._database.reading(too_old):
            forgotten += await self._database.write(delete(_issued).where(_issued.c.number <= gone[-1]))
        return forgotten

    def _rows(self, group: str, keys: Mapping[str, bytes]) -> dict[bytes, _MemoryRow]:
        """Rows by name, in sorted order, so that two relays with the same keys do not deadlock."""
        names: dict[bytes, str] = {}
        for key_ID in keys:
            names.setdefault(_name(group, key_ID), key_ID)
        newest = self._digest_keys[0]
        return {name: _MemoryRow(name, key_ID, _octets(newest, keys[key_ID])) for name, key_ID in sorted(names.items())}

    def _inserted(self, connection: Connection, rows: Sequence[_MemoryRow]) -> Sequence[bytes]:
        """The names of the rows inserted: those new both by name and by bytes."""
        now = self._clock()
        insert = self._database.insert(_issued).on_conflict_do_nothing().returning(_issued.c.name)
        values = [{"name": row.name, "octets": row.octets, "issued_at": now} for row in rows]
        return connection.scalars(insert, values).all()

    def _under_older_secrets(self, connection: Connection, keys: Mapping[str, bytes]) -> set[str]:
        """The key_IDs of keys whose bytes are stored under an older secret of the site."""
        older = self._digest_keys[1:]
        if not older:
            return set()
        digests = {key_ID: {_octets(each, octets) for each in older} - {None} for key_ID, octets in keys.items()}
        hits: set[bytes | None] = set()
        for some in batches(list(set().union(*digests.values()))):
            hits.update(connection.scalars(select(_issued.c.octets).where(_issued.c.octets.in_(some))))
        return {key_ID for key_ID, mine in digests.items() if mine & hits}


class Trials:
    """Results of trials that cost keys, so that a restarted relay need not repeat them.

    Valid for BELIEVED_S, and only while the KME's description is unchanged.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock

    async def recall(self, kme: tuple[str, ...], described: tuple[object, ...]) -> str | None:
        """The result for this KME (its URL and the SAEs) with this description; None: no trial yet.

        Raises StoreUnavailable.
        """
        query = select(_trials).where(
            _trials.c.kme == _trial_digest(kme), _trials.c.described == _trial_digest(described)
        )
        for row in await self._database.rows(query):
            # A clock that was ahead at the trial must not extend the validity.
            if 0 <= self._clock() - row.tried_at < BELIEVED_S:
                return str(row.found)
        return None

    async def remember(self, kme: tuple[str, ...], described: tuple[object, ...], result: str) -> None:
        """Stores the `result`, at most 16 characters. Raises StoreUnavailable."""
        row = {"described": _trial_digest(described), "found": result, "tried_at": self._clock()}
        put = self._database.insert(_trials).values(kme=_trial_digest(kme), **row)
        await self._database.write(put.on_conflict_do_update(index_elements=["kme"], set_=row))

    async def begin(self, kme: tuple[str, ...]) -> bool:
        """Whether no trial of this KME (its URL and our SAE) is running; reserves it until `end`, or for TRYING_S.

        Raises StoreUnavailable.
        """
        now = self._clock()
        row = {"described": b"", "found": "", "tried_at": now}
        put = self._database.insert(_trials).values(kme=_trial_digest(("trying", *kme)), **row)
        over = ~_trials.c.tried_at.between(now - TRYING_S, now + TRYING_S)
        begun = put.on_conflict_do_update(index_elements=["kme"], set_=row, where=over)
        return await self._database.write(begun) > 0

    async def end(self, kme: tuple[str, ...]) -> None:
        """Ends the trial. Raises StoreUnavailable."""
        await self._database.write(delete(_trials).where(_trials.c.kme == _trial_digest(("trying", *kme))))


def _too_old(before: float, connection: Connection) -> list[int]:
    """The numbers of the oldest rows, in order, up to the first whose time is not over: some, of many."""
    oldest = select(_issued.c.number, _issued.c.issued_at).order_by(_issued.c.number)
    up_to = (connection.scalar(select(func.max(_issued.c.number))) or 0) - MOST
    for limit in (1, AT_ONCE):  # as a rule there is nothing to do
        rows = connection.execute(oldest.limit(limit)).all()
        gone = [number for number, _ in takewhile(lambda row: row[1] <= before or row[0] <= up_to, rows)]
        if not gone:
            break
    return gone


def _name(group: str, key_ID: str) -> bytes:
    return KeyName(group, "", key_ID).place(_issued.name)[:DIGEST_OCTETS]


def _octets(digest_key: bytes, octets: bytes) -> bytes | None:
    if len(octets) < TELLING_OCTETS:
        return None
    return hmac.digest(digest_key, octets, hashlib.sha256)[:DIGEST_OCTETS]


def _trial_digest(fields: tuple[object, ...]) -> bytes:
    return hashlib.sha256(json.dumps(fields).encode()).digest()
