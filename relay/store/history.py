"""History of mails and keys for some weeks: sums and minimums of five minutes, and of an hour.
Each mail is counted once, even if a process is killed; the number of rows is bounded.

All relays of a site add to the same rows. How much of a relay's counts has been added is written in the same
transaction, under the name of its board (relay/counting/board.py). The board lives as long as the relay.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from sqlalchemy import Column, Connection, Double, Integer, String, Table, Text, delete, select, text

from relay.store.database import Database, metadata, to_its_end

KEPT: Mapping[int, int] = {300: 576, 3600: 1008}
"""Length of a stretch, in seconds, and the number kept: two days, and six weeks."""
MOST_POOLS = 100
"""Maximum number of pairs of KME and peer. A row takes about 60 bytes for each, and some hundred for mails."""
BOARDS = 32
"""Maximum number of relays kept, the most recent writers."""
LOCK = 0x51754D48
"""The PostgreSQL advisory lock for adding to shared rows."""

Mails = Mapping[tuple[str, ...], float]
"""Number of mails by direction, level and outcome."""
Pools = Mapping[tuple[str, ...], tuple[float, float]]
"""By KME and peer: number of keys, and seconds until they run out (inf: never)."""

_stretches = Table(
    "history",
    metadata,
    Column("seconds", Integer, primary_key=True, autoincrement=False),
    Column("at", Integer, primary_key=True, autoincrement=False),
    Column("told", Text, nullable=False),
)
"""`at` is when the stretch began, in seconds since 1970."""
_boards = Table(
    "history_boards",
    metadata,
    Column("board", String(32), primary_key=True),
    Column("changed", Double, nullable=False),
    Column("told", Text, nullable=False),
)


@dataclass(frozen=True, slots=True)
class Stretch:
    """Data of `seconds` from `at` on: sums of mails, minimums of keys."""

    seconds: int
    at: int
    mails: Mails = field(default_factory=dict)
    pools: Pools = field(default_factory=dict)

    def with_more(self, mails: Mails, pools: Pools) -> Stretch:
        """This stretch with more data added."""
        lowest = dict(self.pools)
        for pool, (keys, empty) in pools.items():
            before = lowest.get(pool, (math.inf, math.inf))
            if pool in lowest or len(lowest) < MOST_POOLS:
                lowest[pool] = min(keys, before[0]), min(empty, before[1])
        return Stretch(self.seconds, self.at, _sums(self.mails, mails), lowest)


class History:
    """The history of one store."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since 1970."""
        self._database = database
        self._clock = clock
        self.trouble: str | None = None
        """Why the last write failed, or ""; None before the first one."""

    async def read(self) -> list[Stretch]:
        """All stretches. Raises StoreUnavailable."""
        return [_stretch(*row) for row in await self._database.rows(select(_stretches))]

    @to_its_end
    async def add(self, board: str, counted: Mails, pools: Pools) -> list[Stretch]:
        """Adds what this board has `counted` so far, and its current keys.

        Returns the stretches that this or another relay may have changed recently. Raises StoreUnavailable.
        """
        now = self._clock()

        def add(connection: Connection) -> list[Stretch]:
            if not self._database.is_sqlite:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            stored = connection.scalar(select(_boards.c.told).where(_boards.c.board == board))
            before = dict(_mails(stored)) if stored else {}
            new = {each: more for each, number in counted.items() if (more := number - before.get(each, 0.0)) > 0}
            changed = [stretch for seconds in KEPT for stretch in self._added(connection, seconds, now, new, pools)]
            totals = {"told": json.dumps(_listed(_sums(before, new))), "changed": now}
            self._put(connection, _boards, {"board": board}, totals)
            last = select(_boards.c.board).order_by(_boards.c.changed.desc()).limit(BOARDS)
            connection.execute(delete(_boards).where(_boards.c.board.not_in(last)))
            return changed

        return await self._database.writing(add)

    def _added(self, connection: Connection, seconds: int, now: float, mails: Mails, pools: Pools) -> list[Stretch]:
        at = int(now // seconds * seconds)
        table = _stretches.c
        lately = select(_stretches).where(table.seconds == seconds, table.at.in_((at - seconds, at)))
        stretches = {row.at: _stretch(*row) for row in connection.execute(lately)}
        stretches[at] = stretches.get(at, Stretch(seconds, at)).with_more(mails, pools)
        self._put(connection, _stretches, {"seconds": seconds, "at": at}, {"told": _as_text(stretches[at])})
        # Limited by number and not by age: a clock that is temporarily ahead must not delete history.
        kept = select(table.at).where(table.seconds == seconds).order_by(table.at.desc()).limit(KEPT[seconds])
        connection.execute(delete(_stretches).where(table.seconds == seconds, table.at.not_in(kept)))
        return list(stretches.values())

    def _put(
        self, connection: Connection, table: Table, key: Mapping[str, object], values: Mapping[str, object]
    ) -> None:
        row = self._database.insert(table).values(**key, **values)
        connection.execute(row.on_conflict_do_update(index_elements=list(key), set_=values))


def _sums(one: Mails, other: Mails) -> dict[tuple[str, ...], float]:
    return {
        each: one.get(each, 0.0) + other.get(each, 0.0) for each in [*one, *(each for each in other if each not in one)]
    }


def _listed(mails: Mails) -> list[list[object]]:
    return [[*labels, number] for labels, number in mails.items()]


def _mails(text: str) -> Iterator[tuple[tuple[str, ...], float]]:
    for *labels, number in json.loads(text):
        yield tuple(labels), number


def _as_text(stretch: Stretch) -> str:
    pools = [[*pool, *(None if math.isinf(each) else each for each in low)] for pool, low in stretch.pools.items()]
    return json.dumps({"mails": _listed(stretch.mails), "pools": pools})


def _stretch(seconds: int, at: int, text: str) -> Stretch:
    counts = json.loads(text)
    mails = {tuple(labels): number for *labels, number in counts["mails"]}
    pools = {
        tuple(pool): (math.inf if keys is None else keys, math.inf if empty is None else empty)
        for *pool, keys, empty in counts["pools"]
    }
    return Stretch(seconds, at, mails, pools)
