"""Bounded waiting for keys that their KME does not know yet: lag is short; missing keys must not block others.
ETSI GS QKD 014 V1.1.1 does not specify the lag between two KMEs; real ones need up to some seconds.

A waiting mail keeps its client waiting, and anybody can send mail that names keys which do not exist. So the patience
starts with the first request for the keys, over all attempts, and the number of waiting mails is bounded. A newcomer
evicts the one that has waited longest, whose keys are the least likely to arrive.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from relay.keys.types import REAL_TIME, Timing

LAG_PATIENCE_S = 5.0
"""Maximum wait for keys that the other KME has not yet synchronised, in seconds; then mail is held."""
LAG_WAITING = 10
"""Maximum number of mails that wait at once: half of what Postfix hands over at the same time."""
REMEMBERED = 10_000
"""Maximum number of mails with unknown keys that are remembered; an older one counts as new."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""First and longest pause before keys are requested again, in seconds; doubled each time."""


@dataclass(slots=True)
class Attempts:
    """Attempts for the keys of one mail: time of the first, in seconds, and number of failures."""

    name: bytes
    first: float
    tries: int = 0


@dataclass(slots=True, eq=False)
class WaitingSlot:
    """One waiting fetch; `evicted` is set when another one takes its place, or at shutdown."""

    master_sae: str
    evicted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def evict(self) -> None:
        """Ends its wait at once."""
        if not self.evicted.done():
            self.evicted.set_result(None)


class LagRetries:
    """Retries of one KME group for lagging keys."""

    def __init__(self, patience: float, at_once: int, timing: Timing = REAL_TIME) -> None:
        """`patience` is in seconds; `at_once` is the maximum number of waiting fetches."""
        self._patience = patience
        self._at_once = at_once
        self._timing = timing
        self._attempts: OrderedDict[bytes, Attempts] = OrderedDict()
        self.slots: list[WaitingSlot] = []
        """The waiting fetches."""
        self._over = False

    def attempts(self, master_sae: str, key_IDs: Sequence[str]) -> Attempts:
        """The attempts for these keys, which are requested together."""
        name = hashlib.sha256("\0".join([master_sae, *key_IDs]).encode("utf-8", "surrogatepass")).digest()
        attempts = self._attempts.setdefault(name, Attempts(name, self._timing.clock()))
        if len(self._attempts) > REMEMBERED:
            self._attempts.popitem(last=False)
        return attempts

    def arrived(self, attempts: Attempts) -> None:
        """Forgets these keys: they have arrived."""
        self._attempts.pop(attempts.name, None)

    def stop(self) -> None:
        """Ends all waits, now and in future."""
        self._over = True
        for slot in self.slots:
            slot.evict()

    @contextmanager
    def slot(self, master_sae: str) -> Iterator[WaitingSlot]:
        """A waiting slot; it may be evicted by newcomers when all slots are taken."""
        slot = WaitingSlot(master_sae)
        self.slots.append(slot)
        if len(self.slots) > self._at_once:
            self._longest_waiting().evict()
        if self._over:
            slot.evict()
        try:
            yield slot
        finally:
            if slot in self.slots:
                self.slots.remove(slot)

    def left(self, attempts: Attempts) -> float:
        """Remaining patience for these keys, in seconds; 0 or less: none."""
        return attempts.first + self._patience - self._timing.clock()

    async def pause(self, slot: WaitingSlot, seconds: float) -> bool:
        """Waits for `seconds` or until evicted; returns whether the slot is still held."""
        sleeping = asyncio.ensure_future(self._timing.sleep(seconds))
        try:
            await asyncio.wait((sleeping, slot.evicted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
        return not slot.evicted.done()

    def _longest_waiting(self) -> WaitingSlot:
        """The slot to evict: of the master SAE with the most, so that no peer's mail displaces another's."""
        masters = Counter(slot.master_sae for slot in self.slots)
        most = max(masters.values())
        slot = next(slot for slot in self.slots if masters[slot.master_sae] == most)
        self.slots.remove(slot)
        return slot
