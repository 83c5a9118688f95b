"""The keys that are ready for one peer and size, oldest first: each leaves once, and is then overwritten.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; pure, with an injected clock.

The accounts record the fate of every key of one KME, by double entry: `issued = used + burnt + expired + in pool` for
each slave SAE and in all. Labels carry names, never key_IDs.

A key waits here as a bytearray, which is overwritten when the key leaves, is burnt or expires. Python
allows no more: the JSON it arrived in, and the `bytes` that a user gets, live until garbage collection.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from relay.counting import key_metrics as metrics
from relay.keys.counts import KeyCounts, Numbers
from relay.keys.types import Key


def wipe(octets: bytearray) -> None:
    """Overwrites the bytes with zeros, in place."""
    octets[:] = bytes(len(octets))


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
        self.entries: Counter[tuple[str, str, str]] = Counter()
        """Numbers by slave SAE, fate and cause."""

    def enter(self, slave_sae: str, number: int, fate: str, cause: str = "") -> None:
        """Counts keys that were "issued", "used", "expired" or "burnt"; these have a `cause`, a short fixed text."""
        self.entries[slave_sae, fate, cause] += number
        self._board.add(metrics.KEYS, self._kme, self.peers.get(slave_sae, slave_sae), fate, by=number)
        if cause:
            self._board.add(metrics.KEYS_BURNT, self._kme, cause, by=number)

    def issued_and_burnt(self, slave_sae: str, number: int, cause: str) -> None:
        """The KME issued keys, or may have, that never reached the pool."""
        self.enter(slave_sae, number, "issued")
        self.enter(slave_sae, number, "burnt", cause)

    def discarded(self, size: int) -> None:
        """`size` excess bytes of a pad's keys were discarded."""
        self._board.add(metrics.PAD_DISCARDED, self._kme, by=size)

    def totals(self, slave_sae: str | None = None) -> dict[str, int]:
        """`issued`, `used`, `burnt`, `expired`, and the resulting `in_pool`; of one slave SAE or of all."""

        counts = dict.fromkeys(("issued", "used", "burnt", "expired"), 0)
        for (slave, fate, _), number in self.entries.items():
            counts[fate] += number if slave_sae in (None, slave) else 0
        return counts | {"in_pool": counts["issued"] - counts["used"] - counts["burnt"] - counts["expired"]}


class Stock:
    """Keys that are ready, oldest first; all of them in the accounts of `slave_sae` as in the pool."""

    def __init__(self, slave_sae: str, accounts: Accounts, clock: Callable[[], float]) -> None:
        self._slave_sae = slave_sae
        self._accounts = accounts
        self._clock = clock
        self._held: deque[HeldKey] = deque()
        self.handed = 0
        """Number of keys that were popped and that their caller has neither received nor given up yet."""

    def __len__(self) -> int:
        return len(self._held)

    def add(self, keys: Sequence[Key], until: float) -> None:
        """Adds keys that a KME has issued, never before; they are valid `until` then, by the clock."""
        self._accounts.enter(self._slave_sae, len(keys), "issued")
        self._held += [HeldKey(key.key_ID, bytearray(key.key), until) for key in keys]

    def pop(self, number: int, *, received: bool = True) -> list[Key] | None:
        """Removes `number` valid keys, or returns None; atomic, without any await.

        `received` False: `receive` or `take_back` follows, when the caller runs again.
        """
        if self._held and self._held[0].until <= self._clock():
            self.destroy_expired()
        if len(self._held) < number:
            return None
        keys = []
        for _ in range(number):
            held = self._held.popleft()
            keys.append(Key(held.key_ID, bytes(held.octets), held.until))
            held.octets[:] = bytes(len(held.octets))
        if received:
            self._accounts.enter(self._slave_sae, number, "used")
        else:
            self.handed += number
        return keys

    def receive(self, number: int) -> None:
        """Records that the caller has keys that `pop` gave."""
        self.handed -= number
        self._accounts.enter(self._slave_sae, number, "used")

    def take_back(self, keys: Sequence[Key]) -> None:
        """Puts back keys that `pop` gave, and whose caller has given up before it had them."""
        self.handed -= len(keys)
        self._held.extendleft(HeldKey(key.key_ID, bytearray(key.key), key.good_until) for key in reversed(keys))

    def destroy_expired(self) -> int:
        """Destroys expired keys; returns how many."""
        now = self._clock()
        expired = 0
        while self._held and self._held[0].until <= now:
            wipe(self._held.popleft().octets)
            expired += 1
        if expired:
            self._accounts.enter(self._slave_sae, expired, "expired")
        return expired

    def wipe(self) -> None:
        """Overwrites every key, without a trace in the accounts: they are another process's."""
        for held in self._held:
            wipe(held.octets)
        self._held.clear()

    def burn_all(self, cause: str) -> int:
        """Destroys every key; returns how many."""
        self.destroy_expired()
        burnt = len(self._held)
        self.wipe()
        if burnt:
            self._accounts.enter(self._slave_sae, burnt, "burnt", cause)
        return burnt
