"""How often somebody may do something: token buckets in bounded memory, which all processes of a site share.
Standard: RFC 6409 6.3 leaves limits to the site.

Nothing waits for the store: each process keeps its own rates, and shares them every few seconds in bulk. While the
store cannot be written each keeps its own count, and shares it later. What two processes allow beyond a rate, and what
a kill forgets, is what comes within EXCHANGE_S.
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
"""Time for which other processes remember a report, in seconds; while it goes on, it is repeated."""
TELL_AGAIN_S = 86400.0
ROUNDING = 1e-6


class HourlyRate:
    """At most `per_hour` of something for each name, all at once or spread: a bucket that refills steadily.

    What is taken here can be shared with other processes (`spendings`), and what they have taken counts too (`learn`).
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
        """`kind` separates its names from those of other rates, `key` makes them unreadable; `clock` gives seconds."""
        self.kind = kind
        self._per_hour = per_hour
        self._key = key
        self._clock = clock
        self._max_entries = max_entries
        self._taken: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        self._untold: OrderedDict[bytes, int] = OrderedDict()

    def take(self, name: str) -> bool:
        """Takes one, and says whether there was one left."""
        place = named(self._key, self.kind, name)
        taken, now = self._now(place)
        if taken + 1 > self._per_hour + ROUNDING:
            return False
        self._put(place, taken + 1, now)
        self._tell(place, 1)
        return True

    def give_back(self, name: str) -> None:
        """Undoes one `take`."""
        place = named(self._key, self.kind, name)
        taken, now = self._now(place)
        self._put(place, max(taken - 1, 0.0), now)
        self._tell(place, -1)

    def spendings(self) -> list[Spending]:
        """What was taken here since this was asked last; it goes back (`untold`) where it was not stored."""
        unshared, self._untold = self._untold, OrderedDict()
        each = HOUR_S / self._per_hour
        return [Spending(self.kind, place, number * each) for place, number in unshared.items() if number]

    def untold(self, spending: Spending) -> None:
        """It comes with the next `spendings`."""
        self._tell(spending.name, round(spending.seconds * self._per_hour / HOUR_S))

    def learn(self, spending: Spending) -> None:
        """What all processes together have taken, as the seconds until it is forgotten."""
        taken = min(spending.seconds * self._per_hour / HOUR_S, float(self._per_hour))
        self._put(spending.name, max(taken + self._untold.get(spending.name, 0), 0.0), self._clock())

    def __len__(self) -> int:
        return len(self._taken)

    def _now(self, place: bytes) -> tuple[float, float]:
        now = self._clock()
        taken, when = self._taken.get(place, (0.0, now))
        return max(taken - (now - when) * self._per_hour / HOUR_S, 0.0), now

    def _put(self, place: bytes, taken: float, now: float) -> None:
        if taken <= 0:
            self._taken.pop(place, None)  # as good as never seen
            return
        self._taken[place] = taken, now
        self._taken.move_to_end(place)
        while len(self._taken) > self._max_entries:
            self._taken.popitem(last=False)

    def _tell(self, place: bytes, number: int) -> None:
        self._untold[place] = self._untold.get(place, 0) + number
        if not self._untold[place]:
            del self._untold[place]
        while len(self._untold) > self._max_entries:
            self._untold.popitem(last=False)


class Seen:
    """Names that were added, the most recently added or asked for of them; other processes hear of them too."""

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
        self._untold: dict[bytes, None] = {}

    def add(self, name: str) -> None:
        """Remembers it, and forgets the one that was not asked for the longest where there are too many."""
        place, now = named(self._key, self.kind, name), self._clock()
        if now - self._names.get(place, -math.inf) > TELL_AGAIN_S:
            self._put(place, now)
            self._untold[place] = None
        self._names.move_to_end(place)

    def spendings(self) -> list[Spending]:
        """As for HourlyRate."""
        unshared, self._untold = self._untold, {}
        return [Spending(self.kind, place, SEEN_S, anew=True) for place in unshared]

    def untold(self, spending: Spending) -> None:
        """As for HourlyRate."""
        if spending.name in self._names:
            self._untold[spending.name] = None

    def learn(self, spending: Spending) -> None:
        """Another process has added it."""
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
            self._untold.pop(forgotten, None)


def named(key: bytes, kind: str, name: str) -> bytes:
    """What a name is called outside this process (16 octets): nobody can read it without the site's secret."""
    text = f"{kind}\0{name}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, key=key, digest_size=16).digest()


class SharedRates:
    """The rates of one process, each of another kind."""

    def __init__(self, store: RateLimits, rates: Sequence[HourlyRate | Seen]) -> None:
        self._store = store
        self._rates = {rate.kind: rate for rate in rates}
        self._turn = asyncio.Lock()

    async def exchange(self) -> None:
        """Shares what was taken here and learns what others have taken. Raises StoreUnavailable, and loses nothing."""
        # Broken off it would not know what the store has, and add it twice.
        await asyncio.shield(self._store.later(self._exchange()))

    async def _exchange(self) -> None:
        async with self._turn:
            untold = [spending for rate in self._rates.values() for spending in rate.spendings()]
            try:
                while untold:
                    await self._store.add(untold[-ROWS_AT_ONCE:])
                    del untold[-ROWS_AT_ONCE:]
            finally:
                for spending in untold:
                    self._rates[spending.kind].untold(spending)
            async for some in self._store.changed():
                for spending in some:
                    if (rate := self._rates.get(spending.kind)) is not None:
                        rate.learn(spending)

    async def keep_up(self) -> None:
        """Exchanges every few seconds, until it is cancelled."""
        said = False
        while True:
            await asyncio.sleep(EXCHANGE_S)
            try:
                await self.exchange()
            except RelayError as error:
                if not said:
                    log.warning("rates_not_shared", cause=str(error))
                said = True
            else:
                said = False

    async def close(self) -> None:
        """Shares what is left to share, where that is possible."""
        try:
            await self.exchange()
        except RelayError as error:
            log.warning("rates_not_shared", cause=str(error))
