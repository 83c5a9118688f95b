"""When each peer was last sent a canary, and the result: one row for each peer, for all relays of a site.
The first relay to change a row acts for all: a peer is asked once, and a receipt counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Column, ColumnElement, Connection, Double, LargeBinary, String, Table, case, or_, select, update

from relay.store.database import Database, metadata, to_its_end

_canaries = Table(
    "canaries",
    metadata,
    Column("peer", String(255), primary_key=True),
    Column("nonce", LargeBinary(32)),
    Column("asked_at", Double, nullable=False),
    Column("since", Double, nullable=False),
    Column("returned_at", Double),
    Column("round_trip", Double),
    Column("answered_at", Double, nullable=False),
)
"""Unix times, 0 for never. `nonce` is that of the outstanding canary, NULL once it has returned."""


@dataclass(frozen=True, slots=True)
class Canary:
    """The state for one peer. `since` is when the last canary returned, or when asking began, whichever is later.

    `returned_at` and `round_trip` (seconds) are those of the last one that returned, or None.
    """

    peer: str
    is_out: bool
    asked_at: float
    since: float
    returned_at: float | None
    round_trip: float | None

    def age(self, now: float, limit: float) -> float | None:
        """Seconds since a canary returned; None if none was sent within `limit`."""
        if now - self.asked_at > limit:
            return None
        return max(0.0, now - self.since)

    def is_due(self, now: float, every: float) -> bool:
        """Whether to send the next one."""
        return self.asked_at <= now - every or self.asked_at > now + every


class Canaries:
    """The canaries of one store."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self.clock = clock

    async def read(self) -> dict[str, Canary]:
        """All canaries, by peer. Raises StoreUnavailable."""
        rows = await self._database.rows(select(_canaries))
        return {
            row.peer: Canary(row.peer, row.nonce is not None, row.asked_at, row.since, row.returned_at, row.round_trip)
            for row in rows
        }

    async def ask(self, peer: str, nonce: bytes, every: float, limit: float) -> bool:
        """Whether the caller is to ask this peer now, with this nonce, which replaces the previous one.

        False if a relay has asked within `every` seconds. If none has within `limit`, asking starts over. Raises
        StoreUnavailable.
        """
        now, asked_at, since = self.clock(), _canaries.c.asked_at, _canaries.c.since
        paused = or_(asked_at < now - limit, since > now)
        # One in the future was written by a clock that was set back since.
        due = or_(asked_at <= now - every, asked_at > now + every)
        values = {"nonce": nonce, "asked_at": now, "since": case((paused, now), else_=since)}
        return await self._changed(peer, due, values) is not None

    async def returned(self, peer: str, nonce: bytes, at: float) -> float | None:
        """The round trip, in seconds, of a receipt that arrived `at`; None unless it matches.

        Its nonce must be that of the last question to this peer, not yet answered. Raises StoreUnavailable.
        """
        trip = at - _canaries.c.asked_at
        values = {"nonce": None, "returned_at": at, "since": at, "round_trip": case((trip > 0, trip), else_=0.0)}
        return await self._changed(peer, _canaries.c.nonce == nonce, values)

    async def may_answer(self, peer: str, every: float) -> bool:
        """Whether the caller may send a receipt to this peer: none was sent within `every` seconds.

        Raises StoreUnavailable.
        """
        now, answered_at = self.clock(), _canaries.c.answered_at
        free = or_(answered_at <= now - every, answered_at > now + every)
        return await self._changed(peer, free, {"answered_at": now}) is not None

    @to_its_end
    async def _changed(self, peer: str, where: ColumnElement[bool], values: Mapping[str, object]) -> float | None:
        """The round trip in the peer's row (0 for none) if the row was changed, else None."""
        first = {"peer": peer, "asked_at": 0.0, "since": 0.0, "answered_at": 0.0}
        put = self._database.insert(_canaries).values(first).on_conflict_do_nothing()
        change = update(_canaries).where(_canaries.c.peer == peer, where).values(values)

        def write(connection: Connection) -> float | None:
            connection.execute(put)
            changed = connection.execute(change.returning(_canaries.c.round_trip)).one_or_none()
            return None if changed is None else changed.round_trip or 0.0

        return await self._database.writing(write)
