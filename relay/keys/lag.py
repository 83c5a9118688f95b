"""How long keys that their KME does not know are waited for: lag ends soon; keys that never come must stop nobody.
Standard: ETSI GS QKD 014 V1.1.1 says nothing of the lag between two KMEs; real ones need up to some seconds.

A mail that waits keeps its client waiting too, and anybody can send mail that names keys which do not exist. So the
patience counts from when the keys were first asked for, over all tries, and only so many mails wait at once: who comes
then takes the place of the one that has waited longest, whose keys are the least likely to come.
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
"""How long keys that the other KME has not yet synchronised are asked for before the mail is held."""
LAG_WAITING = 10
"""So many mails wait at once: half of what Postfix hands over at the same time."""
REMEMBERED = 10_000
"""So many mails with unknown keys are known again; an older one is taken for one that comes for the first time."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Before the second time that keys are asked for, and before the last times; doubling in between."""


@dataclass(slots=True)
class Want:
    """The keys that one mail needs: when they were first asked for, in seconds, and how often they did not come."""

    name: bytes
    first: float
    tries: int = 0


@dataclass(slots=True, eq=False)
class Place:
    """A place among those who wait; `lost` is set when somebody else has it, or nobody waits any more."""

    master_sae: str
    lost: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def lose(self) -> None:
        """Whoever has it goes on at once."""
        if not self.lost.done():
            self.lost.set_result(None)


class Lag:
    """The patience of one KME group with keys that are not there yet."""

    def __init__(self, patience: float, at_once: int, timing: Timing = REAL_TIME) -> None:
        """`patience` is in seconds; `at_once` is how many may wait."""
        self._patience = patience
        self._at_once = at_once
        self._timing = timing
        self._wanted: OrderedDict[bytes, Want] = OrderedDict()
        self._places: list[Place] = []
        self._over = False

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._places)

    def want(self, master_sae: str, key_IDs: Sequence[str]) -> Want:
        """What is known of these keys, which are asked for together."""
        name = hashlib.sha256("\0".join([master_sae, *key_IDs]).encode("utf-8", "surrogatepass")).digest()
        want = self._wanted.setdefault(name, Want(name, self._timing.clock()))
        if len(self._wanted) > REMEMBERED:
            self._wanted.popitem(last=False)
        return want

    def came(self, want: Want) -> None:
        """They are there: nothing of them needs to be known."""
        self._wanted.pop(want.name, None)

    def stop(self) -> None:
        """Whoever waits goes on at once, and nobody waits any more."""
        self._over = True
        for place in self._places:
            place.lose()

    @contextmanager
    def place(self, master_sae: str) -> Iterator[Place]:
        """A place among those who wait, which is lost to others who come when all are taken."""
        place = Place(master_sae)
        self._places.append(place)
        if len(self._places) > self._at_once:
            self._longest_waiting().lose()
        if self._over:
            place.lose()
        try:
            yield place
        finally:
            if place in self._places:
                self._places.remove(place)

    def left(self, want: Want) -> float:
        """Seconds that are left of the patience with these keys; 0 or less: none."""
        return want.first + self._patience - self._timing.clock()

    async def pause(self, place: Place, seconds: float) -> bool:
        """Waits so long, or until the place is lost; whether it is still held."""
        sleeping = asyncio.ensure_future(self._timing.sleep(seconds))
        try:
            await asyncio.wait((sleeping, place.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
        return not place.lost.done()

    def _longest_waiting(self) -> Place:
        """Takes a place from the master SAE that has most of them, so that no peer's mail pushes out another's."""
        masters = Counter(place.master_sae for place in self._places)
        most = max(masters.values())
        place = next(place for place in self._places if masters[place.master_sae] == most)
        self._places.remove(place)
        return place
