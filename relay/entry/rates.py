"""How often somebody may do something: token buckets for users and client addresses, in bounded memory.
Standard: RFC 6409 6.3 leaves limits to the site; IPv6 clients are counted by their /64 (RFC 4291, 2.5.4).
"""

from __future__ import annotations

import hashlib
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from relay.store import Spending

MAX_ENTRIES = 20_000
"""Whoever was seen least recently is forgotten beyond this number."""
HOUR_S = 3600.0
SEEN_S = 30 * 86400.0
"""So long others are told to remember what was seen; while it goes on, they are told again."""
TELL_AGAIN_S = 86400.0
ROUNDING = 1e-6


class HourlyRate:
    """At most `per_hour` of something for each name, all at once or spread: a bucket that refills steadily.

    What is taken here can be told to other processes (`spendings`), and what they have taken counts too (`learn`).
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
        """`kind` tells its names from those of other rates, `key` makes them unreadable; `clock` gives seconds."""
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
        """As if it had not been taken."""
        place = named(self._key, self.kind, name)
        taken, now = self._now(place)
        self._put(place, max(taken - 1, 0.0), now)
        self._tell(place, -1)

    def spendings(self) -> list[Spending]:
        """What was taken here since this was asked last; it has to be told again (`untold`) where it is not heard."""
        told, self._untold = self._untold, OrderedDict()
        each = HOUR_S / self._per_hour
        return [Spending(self.kind, place, number * each) for place, number in told.items() if number]

    def untold(self, spending: Spending) -> None:
        """It comes with the next `spendings`."""
        self._tell(spending.name, round(spending.seconds * self._per_hour / HOUR_S))

    def learn(self, spending: Spending) -> None:
        """All processes together have taken so much that it is forgotten only after these seconds."""
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
        told, self._untold = self._untold, {}
        return [Spending(self.kind, place, SEEN_S, anew=True) for place in told]

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


@lru_cache(maxsize=1024)
def network_of(address: str) -> str:
    """What one client is counted by: the IPv4 address, the /64 of an IPv6 one, the text of anything else."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
