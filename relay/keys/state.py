"""The state of one KME's keys for one peer, as a value: wanted, ready, used, and when to ask next.
Standard: ETSI GS QKD 014 V1.1.1, 5.3. With an injected clock: pool.py makes the requests and reports results.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.errors import KeyUnavailable, KMEBadReply, KMEExhausted, StoreUnavailable
from relay.keys.faults import KMERefusedRequest
from relay.keys.refill import Peak
from relay.keys.stock import Stock
from relay.keys.types import Key

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.25, 5.0
"""First and longest pause, in seconds, before a KME without usable keys is asked again."""

Trouble = KeyUnavailable | StoreUnavailable

REMEMBERED_S = 300.0
"""Time for which the use of a size is remembered, in seconds: more of it is then drawn ahead."""
REFUSAL_REPORTED_S = 60.0
"""Time for which a refusal is reported, in seconds, from when the KME may be asked again."""
_LATER = (KMEExhausted, KMERefusedRequest, KMEBadReply, StoreUnavailable)
"""Failures that the next request would repeat; the breaker handles all others."""


@dataclass(slots=True, eq=False)
class Want:
    """Keys that a caller waits for: `number`, or at least `least` if the KME issues no more at once."""

    number: int
    least: int
    served: asyncio.Future[list[Key]]
    patient: bool = True
    landings: int = 0
    """Number of requests that ended without serving it while it was first in the queue."""


@dataclass(slots=True, eq=False)
class PeerPool:
    """The keys of one size for one slave SAE. `drawing` is the task that makes its requests."""

    slave_sae: str
    size: int
    stock: Stock
    peak: Peak
    clock: Callable[[], float]
    kept_ready: bool = False
    """Whether keys are kept ready also without use."""
    prefetched: bool = False
    """Whether keys are drawn ahead of need."""
    given: int = 0
    """Number of keys given to callers so far."""
    used_at: float = float("-inf")
    fill_to: int = 0
    """Target number of keys of any request."""
    filling: bool = False
    """Whether keys are drawn up to `fill_to` without demand."""
    queue: deque[Want] = field(default_factory=deque)
    drawing: asyncio.Task[None] | None = None
    backoff: float = 0.0
    not_before: float = 0.0
    trouble: Trouble = field(default_factory=lambda: KMEExhausted("no key left"))

    @property
    def wanted(self) -> int:
        """Number of keys that callers wait for."""
        return sum(want.number for want in self.queue)

    @property
    def missing(self) -> int:
        """Number of keys to request; 0 or less: none."""
        goal = max(self.wanted, self.fill_to) if self.queue or self.filling else 0
        return goal - len(self.stock)

    @property
    def idle(self) -> bool:
        """Whether it is empty and unused; its use is remembered for a while."""
        used = self.queue or self.kept_ready or len(self.stock) or self.stock.handed
        until = self.used_at + REMEMBERED_S if self.prefetched else float("-inf")
        return not used and self.clock() >= max(self.not_before, until)

    def forget_other_loops(self) -> None:
        """Drops callers in event loops that have ended."""
        loop = asyncio.get_running_loop()
        self.queue = deque(want for want in self.queue if want.served.get_loop() is loop)

    def serve(self, *, short: bool = False) -> None:
        """Gives keys to waiting callers, in order; `short`: the KME issues no more at present."""
        while self.queue:
            want = self.queue[0]
            if not want.served.done():
                number = min(want.number, max(want.least, len(self.stock))) if short else want.number
                if (keys := self.stock.pop(number, received=False)) is None:
                    return
                want.served.set_result(keys)
            self.queue.popleft()

    def gave_up(self, want: Want) -> None:
        """Its caller waits no more: keys that were handed to it and not received go to the next one."""
        if want in self.queue:
            self.queue.remove(want)
        elif want.served.done() and not want.served.cancelled() and want.served.exception() is None:
            self.stock.take_back(want.served.result())
        self.serve()

    def landed(self, *, short: bool, alone: bool = False) -> None:
        """Ends a request whose keys are in stock; `short`: fewer than requested, `alone`: no further one follows."""
        self.backoff = self.not_before = 0.0
        self.serve(short=short)
        if alone or len(self.stock) >= self.fill_to:
            self.filling = False
        if alone:
            self._end_all(KMEExhausted("the keys wanted did not come in one batch"))
        if self.queue:
            first = self.queue[0]
            first.landings += 1
            if first.landings > 2 * first.number + 4:
                self.queue.popleft()
                first.served.set_exception(KMEExhausted(f"keys expire before {first.number} of them are there"))

    def failed(self, error: Trouble, chance: float) -> None:
        """Ends a failed request: callers get the error. `chance` (0 to 1) is for the jitter of the next request."""
        if isinstance(error, _LATER):
            self.backoff = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, self.backoff * 2))
            self.not_before = self.clock() + self.backoff * (0.5 + 0.5 * chance)
            self.trouble = error
        self.refuse(error)

    def refuse(self, error: Trouble) -> None:
        """Callers get keys in stock, else the error; ends the refill for now."""
        self.filling = False
        self.serve(short=True)
        self._end_all(error)

    @property
    def refused(self) -> str:
        """Why the last recent request failed, or ""."""
        return str(self.trouble) if self.not_before and self.clock() - self.not_before < REFUSAL_REPORTED_S else ""

    def too_early(self, kme: str) -> Trouble | None:
        """Why the KME must not be asked now; None if it may."""
        if (wait := self.not_before - self.clock()) <= 0:
            return None
        kind = next((kind for kind in (KMEExhausted, StoreUnavailable) if isinstance(self.trouble, kind)), KMEBadReply)
        return kind(f"{kme}: not asked again for {wait:.1f} s: {self.trouble}")

    def _end_all(self, error: Trouble) -> None:
        while self.queue:
            if not (served := self.queue.popleft().served).done():
                served.set_exception(error)
