"""Rate limits: token buckets in bounded memory, shared by all processes of a site.
Standard: RFC 6409 6.3 leaves limits to the site.

Nothing waits for the store: each process keeps its own buckets and shares them in bulk every EXCHANGE_S. If the store
cannot be written, they are shared later. Several processes may together exceed a rate by what comes within EXCHANGE_S,
and a kill loses as much. They exceed that of failed logins also by attempts under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import structlog

from relay.errors import RelayError
from relay.store.rate_limits import ROWS_AT_ONCE, RateLimits, Spending

log = structlog.get_logger(__name__)

EXCHANGE_S = 2.0

MAX_ENTRIES = 20_000
"""Maximum number of tracked clients; the least recently seen is forgotten first."""
HOUR_S = 3600.0
SEEN_S = 30 * 86400.0
"""Time for which other processes remember a name, in seconds; it is renewed while in use."""
RENEW_S = 86400.0
ROUNDING = 1e-6


class HourlyRate:
    """A token bucket for each name, of `per_hour` tokens, which refills steadily.

    `spendings` are shared with other processes, and theirs are added by `learn`.
    """

    def __init__(
        self,
        per_hour: int,
        kind: str = "",
        *,
        key: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """`kind` separates its names from those of other rates; `key` hashes them; `clock` is in seconds."""
        self.kind = kind
        self._per_hour = per_hour
        self._key = key
        self._clock = clock
        self._max_entries = max_entries
        self._taken: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._unshared: OrderedDict[bytes, int] = OrderedDict()

    def take(self, name: str) -> bool:
        """Takes a token; returns whether one was left."""
        place = named(self._key, self.kind, name)
        taken, now = self._now(place)
        if taken + 1 > self._per_hour + ROUNDING:
            return False
        self._put(place, taken + 1, now)
        self._note(place, 1)
        return True

    def left(self, name: str) -> int:
        """The number of whole tokens left."""
        taken, _ = self._now(named(self._key, self.kind, name))
        return int(self._per_hour + ROUNDING - taken)

    def give_back(self, name: str) -> None:
        """Undoes one `take`."""
        place = named(self._key, self.kind, name)
        taken, now = self._now(place)
        self._put(place, max(taken - 1, 0.0), now)
        self._note(place, -1)

    def spendings(self) -> list[Spending]:
        """The tokens taken here since the last call; `unshared` returns those that could not be stored."""
        taken, self._unshared = self._unshared, OrderedDict()
        each = HOUR_S / self._per_hour
        return [Spending(self.kind, place, number * each) for place, number in taken.items() if number]

    def unshared(self, spending: Spending) -> None:
        """Returns what could not be stored to the next `spendings`."""
        self._note(spending.name, round(spending.seconds * self._per_hour / HOUR_S))

    def learn(self, spending: Spending) -> None:
        """Sets the bucket to the total of all processes, given as seconds until it is full again."""
        taken = min(spending.seconds * self._per_hour / HOUR_S, float(self._per_hour))
        self._put(spending.name, max(taken + self._unshared.get(spending.name, 0), 0.0), self._clock())

    def __len__(self) -> int:
        return len(self._taken)

    def _now(self, place: bytes) -> tuple[float, float]:
        now = self._clock()
        taken, when = self._taken.get(place, (0.0, now))
        return max(taken - (now - when) * self._per_hour / HOUR_S, 0.0), now

    def _put(self, place: bytes, taken: float, now: float) -> None:
        if taken <= 0:
            self._taken.pop(place, None)  # full: as if never used
            return
        self._taken[place] = taken, now
        self._taken.move_to_end(place)
        while len(self._taken) > self._max_entries:
            self._taken.popitem(last=False)

    def _note(self, place: bytes, number: int) -> None:
        self._unshared[place] = self._unshared.get(place, 0) + number
        if not self._unshared[place]:
            del self._unshared[place]
        while len(self._unshared) > self._max_entries:
            self._unshared.popitem(last=False)


class Seen:
    """A least-recently-used set of names, shared with other processes."""

    def __init__(
        self,
        kind: str = "",
        *,
        key: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """As for HourlyRate."""
        self.kind = kind
        self._key = key
        self._clock = clock
        self._max_entries = max_entries
        self._names: OrderedDict[bytes, float] = OrderedDict()
        self._unshared: dict[bytes, None] = {}

    def add(self, name: str) -> None:
        """Adds a name; drops the least recently used one if there are too many."""
        place, now = named(self._key, self.kind, name), self._clock()
        if now - self._names.get(place, -math.inf) > RENEW_S:
            self._put(place, now)
            self._unshared[place] = None
        self._names.move_to_end(place)

    def spendings(self) -> list[Spending]:
        """As for HourlyRate."""
        places, self._unshared = self._unshared, {}
        return [Spending(self.kind, place, SEEN_S, anew=True) for place in places]

    def unshared(self, spending: Spending) -> None:
        """As for HourlyRate."""
        if spending.name in self._names:
            self._unshared[spending.name] = None

    def learn(self, spending: Spending) -> None:
        """Adds a name of another process."""
        if spending.seconds > 0 and spending.name not in self._names:
            self._put(spending.name, self._clock())

    def __contains__(self, name: str) -> bool:
        place = named(self._key, self.kind, name)
        if place not in self._names:
            return False
        self._names.move_to_end(place)
        return True

    def _put(self, place: bytes, now: float) -> None:
        self._names[place] = now
        if len(self._names) > self._max_entries:
            forgotten, _ = self._names.popitem(last=False)
            self._unshared.pop(forgotten, None)


def named(key: bytes, kind: str, name: str) -> bytes:
    """The keyed hash of a name for the store (16 octets); unreadable without the site's secret."""
    text = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, key=key, digest_size=16).digest()


class SharedRates:
    """All rates of one process, by kind."""

    def __init__(self, store: RateLimits, rates: Sequence[HourlyRate | Seen]) -> None:
        self._store = store
        self._rates = {rate.kind: rate for rate in rates}
        self._turn = asyncio.Lock()

    async def exchange(self) -> None:
        """Shares our spendings and adds those of others. Raises StoreUnavailable, without losing any."""
        # If cancelled, it would not know what was stored, and would add it twice.
        await asyncio.shield(self._store.later(self._exchange()))

    async def _exchange(self) -> None:
        async with self._turn:
            spendings = [spending for rate in self._rates.values() for spending in rate.spendings()]
            try:
                while spendings:
                    await self._store.add(spendings[-ROWS_AT_ONCE:])
                    del spendings[-ROWS_AT_ONCE:]
            finally:
                for spending in spendings:
                    self._rates[spending.kind].unshared(spending)
            async for some in self._store.changed():
                for spending in some:
                    if (rate := self._rates.get(spending.kind)) is not None:
                        rate.learn(spending)

    async def keep_up(self) -> None:
        """Exchanges every EXCHANGE_S seconds until cancelled."""
        logged = False
        while True:
            await asyncio.sleep(EXCHANGE_S)
            try:
                await self.exchange()
            except RelayError as error:
                if not logged:
                    log.warning("rates_not_shared", cause=str(error))
                logged = True
            else:
                logged = False

    async def close(self) -> None:
        """Shares the last spendings; a failure is logged."""
        try:
            await self.exchange()
        except RelayError as error:
            log.warning("rates_not_shared", cause=str(error))
