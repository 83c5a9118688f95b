"""Received keys between their arrival and their caller: each is taken once, also if the caller has given up meanwhile.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a KME delivers a key once, so one that was not taken is kept for the next caller.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

from relay.keys.events import Events
from relay.keys.forks import forget_in_children
from relay.keys.types import Key

log = Events(__name__)

UNTAKEN_S = 300.0
"""Time for which a key is kept for the next caller, in seconds."""


class Untaken:
    """Received keys that no caller has yet, by master SAE and key_ID."""

    def __init__(self, source: str, clock: Callable[[], float]) -> None:
        """`source` is the KME or group, for the log."""
        self._source = source
        self._clock = clock
        self._keys: OrderedDict[tuple[str, str], tuple[Key, float]] = OrderedDict()
        forget_in_children(self)

    def forked(self) -> None:
        """As for all."""
        self._keys.clear()

    def put(self, master_sae: str, keys: Iterable[Key]) -> None:
        """Keeps keys that have arrived."""
        self._drop_expired()
        until = self._clock() + UNTAKEN_S
        for key in keys:
            self._keys[master_sae, key.key_ID] = key, until

    async def keep(self, master_sae: str, keys: Mapping[str, bytes]) -> None:
        """As KeepKeys."""
        self.put(master_sae, [Key(key_ID, octets) for key_ID, octets in keys.items()])

    def missing(self, master_sae: str, key_IDs: Sequence[str]) -> Sequence[str]:
        """Those of the key_IDs whose key is not here."""
        self._drop_expired()
        return [key_ID for key_ID in key_IDs if (master_sae, key_ID) not in self._keys] if self._keys else key_IDs

    def take(self, master_sae: str, key_IDs: Sequence[str]) -> dict[str, Key]:
        """The keys with these IDs that are here, which are then the caller's alone; without any await."""
        names = [(master_sae, key_ID) for key_ID in key_IDs]
        return {name[1]: self._keys.pop(name)[0] for name in names if name in self._keys}

    def close(self) -> None:
        """Drops all."""
        self._drop_first(len(self._keys), "the client was closed")

    def _drop_expired(self) -> None:
        now = self._clock()
        self._drop_first(sum(until <= now for _, until in self._keys.values()), "nobody asked for them again")

    def _drop_first(self, number: int, cause: str) -> None:
        for _ in range(number):
            self._keys.popitem(last=False)
        if number > 0:
            log.warning("received_keys_lost", kme=self._source, number=number, cause=cause)
