"""How often somebody may do something: token buckets for users and client addresses, in bounded memory.
Standard: RFC 6409 6.3 leaves limits to the site; IPv6 clients are counted by their /64 (RFC 4291, 2.5.4).
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

MAX_ENTRIES = 20_000
"""Whoever was seen least recently is forgotten beyond this number."""
HOUR_S = 3600.0


class HourlyRate:
    """At most `per_hour` of something for each name, all at once or spread: a bucket that refills steadily."""

    def __init__(
        self, per_hour: int, *, clock: Callable[[], float] = time.monotonic, max_entries: int = MAX_ENTRIES
    ) -> None:
        """`clock` gives seconds."""
        self._per_hour = per_hour
        self._clock = clock
        self._max_entries = max_entries
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, name: str) -> bool:
        """Takes one, and says whether there was one left."""
        left, now = self._now(name)
        if left < 1:
            return False
        self._put(name, left - 1, now)
        return True

    def give_back(self, name: str) -> None:
        """As if it had not been taken."""
        left, now = self._now(name)
        self._put(name, min(left + 1, float(self._per_hour)), now)

    def __len__(self) -> int:
        return len(self._left)

    def _now(self, name: str) -> tuple[float, float]:
        now = self._clock()
        left, when = self._left.get(name, (float(self._per_hour), now))
        return min(left + (now - when) * self._per_hour / HOUR_S, float(self._per_hour)), now

    def _put(self, name: str, left: float, now: float) -> None:
        if left >= self._per_hour:
            self._left.pop(name, None)  # as good as never seen
            return
        self._left[name] = left, now
        self._left.move_to_end(name)
        while len(self._left) > self._max_entries:
            self._left.popitem(last=False)


class Seen:
    """Names that were added, the most recently added or asked for of them."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._names: OrderedDict[str, None] = OrderedDict()

    def add(self, name: str) -> None:
        """Remembers it, and forgets the one that was not asked for the longest where there are too many."""
        self._names[name] = None
        self._names.move_to_end(name)
        if len(self._names) > self._max_entries:
            self._names.popitem(last=False)

    def __contains__(self, name: str) -> bool:
        if name not in self._names:
            return False
        self._names.move_to_end(name)
        return True


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
