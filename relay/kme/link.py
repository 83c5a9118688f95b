"""The simulated QKD link: a pool of key bits that fills with time, the keys in it, and what became of each.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5 (a key leaves the pool when delivered) and 6.1 (limits).

Pure: no I/O, no threads, no sleeping. The clock is given; key bytes come from the operating system's
random generator at the moment of issue, so there is nothing quantum here.
"""

from __future__ import annotations

import math
import secrets
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from relay.errors import ConfigError
from relay.keys.types import Key

NOT_QUANTUM = "development key server: keys come from the operating system's random generator, not from a quantum link"


class PoolTooLow(Exception):
    """The pool has fewer key bits than were asked for; `stored` is how many default-sized keys it has."""

    def __init__(self, stored: int) -> None:
        super().__init__(f"{stored} keys stored")
        self.stored = stored


class KeysNotFound(Exception):
    """Unknown, not yet arrived, already delivered, expired, or another master's; `key_ids` says which."""

    def __init__(self, key_ids: list[str]) -> None:
        super().__init__(f"{len(key_ids)} keys not found")
        self.key_ids = key_ids


class NotNamedAsSlave(Exception):
    """The asking SAE was not named as a slave of one of the keys."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What the simulated link can do; the defaults are those of a good metropolitan link.

    Sizes are in bits, times in seconds. Raises ConfigError where the values contradict each other.
    """

    key_rate: float = 100_000
    """Fresh key bits a second, for both directions together."""
    stored_key_limit: int = 10_000
    """Most keys of `key_size` that the pool holds (status: max_key_count)."""
    starting_fill: float = 1.0
    """How full the pool is at the start, 0 to 1."""
    lag: float = 0.0
    """Time until a key issued at one KME is known at the other."""
    lifetime: float = 600.0
    """Time after which a key that was not delivered is destroyed."""
    key_size: int = 256
    """Default size of a key."""
    min_key_size: int = 64
    max_key_size: int = 65_536
    max_key_per_request: int = 128
    """Most keys in one enc_keys, and most key_IDs in one dec_keys."""
    max_sae_id_count: int = 2
    """Most additional_slave_SAE_IDs in one enc_keys (status: max_SAE_ID_count)."""
    drops_undelivered: bool = False
    """A misbehaviour of some KMEs: keys that a slave has not fetched are gone when their master asks for more."""
    remembered: int = 20_000
    """Maximum number of keys whose fate is remembered; the oldest are forgotten first."""

    def __post_init__(self) -> None:
        sizes = (self.min_key_size, self.key_size, self.max_key_size)
        rules = {
            "key sizes shall be multiples of 8 with 0 < min_key_size <= key_size <= max_key_size": (
                all(size % 8 == 0 for size in sizes) and 0 < sizes[0] <= sizes[1] <= sizes[2]
            ),
            "key_rate shall be 0 or more bits a second": 0 <= self.key_rate < math.inf,
            "stored_key_limit shall be 1 or more keys": self.stored_key_limit >= 1,
            "starting_fill shall be from 0 to 1": 0 <= self.starting_fill <= 1,
            "lag and lifetime shall be seconds with 0 <= lag < lifetime": 0 <= self.lag < self.lifetime,
            "max_key_per_request shall be 1 or more keys": self.max_key_per_request >= 1,
            "max_sae_id_count shall be 0 or more": self.max_sae_id_count >= 0,
        }
        if broken := [f"simulated link: {rule}" for rule, kept in rules.items() if not kept]:
            raise ConfigError(broken)


@dataclass(slots=True, eq=False)
class IssuedKey:
    """A key that a master has got, and what became of it; times are the link's, in seconds."""

    key: Key
    kme: str
    """The KME that issued it."""
    master: str
    slaves: frozenset[str]
    issued: float
    waiting: set[str]
    """The slaves that may still fetch it."""
    given: dict[str, float] = field(default_factory=dict)
    """When each slave has fetched it."""
    destroyed: str = ""
    """Why nobody can fetch it any more though somebody should have: `expired` or `dropped`."""
    lost: str = ""
    """Why it may not have reached the one that asked for it. `client left`: before the answer, or with nothing asked
    after it. `spent`: on an answer that was not the right one.
    """


class SimulatedLink:
    """Keys for both directions of one link, for both of its KMEs.

    There is one pool, as there is one fibre: what one direction takes, the other lacks. `clock` gives
    seconds that never go back.
    """

    def __init__(self, settings: LinkSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.keys: dict[str, IssuedKey] = {}
        """All keys that were issued, by key_ID, as many as `settings.remembered`."""
        self.waiting: dict[str, IssuedKey] = {}
        """Those of which a slave may still come, in the order of issue, which is that of expiry."""
        self.drops_undelivered = settings.drops_undelivered
        """As in LinkSettings; may be changed at any time."""
        self.lag_asks = 0
        """How many times a key that is issued from now on is not found at first, besides `settings.lag`."""
        self.not_found_for: Counter[str] = Counter()
        """By key_ID: how many more times it is not found."""
        self._clock = clock
        self._capacity = settings.stored_key_limit * settings.key_size
        self._bits = settings.starting_fill * self._capacity
        self._seen = clock()
        self._issued: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()

    @property
    def bits(self) -> float:
        """How many key bits the pool has now; tests may set it."""
        self._catch_up()
        return self._bits

    @bits.setter
    def bits(self, bits: float) -> None:
        self._catch_up()
        self._bits = bits

    @property
    def stored_key_count(self) -> int:
        """How many keys of the default size could be issued now."""
        return int(self.bits // self.settings.key_size)

    @property
    def issued(self) -> Counter[str]:
        """By the ID of the issuing KME: keys issued, counted once for each slave that may fetch them.

        `issued` is always the sum of `delivered`, `expired` and what still waits for its slaves.
        """
        return self._issued.copy()

    @property
    def delivered(self) -> Counter[str]:
        """By the ID of the issuing KME: how often a slave fetched a key at the other side."""
        return self._delivered.copy()

    @property
    def expired(self) -> Counter[str]:
        """By the ID of the issuing KME: keys destroyed, counted once for each slave that had not come."""
        self._catch_up()
        return self._expired.copy()

    def issue(self, *, kme: str, master: str, slaves: Iterable[str], number: int, size: int) -> list[Key]:
        """Take `number` fresh keys of `size` bits out of the pool, for `master` at `kme`.

        Each of `slaves` may fetch each key once, from `lag` seconds on, until `lifetime` has passed.
        Raises PoolTooLow, and then takes nothing.
        """
        now = self._catch_up()
        if number * size > self._bits:
            raise PoolTooLow(self.stored_key_count)
        if self.drops_undelivered:
            for undelivered in [issued for issued in self.waiting.values() if issued.master == master]:
                self._destroy(undelivered, "dropped")
        self._bits -= number * size
        named = frozenset(slaves)
        keys = [Key(str(uuid.uuid4()), secrets.token_bytes(size // 8)) for _ in range(number)]
        for key in keys:
            self.keys[key.key_ID] = self.waiting[key.key_ID] = IssuedKey(key, kme, master, named, now, set(named))
            if self.lag_asks:
                self.not_found_for[key.key_ID] = self.lag_asks
        while len(self.keys) > self.settings.remembered:
            del self.keys[next(iter(self.keys))]
        self._issued[kme] += number * len(named)
        return keys

    def deliver(self, key_ids: Sequence[str], *, master: str, slave: str | None) -> list[Key]:
        """The keys that `master` got under these IDs, in this order; `slave` will not get them again.

        Without a `slave` it does not matter whose they are, and nobody gets them again.
        All or none: raises NotNamedAsSlave or KeysNotFound, and then every key stays where it was.
        """
        arrived_by = self._catch_up() - self.settings.lag
        found: dict[str, IssuedKey] = {}
        for key_id in key_ids:
            if key_id in self.not_found_for:
                self.not_found_for[key_id] -= 1
                if not self.not_found_for[key_id]:
                    del self.not_found_for[key_id]
            elif (issued := self.waiting.get(key_id)) is not None and issued.issued <= arrived_by:
                found[key_id] = issued
        if slave is not None:
            if any(slave not in issued.slaves for issued in found.values()):
                raise NotNamedAsSlave
            found = {
                key_id_: each for key_id_, each in found.items() if each.master == master and slave in each.waiting
            }
        if missing := [key_id for key_id in key_ids if key_id not in found]:
            raise KeysNotFound(missing)
        for key_id, issued in found.items():
            for taker in issued.waiting.copy() if slave is None else {slave}:
                issued.waiting.discard(taker)
                issued.given[taker] = self._seen
                self._delivered[issued.kme] += 1
            if not issued.waiting:
                del self.waiting[key_id]
        return [found[key_id].key for key_id in key_ids]

    def did_not_arrive(self, key_ids: Iterable[str], why: str) -> None:
        """Notes that the answer with these keys did not reach who asked (IssuedKey.lost says which `why` there are)."""
        for key_id in key_ids:
            if issued := self.keys.get(key_id):
                issued.lost = why

    def take_back(self, key_ids: Iterable[str]) -> None:
        """Of these it counts as if nobody had fetched them yet."""
        for key_id in key_ids:
            if (issued := self.keys.get(key_id)) and issued.given:
                self._delivered[issued.kme] -= len(issued.given)
                issued.waiting.update(issued.given)
                issued.given.clear()
                self.waiting[key_id] = issued

    def _destroy(self, issued: IssuedKey, why: str) -> None:
        issued.destroyed = why
        self._expired[issued.kme] += len(issued.waiting)
        del self.waiting[issued.key.key_ID]

    def _catch_up(self) -> float:
        """Let the time since the last call happen: bits arrive, old keys are destroyed. Returns now."""
        now = self._clock()
        self._bits = min(self._capacity, self._bits + (now - self._seen) * self.settings.key_rate)
        self._seen = now
        while self.waiting and now - (oldest := next(iter(self.waiting.values()))).issued >= self.settings.lifetime:
            self._destroy(oldest, "expired")
        return now
