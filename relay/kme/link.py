"""The simulated QKD link: a pool of key bits that fills with time, and the fate of each key.
Standard: ETSI GS QKD 014 V1.1.1, clauses 5 (a key leaves the pool when delivered) and 6.1 (limits).

Pure: no I/O, no threads, no sleeping. The clock is injected; key bytes come from the operating system's
random generator when issued, so nothing here is quantum.
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
    """The pool has too few key bits; `stored` is the number of default-sized keys left."""

    def __init__(self, stored: int) -> None:
        super().__init__(f"{stored} keys stored")
        self.stored = stored


class KeysNotFound(Exception):
    """Unknown, not yet arrived, already delivered, expired, or another master's; `key_ids` lists them."""

    def __init__(self, key_ids: list[str]) -> None:
        super().__init__(f"{len(key_ids)} keys not found")
        self.key_ids = key_ids


class NotNamedAsSlave(Exception):
    """The asking SAE was not named as a slave of one of the keys."""


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """The properties of the simulated link; the defaults are those of a good metropolitan link.

    Sizes are in bits, times in seconds. Raises ConfigError for contradictory values.
    """

    key_rate: float = 100_000
    """Fresh key bits a second, for both directions together."""
    stored_key_limit: int = 10_000
    """Maximum number of keys of `key_size` in the pool (status: max_key_count)."""
    starting_fill: float = 1.0
    """Fill level of the pool at the start, 0 to 1."""
    lag: float = 0.0
    """Time until a key issued at one KME is known at the other."""
    lifetime: float = 600.0
    """Time after which a key that was not delivered is destroyed."""
    key_size: int = 256
    """Default size of a key."""
    min_key_size: int = 64
    max_key_size: int = 65_536
    max_key_per_request: int = 128
    """Maximum number of keys in one enc_keys, and of key_IDs in one dec_keys."""
    max_sae_id_count: int = 2
    """Maximum number of additional_slave_SAE_IDs in one enc_keys (status: max_SAE_ID_count)."""
    drops_undelivered: bool = False
    """A misbehaviour of some KMEs: unfetched keys are dropped when their master draws more."""
    remembered: int = 20_000
    """Maximum number of keys whose fate is recorded; the oldest are dropped first."""

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
    """A key issued to a master, and its fate; times are the link's, in seconds."""

    key: Key
    kme: str
    """The KME that issued it."""
    master: str
    slaves: frozenset[str]
    issued: float
    waiting: set[str]
    """The slaves that may still fetch it."""
    given: dict[str, float] = field(default_factory=dict)
    """Time at which each slave fetched it."""
    destroyed: str = ""
    """Why it can no longer be fetched: `expired` or `dropped`."""
    lost: str = ""
    """Why it may not have reached the client. `client left`: before the answer, or without a further request.
    `spent`: on a wrong answer.
    """


class SimulatedLink:
    """Keys for both directions of one link, for both of its KMEs.

    Both directions share one pool, as they share one fibre. `clock` gives monotonic seconds.
    """

    def __init__(self, settings: LinkSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.keys: dict[str, IssuedKey] = {}
        """Issued keys by key_ID, at most `settings.remembered`."""
        self.waiting: dict[str, IssuedKey] = {}
        """Keys that a slave may still fetch, in the order of issue and expiry."""
        self.drops_undelivered = settings.drops_undelivered
        """As in LinkSettings; may be changed at any time."""
        self.lag_asks = 0
        """Number of lookups for which a newly issued key is not found, besides `settings.lag`."""
        self.not_found_for: Counter[str] = Counter()
        """Remaining failed lookups by key_ID."""
        self._clock = clock
        self._capacity = settings.stored_key_limit * settings.key_size
        self._bits = settings.starting_fill * self._capacity
        self._seen = clock()
        self._issued: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()

    @property
    def bits(self) -> float:
        """The key bits in the pool; tests may set it."""
        self._catch_up()
        return self._bits

    @bits.setter
    def bits(self, bits: float) -> None:
        self._catch_up()
        self._bits = bits

    @property
    def stored_key_count(self) -> int:
        """The number of keys of the default size that could be issued now."""
        return int(self.bits // self.settings.key_size)

    @property
    def issued(self) -> Counter[str]:
        """Keys issued, by issuing KME, counted once for each slave that may fetch them.

        `issued` is always the sum of `delivered`, `expired` and the keys still waiting for their slaves.
        """
        return self._issued.copy()

    @property
    def delivered(self) -> Counter[str]:
        """Keys fetched by slaves at the other side, by issuing KME."""
        return self._delivered.copy()

    @property
    def expired(self) -> Counter[str]:
        """Keys destroyed, by issuing KME, counted once for each slave that had not fetched them."""
        self._catch_up()
        return self._expired.copy()

    def issue(self, *, kme: str, master: str, slaves: Iterable[str], number: int, size: int) -> list[Key]:
        """Issues `number` fresh keys of `size` bits from the pool, for `master` at `kme`.

        Each of `slaves` may fetch each key once, from `lag` seconds on, until `lifetime` has passed.
        Raises PoolTooLow, and then issues nothing.
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
        """Delivers the keys issued to `master` under these IDs, in this order; `slave` gets each once.

        Without a `slave` the owner is not checked, and nobody gets them again. All or none: raises NotNamedAsSlave or
        KeysNotFound, and then delivers nothing.
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
        """Records that the answer with these keys did not reach the client (IssuedKey.lost lists each `why`)."""
        for key_id in key_ids:
            if issued := self.keys.get(key_id):
                issued.lost = why

    def take_back(self, key_ids: Iterable[str]) -> None:
        """Marks these keys as not fetched yet."""
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
        """Advances the link to the present: adds bits, destroys expired keys. Returns the time."""
        now = self._clock()
        self._bits = min(self._capacity, self._bits + (now - self._seen) * self.settings.key_rate)
        self._seen = now
        while self.waiting and now - (oldest := next(iter(self.waiting.values()))).issued >= self.settings.lifetime:
            self._destroy(oldest, "expired")
        return now
