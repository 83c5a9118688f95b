"""How long keys that their KME does not know are waited for: lag ends soon; keys that never come must stop nobody.
ETSI GS QKD 014 V1.1.1 says nothing of the lag between two KMEs; real ones need up to some seconds.

A mail that waits keeps its client waiting too, and anybody can send mail that names keys which do not exist. So the
patience counts from when the keys were first asked for, over all attempts, and the number of waiting mails is bounded.
Who comes then takes the place of the one that has waited longest, whose keys are the least likely to come.
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
"""Maximum number of mails with unknown keys that are known again; an older one counts as new."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""First and longest pause before keys are asked for again, in seconds; doubled each time."""


@dataclass(slots=True)
class Attempts:
    """The keys that one mail needs: when they were first asked for, in seconds, and how often they did not come."""

    name: bytes
    first: float
    tries: int = 0


@dataclass(slots=True, eq=False)
class WaitingSlot:
    """One of those who wait; `evicted` is set when somebody else waits in its place, or nobody waits any longer."""

    master_sae: str
    evicted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def evict(self) -> None:
        """Its holder goes on at once."""
        if not self.evicted.done():
            self.evicted.set_result(None)


class LagRetries:
    """The patience of one KME group with keys that are not there yet."""

    def __init__(self, patience: float, at_once: int, timing: Timing = REAL_TIME) -> None:
        """`patience` is in seconds; `at_once` is how many may wait."""
        self._patience = patience
        self._at_once = at_once
        self._timing = timing
        self._attempts: OrderedDict[bytes, Attempts] = OrderedDict()
        self.slots: list[WaitingSlot] = []
        """Those who wait now."""
        self._over = False

    def attempts(self, master_sae: str, key_IDs: Sequence[str]) -> Attempts:
        """What is known of these keys, which are asked for together."""
        name = hashlib.sha256("\0".join([master_sae, *key_IDs]).encode("utf-8", "surrogatepass")).digest()
        attempts = self._attempts.setdefault(name, Attempts(name, self._timing.clock()))
        if len(self._attempts) > REMEMBERED:
            self._attempts.popitem(last=False)
        return attempts

    def arrived(self, attempts: Attempts) -> None:
        """They are there: nothing of them needs to be known."""
        self._attempts.pop(attempts.name, None)

    def stop(self) -> None:
        """All that wait go on at once, and nobody waits from now on."""
        self._over = True
        for slot in self.slots:
            slot.evict()

    @contextmanager
    def slot(self, master_sae: str) -> Iterator[WaitingSlot]:
        """Waits as one of those that may; it is evicted by others who come when all slots are taken."""
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
        """Seconds that are left of the patience with these keys; 0 or less: none."""
        return attempts.first + self._patience - self._timing.clock()

    async def pause(self, slot: WaitingSlot, seconds: float) -> bool:
        """Waits for `seconds`, or until the slot is lost; whether it is still held."""
        sleeping = asyncio.ensure_future(self._timing.sleep(seconds))
        try:
            await asyncio.wait((sleeping, slot.evicted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
        return not slot.evicted.done()

    def _longest_waiting(self) -> WaitingSlot:
        """Takes a slot from the master SAE that has most of them, so that no peer's mail pushes out another's."""
        masters = Counter(slot.master_sae for slot in self.slots)
        most = max(masters.values())
        slot = next(slot for slot in self.slots if masters[slot.master_sae] == most)
        self.slots.remove(slot)
        return slot
