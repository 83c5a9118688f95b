"""The simulated QKD link: a pool of key bits that fills with time, and the keys on their way to the slaves.
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
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Issued:
    """A key that the master has and that at least one slave has not fetched yet."""

    key: Key
    kme: str
    master: str
    slaves: frozenset[str]
    waiting: set[str]
    arrives: float
    expires: float


class SimulatedLink:
    """Keys for both directions of one link.

    There is one pool, as there is one fibre: what one direction takes, the other lacks. `clock` gives
    seconds that never go back.
    """

    def __init__(self, settings: LinkSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self._clock = clock
        self._capacity = settings.stored_key_limit * settings.key_size
        self._bits = settings.starting_fill * self._capacity
        self._seen = clock()
        self._keys: dict[str, _Issued] = {}  # in the order of issue, which is the order of expiry
        self._issued: Counter[str] = Counter()
        self._delivered: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()

    @property
    def stored_key_count(self) -> int:
        """How many keys of the default size could be issued now."""
        self._catch_up()
        return int(self._bits // self.settings.key_size)

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
        if self.settings.drops_undelivered:
            self._drop(master)
        self._bits -= number * size
        named = frozenset(slaves)
        keys = [Key(str(uuid.uuid4()), secrets.token_bytes(size // 8)) for _ in range(number)]
        for key in keys:
            self._keys[key.key_ID] = _Issued(
                key=key,
                kme=kme,
                master=master,
                slaves=named,
                waiting=set(named),
                arrives=now + self.settings.lag,
                expires=now + self.settings.lifetime,
            )
        self._issued[kme] += number * len(named)
        return keys

    def deliver(self, key_ids: Sequence[str], *, master: str, slave: str) -> list[Key]:
        """The keys that `master` got under these IDs, in this order; `slave` will not get them again.

        All or none: raises NotNamedAsSlave or KeysNotFound, and then every key stays where it was.
        """
        now = self._catch_up()
        arrived = {
            key_id: issued
            for key_id in key_ids
            if (issued := self._keys.get(key_id)) is not None and issued.arrives <= now
        }
        if any(slave not in issued.slaves for issued in arrived.values()):
            raise NotNamedAsSlave
        ready = {k: i for k, i in arrived.items() if i.master == master and slave in i.waiting}
        if missing := [key_id for key_id in key_ids if key_id not in ready]:
            raise KeysNotFound(missing)
        for key_id, issued in ready.items():
            issued.waiting.discard(slave)
            self._delivered[issued.kme] += 1
            if not issued.waiting:
                del self._keys[key_id]
        return [ready[key_id].key for key_id in key_ids]

    def _drop(self, master: str) -> None:
        for key_id, issued in list(self._keys.items()):
            if issued.master == master:
                self._expired[issued.kme] += len(issued.waiting)
                del self._keys[key_id]

    def _catch_up(self) -> float:
        """Let the time since the last call happen: bits arrive, old keys are destroyed. Returns now."""
        now = self._clock()
        self._bits = min(self._capacity, self._bits + (now - self._seen) * self.settings.key_rate)
        self._seen = now
        while self._keys and (oldest := next(iter(self._keys.values()))).expires <= now:
            self._expired[oldest.kme] += len(oldest.waiting)
            del self._keys[oldest.key.key_ID]
        return now
