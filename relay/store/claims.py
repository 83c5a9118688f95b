"""Claims on one recipient of a mail, held under one lease for each process, in both directions.
A claim is valid as long as its owner's lease, by the database's clock; leases expire.

A process that could not renew its lease in time (frozen, or cut off from the store) begins a new one under a new name.
What it had claimed under the old one may be claimed by another relay now, and must not leave. `check` detects this with
boot time, which continues while a process is frozen and cannot be set. Clocks of different relays are never compared.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from select import POLLIN, poll
from typing import TypeVar

import structlog
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    LargeBinary,
    String,
    Table,
    bindparam,
    cast,
    delete,
    extract,
    func,
    select,
    update,
)

from relay.counting import metrics
from relay.counting.board import Board
from relay.errors import DeliveryUnderWay, StoreUnavailable
from relay.runtime.aio import boot_time
from relay.store.database import Database, batches, metadata, to_its_end
from relay.store.one_step import InsertNew, OneStep, steps

log = structlog.get_logger(__name__)

LEASE_S = 60.0
"""Lease length, in seconds, from the last heartbeat."""
RENEW_S = 15.0
"""Heartbeat interval, in seconds."""
PATIENCE_S = 30.0
"""Time after the start of its lease in which a relay takes over no claims, in seconds.

After an outage of the database all leases have expired, and busy processes first have to store what they delivered."""
MARGIN_S = 5.0
"""Safety margin for clock drift, in seconds: a process gives up its lease this much before the database does."""

_relays = Table(
    "relays",
    metadata,
    Column("relay", String(48), primary_key=True),
    Column("until", Double, nullable=False),
)
"""Leases: `until` in seconds of the database's clock."""

_claims = Table(
    "claims",
    metadata,
    Column("place", LargeBinary(32), primary_key=True),
    Column("relay", String(48), nullable=False),
    Column("kind", String(8), nullable=False),
    sqlite_with_rowid=False,
)
"""`place` is SHA-256 over a mail and a recipient; `kind` says what is done to them, for people."""


_ours = _claims.c.place.in_(bindparam("some", expanding=True)), _claims.c.relay == bindparam("of")
_delete = delete(_claims).where(*_ours).returning(_claims.c.place)
_how_many, _delete_all = (
    OneStep(select(func.count()).select_from(_claims).where(*_ours)),
    OneStep(delete(_claims).where(*_ours)),
)

_Result = TypeVar("_Result")


@dataclass(slots=True)
class ClaimsTransaction:
    """One writing transaction, and what it does to claims, once it is committed."""

    connection: Connection
    relay: str
    taken: set[bytes] = field(default_factory=set)
    over: dict[bytes, str] = field(default_factory=dict)
    interrupted: Counter[str] = field(default_factory=Counter)

    def give_back(self, places: Iterable[bytes]) -> None:
        """Releases claims that are not needed."""
        back = self.taken & set(places)
        self.taken -= back
        self._delete(sorted(back), self.relay)

    def end(self, claims: Mapping[bytes, str]) -> set[bytes]:
        """Ends claims, given with their owners; returns those that nobody else had taken over."""
        by_relay: defaultdict[str, list[bytes]] = defaultdict(list)
        for place, relay in claims.items():
            by_relay[relay].append(place)
        ended: set[bytes] = set()
        for relay, places in by_relay.items():
            ended |= self._delete(sorted(places), relay)
        self.over.update(claims)
        return ended

    def _delete(self, places: Sequence[bytes], relay: str) -> set[bytes]:
        deleted: set[bytes] = set()
        for some in steps(places):
            all_of_them = {"some": list(some), "of": relay}
            if _how_many.rows(self.connection, **all_of_them) == [(len(some),)]:  # as nearly always
                _delete_all.changed(self.connection, **all_of_them)
                deleted.update(some)
            else:
                deleted.update(self.connection.scalars(_delete, all_of_them))
        return deleted


class Claims:
    """The claims of one process in one store."""

    def __init__(self, database: Database, clock: Callable[[], float] = boot_time, board: Board | None = None) -> None:
        """`clock` is monotonic, in seconds, including suspend. Interrupted deliveries are counted on the `board`."""
        self._database = database
        self._clock = clock
        self._relay = ""
        self._good_until = 0.0
        self._patient_until = float("inf")
        self._beginning = asyncio.Lock()
        self._renewing: asyncio.Task[None] | None = None
        new = database.insert(_claims).on_conflict_do_nothing().returning(_claims.c.place)
        self._new = InsertNew(_claims.c.place, new)
        self._held: dict[bytes, str] = {}
        self._dropped: dict[bytes, str] = {}
        self._ending: dict[bytes, str] = {}
        self.board = board or Board()

    def held(self, places: Iterable[bytes]) -> dict[bytes, str]:
        """Those of these places that this process has claimed, with their owners' names."""
        return {place: self._held[place] for place in places if place in self._held}

    def check(self, relay: str) -> None:
        """Last check before a mail leaves. Raises DeliveryUnderWay if its claims may have been taken over.

        `relay` is the name under which they were taken.
        """
        if relay != self._relay or self._clock() >= self._good_until:
            raise DeliveryUnderWay("this relay was out of touch with its store, and another one may have the mail now")

    def drop(self, places: Iterable[bytes]) -> None:
        """Ends claims without a transaction: at once for this process, for others at the next heartbeat."""
        for place in places:
            if relay := self._held.pop(place, ""):
                self._dropped[place] = relay

    async def change(
        self, work: Callable[[ClaimsTransaction], _Result], places: Mapping[bytes, str] | None = None
    ) -> _Result:
        """Runs `work` in a write transaction that first claims `places`, as far as they are free (`taken`).

        `places` has a kind for each place. Raises StoreUnavailable; then nothing was claimed or ended.
        """
        relay = await self._lease() if places else self._relay
        free = {place: kind for place, kind in (places or {}).items() if place not in self._held}
        free = {place: kind for place, kind in free.items() if place not in self._ending}
        for place in free:
            self._dropped.pop(place, None)

        def run(connection: Connection) -> tuple[ClaimsTransaction, _Result]:
            change = ClaimsTransaction(connection, relay)
            self._take(change, free)
            return change, work(change)

        try:
            change, result = await self._database.writing(run)
        except BaseException:
            # If the connection breaks, it is unknown whether they were claimed.
            self._dropped.update(dict.fromkeys(free, relay))
            raise
        self._held.update(dict.fromkeys(change.taken, relay))
        for place, name in change.over.items():
            if self._held.get(place) == name:
                del self._held[place]
        self._count(change.interrupted)
        return result

    async def dead_processes(self) -> frozenset[str]:
        """The owners whose process no longer exists. Raises StoreUnavailable.

        Only for an embedded database, whose users are all processes of this host; else empty.
        """
        if not self._database.is_sqlite:
            return frozenset()
        rows = await self._database.rows(select(_relays.c.relay))
        return frozenset(row.relay for row in rows if row.relay != self._relay and not _lives(row.relay))

    async def end_claims(self, dead: frozenset[str] | None = None) -> None:
        """Ends and counts claims of the `dead`, by default `dead_processes`, and of expired leases.

        Raises StoreUnavailable.
        """
        dead = await self.dead_processes() if dead is None else dead
        if not self._patient:
            await self._database.to_its_end(self.change(partial(self._end_those_of_the_dead, dead)))

    def _end_those_of_the_dead(self, dead: frozenset[str], change: ClaimsTransaction) -> None:
        change.connection.execute(delete(_relays).where(_relays.c.relay.in_(dead)))
        self._cut_short(change.connection)
        change.connection.execute(delete(_relays).where(~self._alive))
        alive = select(_relays.c.relay)
        gone = delete(_claims).where(_claims.c.relay.not_in(alive)).returning(_claims.c.kind)
        change.interrupted.update(change.connection.scalars(gone))

    @to_its_end
    async def go_on(self) -> None:
        """Sends a heartbeat and ends dropped claims. Raises StoreUnavailable."""
        begun, relay = self._clock(), self._relay
        self._ending = dict(self._dropped)
        try:
            renewed = await self._database.writing(partial(self._renewed, relay, dict(self._ending)))
            for place, name in self._ending.items():
                if self._dropped.get(place) == name:
                    del self._dropped[place]
        finally:
            self._ending = {}
        if relay != self._relay:
            return
        if renewed:
            self._good_until = begun + LEASE_S - MARGIN_S
        elif relay:
            self._good_until = 0.0

    def _renewed(self, relay: str, ending: Mapping[bytes, str], connection: Connection) -> bool:
        ClaimsTransaction(connection, relay).end(ending)
        self._cut_short(connection)
        mine = update(_relays).where(_relays.c.relay == relay, self._alive)
        return connection.execute(mine.values(until=self._now + LEASE_S)).rowcount > 0

    async def close(self) -> None:
        """Ends the lease; call it when no delivery is running. Raises StoreUnavailable."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self._relay:
            await self.go_on()
            await self._database.write(delete(_relays).where(_relays.c.relay == self._relay))

    @property
    def _now(self) -> ColumnElement[float]:
        """The database's clock; with SQLite, boot time of this host, which cannot be set."""
        if self._database.is_sqlite:
            return bindparam(None, callable_=boot_time, type_=Double)
        return cast(extract("epoch", func.clock_timestamp()), Double)

    @property
    def _alive(self) -> ColumnElement[bool]:
        """Whether a lease is valid. After a reboot, an old lease may be in the future."""
        alive = _relays.c.until > self._now
        return alive & (_relays.c.until <= self._now + LEASE_S) if self._database.is_sqlite else alive

    def _cut_short(self, connection: Connection) -> None:
        """Shortens leases after the database's clock was set back: those of dead processes would last too long.

        It expires none, since living processes rely on theirs. An embedded database's clock cannot be set.
        """
        if not self._database.is_sqlite:
            longest = self._now + LEASE_S
            connection.execute(update(_relays).where(_relays.c.until > longest).values(until=longest))

    @property
    def _patient(self) -> bool:
        """Whether nothing is taken over yet (PATIENCE_S); never with an embedded database."""
        return not self._database.is_sqlite and self._clock() < self._patient_until

    async def _lease(self) -> str:
        """The name under which claims are taken now. Raises StoreUnavailable."""
        async with self._beginning:
            if self._clock() >= self._good_until:
                begun, name = self._clock(), f"{os.getpid()}-{secrets.token_hex(8)}"
                new = _relays.insert().values(relay=name, until=self._now + LEASE_S)
                await self._database.writing(lambda connection: connection.execute(new))
                if self._relay:
                    log.error("lease_was_over", held=len(self._held), cause="frozen, or cut off from the store")
                self._relay, self._good_until = name, begun + LEASE_S - MARGIN_S
                self._patient_until = begun + PATIENCE_S
                if self._renewing is None:
                    self._renewing = asyncio.create_task(self._renew(), name="heartbeats")
            return self._relay

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self.go_on()
            except StoreUnavailable as error:
                log.warning("lease_not_renewed", cause=str(error))

    def _take(self, change: ClaimsTransaction, kinds: Mapping[bytes, str]) -> None:
        """Claims places in sorted order, so that two relays with the same mail do not deadlock."""
        for some in batches(sorted(kinds)):
            if not self._insert(change, kinds, some):
                continue
            here = _claims.c.place.in_(some)
            if not self._patient:
                alive = select(_relays.c.relay).where(self._alive)
                dead = delete(_claims).where(here, _claims.c.relay.not_in(alive)).returning(_claims.c.kind)
                change.interrupted.update(change.connection.scalars(dead))
                self._insert(change, kinds, some)
            # Ours, from a transaction whose result was lost.
            ours = select(_claims.c.place).where(here, _claims.c.relay == change.relay).with_for_update()
            change.taken.update(change.connection.scalars(ours))

    def _insert(self, change: ClaimsTransaction, kinds: Mapping[bytes, str], places: Sequence[bytes]) -> bool:
        """Claims free places; returns whether any of them was taken."""
        rows = [{"place": place, "relay": change.relay, "kind": kinds[place]} for place in places]
        change.taken |= self._new.add(change.connection, rows)
        return not change.taken.issuperset(places)

    def _count(self, interrupted: Counter[str]) -> None:
        for kind, number in interrupted.items():
            log.warning("delivery_interrupted", kind=kind, recipients=number, meaning="they may get the mail twice")
            self.board.add(metrics.INTERRUPTED, kind, by=number)


def _lives(name: str) -> bool:
    """Whether the process of another lease runs. One with our PID was an earlier one, in a container.

    A zombie does not run.
    """
    pid = int(name.partition("-")[0])
    if pid == os.getpid():
        return False
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # no descriptor is available: unknown
        return True
    look = poll()
    look.register(process, POLLIN)
    ended = look.poll(0)
    os.close(process)
    return not ended
