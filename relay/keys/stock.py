"""The keys that are ready for one peer and size, oldest first: each leaves once, and is then overwritten.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; pure, with an injected clock.

The accounts record the fate of every key of one KME, by double entry: `issued = used + burnt + expired + in pool` for
each slave SAE and in all. Labels carry names, never key_IDs.

A key waits here as a bytearray, which is overwritten when the key leaves, is burnt or expires. Python
allows no more: the JSON it arrived in, and the `bytes` that a user gets, live until garbage collection.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relay.counting import key_metrics as metrics
from relay.formats.characters import casefold
from relay.keys.counts import KeyCounts, Numbers
from relay.keys.types import Key

SEEN_KEYS = 200_000
"""Number of keys remembered in memory, beside the store, to detect keys issued twice."""

_TELLING_OCTETS = 16
"""Minimum length of keys that are also compared by their bytes, in bytes; shorter ones may be equal by chance."""


def wipe(octets: bytearray) -> None:
    """Overwrites the bytes with zeros, in place."""
    octets[:] = bytes(len(octets))


class SeenKeys:
    """Keys issued before, by ID (ignoring case) and by a keyed hash of their bytes: none may be used again."""

    def __init__(self, most: int = SEEN_KEYS) -> None:
        self._most = most
        self._marks: OrderedDict[bytes, None] = OrderedDict()
        self._secret = secrets.token_bytes(32)

    def first_time(self, key: Key) -> bool:
        """Remembers the key; False if its ID or its bytes were seen before."""
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
class HeldKey:
    """One key in stock; `until` is in seconds of the clock."""

    key_ID: str
    octets: bytearray = field(repr=False)
    until: float = 0.0


class Accounts:
    """Counts of keys (not bytes), by slave SAE; the pool counts its own keys, so the two can be compared."""

    def __init__(self, kme: str = "", board: KeyCounts | None = None) -> None:
        """Entries are also counted on the `board`, under the KME's name."""
        self._kme = kme
        self._board = board or Numbers()
        self.peers: dict[str, str] = {}
        """Label values of slave SAEs by SAE ID; by default their IDs."""
        self._issued: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._expired: Counter[str] = Counter()
        self._burnt: Counter[tuple[str, str]] = Counter()

    def issued(self, slave_sae: str, number: int) -> None:
        """The KME issued keys, now in the pool."""
        self._enter(self._issued, slave_sae, number, "issued")

    def used(self, slave_sae: str, number: int) -> None:
        """Keys left the pool to seal a message."""
        self._used[slave_sae] += number
        self._board.add(metrics.KEYS, self._kme, self.peers.get(slave_sae, slave_sae), "used", by=number)

    def expired(self, slave_sae: str, number: int) -> None:
        """Keys in the pool expired and were destroyed."""
        self._enter(self._expired, slave_sae, number, "expired")

    def burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """Keys in the pool were destroyed for another reason; `cause` is a short fixed text."""
        self._burnt[slave_sae, cause] += number
        self._board.add(metrics.KEYS, self._kme, self._peer(slave_sae), "burnt", by=number)
        self._board.add(metrics.KEYS_BURNT, self._kme, cause, by=number)

    def issued_and_burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """The KME issued keys, or may have, that never reached the pool."""
        self.issued(slave_sae, number)
        self.burnt(slave_sae, number, cause)

    def discarded(self, size: int) -> None:
        """`size` excess bytes of a pad's keys were discarded."""
        self._board.add(metrics.PAD_DISCARDED, self._kme, by=size)

    def totals(self, slave_sae: str | None = None) -> dict[str, int]:
        """`issued`, `used`, `burnt`, `expired`, and the resulting `in_pool`; of one slave SAE or of all."""

        def total(counts: Counter[str]) -> int:
            return counts.total() if slave_sae is None else counts[slave_sae]

        burnt = sum(number for (slave, _), number in self._burnt.items() if slave_sae in (None, slave))
        counts = {
            "issued": total(self._issued),
            "used": total(self._used),
            "burnt": burnt,
            "expired": total(self._expired),
        }
        return counts | {"in_pool": counts["issued"] - counts["used"] - burnt - counts["expired"]}

    def burnt_by_cause(self, slave_sae: str | None = None) -> dict[str, int]:
        """Burnt keys by cause."""
        causes: Counter[str] = Counter()
        for (slave, cause), number in self._burnt.items():
            if slave_sae in (None, slave):
                causes[cause] += number
        return dict(causes)

    def _enter(self, counts: Counter[str], slave_sae: str, number: int, fate: str) -> None:
        counts[slave_sae] += number
        self._board.add(metrics.KEYS, self._kme, self._peer(slave_sae), fate, by=number)

    def _peer(self, slave_sae: str) -> str:
        return self.peers.get(slave_sae, slave_sae)


class Stock:
    """Keys that are ready, oldest first; all of them in the accounts of `slave_sae` as in the pool."""

    def __init__(
        self, slave_sae: str, lifetime: float, accounts: Accounts, seen: SeenKeys, clock: Callable[[], float]
    ) -> None:
        """`lifetime` is the time before a key in stock is destroyed, in seconds."""
        self._slave_sae = slave_sae
        self._lifetime = lifetime
        self._accounts = accounts
        self._seen = seen
        self._clock = clock
        self._held: deque[HeldKey] = deque()

    def __len__(self) -> int:
        return len(self._held)

    def add(self, keys: Sequence[Key], *, until: float | None = None) -> int:
        """Adds keys that a KME has issued; returns the number refused as seen before.

        They are valid `until` then, by the clock; by default for the whole lifetime from now.
        """
        self._accounts.issued(self._slave_sae, len(keys))
        until = self._clock() + self._lifetime if until is None else until
        fresh = [key for key in keys if self._seen.first_time(key)]
        self._held += [HeldKey(key.key_ID, bytearray(key.key), until) for key in fresh]
        refused = len(keys) - len(fresh)
        if refused:
            self._accounts.burnt(self._slave_sae, refused, "seen before")
        return refused

    def pop(self, number: int) -> list[Key] | None:
        """Removes `number` valid keys, or returns None; atomic, without any await."""
        if self._held and self._held[0].until <= self._clock():
            self.destroy_expired()
        if len(self._held) < number:
            return None
        keys = []
        for _ in range(number):
            held = self._held.popleft()
            keys.append(Key(held.key_ID, bytes(held.octets), held.until))
            held.octets[:] = bytes(len(held.octets))
        self._accounts.used(self._slave_sae, number)
        return keys

    def destroy_expired(self) -> int:
        """Destroys expired keys; returns how many."""
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
