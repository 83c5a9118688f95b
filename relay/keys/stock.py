"""The state of one KME's keys: those that are ready for each peer and size, who waits, and what the KME said last.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; pure, with an injected clock. Each key is popped once and overwritten as it goes.

A key waits here as a bytearray, which is overwritten when the key leaves, is burnt or expires. That is as
far as Python goes: the JSON it came in, and the `bytes` that a user gets, live until the collector takes them.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.characters import casefold
from relay.errors import KeyUnavailable, KMEExhausted, StoreUnavailable
from relay.keys.accounts import Accounts
from relay.keys.events import Complaint
from relay.keys.own_name import AnotherName
from relay.keys.refill import BatchLimit, DrawCount, LinkRate, Peak, Rate
from relay.keys.replies import KeyStatus
from relay.keys.types import Key

SEEN_KEYS = 200_000
"""How many keys are remembered here, beside the store, so that a KME cannot hand us one twice."""

_TELLING_OCTETS = 16
"""Keys of at least this length are told apart by their octets too; shorter ones may be equal by chance."""


def wipe(octets: bytearray) -> None:
    """Overwrites the octets with zeros, in place."""
    octets[:] = bytes(len(octets))


class SeenKeys:
    """The keys that were given before, by ID in any case and by a keyed hash of their octets: none may come again."""

    def __init__(self, most: int = SEEN_KEYS) -> None:
        self._most = most
        self._marks: OrderedDict[bytes, None] = OrderedDict()
        self._secret = secrets.token_bytes(32)

    def first_time(self, key: Key) -> bool:
        """Remembers the key; False when its ID or its octets were seen before."""
        marks = [self._mark(b"id", casefold(key.key_ID).encode())]
        if len(key.key) >= _TELLING_OCTETS:
            marks.append(self._mark(b"octets", key.key))
        new = not any(mark in self._marks for mark in marks)
        self._marks.update(dict.fromkeys(marks))
        while len(self._marks) > 2 * self._most:
            self._marks.popitem(last=False)
        return new

    def _mark(self, kind: bytes, octets: bytes) -> bytes:
        return hashlib.blake2b(octets, digest_size=16, key=self._secret, person=kind).digest()


@dataclass(slots=True)
class _Held:
    key_ID: str
    octets: bytearray = field(repr=False)
    until: float = 0.0


class Stock:
    """Keys that are ready, oldest first; all of them in the accounts of `slave_sae` as in the pool."""

    def __init__(
        self, slave_sae: str, lifetime: float, accounts: Accounts, seen: SeenKeys, clock: Callable[[], float]
    ) -> None:
        """`lifetime` is how many seconds a key may wait here before it is destroyed."""
        self._slave_sae = slave_sae
        self._lifetime = lifetime
        self._accounts = accounts
        self._seen = seen
        self._clock = clock
        self._held: deque[_Held] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, keys: Sequence[Key], *, until: float | None = None) -> int:
        """Takes in keys that a KME has issued; returns how many were refused, as seen before.

        They are good `until` then, by the clock; by default for the whole lifetime, from now.
        """
        self._accounts.issued(self._slave_sae, len(keys))
        until = self._clock() + self._lifetime if until is None else until
        fresh = [key for key in keys if self._seen.first_time(key)]
        self._held += [_Held(key.key_ID, bytearray(key.key), until) for key in fresh]
        refused = len(keys) - len(fresh)
        if refused:
            self._accounts.burnt(self._slave_sae, refused, "seen before")
        return refused

    def pop(self, number: int) -> list[Key] | None:
        """`number` keys that are still good, or None and nothing; with no await inside, so once and for one."""
        if self._held and self._held[0].until <= self._clock():
            self.destroy_expired()
        if len(self._held) < number:
            return None
        keys = []
        for _ in range(number):
            held = self._held.popleft()
            keys.append(Key(held.key_ID, bytes(held.octets)))
            held.octets[:] = bytes(len(held.octets))
        self._accounts.used(self._slave_sae, number)
        return keys

    def destroy_expired(self) -> int:
        """Destroys the keys whose time is over; returns how many."""
        now = self._clock()
        expired = 0
        while self._held and self._held[0].until <= now:
            wipe(self._held.popleft().octets)
            expired += 1
        if expired:
            self._accounts.expired(self._slave_sae, expired)
        return expired

    def burn_all(self, cause: str) -> int:
        """Destroys every key; returns how many."""
        self.destroy_expired()
        burnt = len(self._held)
        for held in self._held:
            wipe(held.octets)
        self._held.clear()
        if burnt:
            self._accounts.burnt(self._slave_sae, burnt, cause)
        return burnt


@dataclass(slots=True)
class KMEStore:
    """What is known of the KME's store for one slave SAE."""

    link: LinkRate
    use: Rate
    batch: BatchLimit
    status_fails: Complaint
    takes_us: Complaint
    may_take_us: Complaint
    draws: DrawCount
    status: KeyStatus | None = None
    status_trouble: str = ""
    another_name: AnotherName | None = None
    """Whom the KME takes us for, by its last status."""
    drawn_before_status: int = 0
    """Bits that had come when that status was asked for: of what came later it may not know."""
    asked: float | None = None
    asking: asyncio.Task[KeyStatus | None] | None = None
    used_at: float = float("-inf")
    """When a key for this slave SAE was last given out, in seconds of the clock."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A message that waits for `number` keys: `turn` is set when it is first in the queue, or when `error` is."""

    number: int
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    error: KeyUnavailable | StoreUnavailable | None = None


@dataclass(slots=True)
class PeerPool:
    """The stock for one slave SAE and key size, with the work that fills it."""

    slave_sae: str
    size: int
    stock: Stock
    kme_store: KMEStore
    peak: Peak
    refill_fails: Complaint
    prefetched: bool = False
    fill_to: int = 0
    """So many keys are drawn for it where nobody waits for more."""
    queue: deque[Waiter] = field(default_factory=deque)
    backoff: float = 0.0
    not_before: float = 0.0
    trouble: KeyUnavailable | StoreUnavailable = field(default_factory=lambda: KMEExhausted("no key left"))
    drawing: asyncio.Task[None] | None = None
    refill: asyncio.Task[None] | None = None
    unrecorded: list[Key] = field(default_factory=list, repr=False)
    """Keys that have come and are not remembered yet: they may not be used before; good until `unrecorded_until`."""
    unrecorded_until: float = 0.0

    @property
    def wanted(self) -> int:
        """How many keys are waited for."""
        return sum(waiter.number for waiter in self.queue)

    @property
    def idle(self) -> bool:
        """Whether it is empty, and nobody uses it."""
        used = self.queue or self.prefetched or under_way(self.drawing) or under_way(self.refill)
        return not (used or len(self.stock) or self.unrecorded)


def under_way(task: asyncio.Task[Any] | None) -> bool:
    """Whether there is such a task, and it goes on."""
    return task is not None and not task.done()
