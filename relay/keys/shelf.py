"""The state of one KME's fresh keys: a shelf for each slave SAE and size, who waits there, and what the KME said.
Standard: ETSI GS QKD 014 V1.1.1, 5.3; fresh.py alone changes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from relay.errors import KeyUnavailable, KMEExhausted, StoreUnavailable
from relay.keys.batch import BatchLimit
from relay.keys.contract import Key
from relay.keys.events import Complaint
from relay.keys.rates import Peak, Rate, Refill
from relay.keys.replies import KeyStatus
from relay.keys.stock import Stock


@dataclass(slots=True, eq=False)
class Waiter:
    """One who waits for `number` keys: `turn` is set when he is first in the queue, or when `error` is."""

    number: int
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    error: KeyUnavailable | StoreUnavailable | None = None


@dataclass(slots=True)
class Shelf:
    """The stock for one slave SAE and key size, with the work that fills it."""

    slave_sae: str
    size: int
    stock: Stock
    peak: Peak
    refill_fails: Complaint
    prefetched: bool = False
    fill_to: int = 0
    """So many keys are drawn for it where nobody waits for more."""
    queue: deque[Waiter] = field(default_factory=deque)
    rest: float = 0.0
    not_before: float = 0.0
    trouble: KeyUnavailable | StoreUnavailable = field(default_factory=lambda: KMEExhausted("no key left"))
    drawing: asyncio.Task[None] | None = None
    refill: asyncio.Task[None] | None = None
    aside: list[Key] = field(default_factory=list, repr=False)
    """Keys that have come and are not remembered yet: they may not be used before, and are good until `aside_until`."""
    aside_until: float = 0.0

    @property
    def wanted(self) -> int:
        """How many keys are waited for."""
        return sum(waiter.number for waiter in self.queue)

    @property
    def idle(self) -> bool:
        """Whether it is empty, and nobody uses it."""
        return not (self.queue or self.drawing or self.refill or len(self.stock) or self.prefetched or self.aside)


@dataclass(slots=True)
class Slave:
    """What is known of the KME's store for one slave SAE."""

    refill: Refill
    use: Rate
    batch: BatchLimit
    status_fails: Complaint
    status: KeyStatus | None = None
    asked: float | None = None
    looking: asyncio.Task[KeyStatus | None] | None = None
    used_at: float = float("-inf")
    """When a key for this slave SAE was last given out, in seconds of the clock."""
