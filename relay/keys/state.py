"""The state of one KME's keys for one peer, as a value: wanted, ready, being drawn, used, and when to ask next.
Standard: ETSI GS QKD 014 V1.1.1, 5.3. Pure, with an injected clock: pool.py makes the requests and reports results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field

from relay.errors import KeyUnavailable, KMEBadReply, KMEExhausted, StoreUnavailable
from relay.keys.events import Complaint
from relay.keys.faults import KMERefusedRequest
from relay.keys.refill import Peak
from relay.keys.stock import HeldKey, Stock
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
    """Keys that a caller waits for: `number`, or at least `least` if the KME issues no more at once.

    Exactly one of `held` and `error` is set when `notify` is called.
    """

    number: int
    least: int
    notify: Callable[[], None]
    patient: bool = True
    place: Hashable = None
    """Where the caller waits: its event loop."""
    held: list[HeldKey] | None = None
    error: Trouble | None = None
    landings: int = 0
    """Number of requests that ended without serving it while it was first in the queue."""


@dataclass(slots=True, eq=False)
class Batch:
    """Keys that have arrived and are not recorded yet: unusable until then, and after `until`."""

    keys: list[Key] = field(repr=False)
    until: float
    asked: int


@dataclass(slots=True, eq=False)
class PeerPool:
    """The keys of one size for one slave SAE. `flights` are the requests in flight."""

    slave_sae: str
    size: int
    stock: Stock
    peak: Peak
    refill_fails: Complaint
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
    flights: dict[Hashable, int] = field(default_factory=dict)
    """Number of keys requested by each flight."""
    unrecorded: list[Batch] = field(default_factory=list, repr=False)
    aside: int = 0
    """Keys set aside for callers that have not collected them yet."""
    backoff: float = 0.0
    not_before: float = 0.0
    trouble: Trouble = field(default_factory=lambda: KMEExhausted("no key left"))

    @property
    def wanted(self) -> int:
        """Number of keys that callers wait for."""
        return sum(want.number for want in self.queue)

    @property
    def missing(self) -> int:
        """Number of further keys to request; 0 or less: none."""
        goal = max(self.wanted, self.fill_to) if self.queue or self.filling else 0
        return goal - len(self.stock) - sum(self.flights.values())

    @property
    def idle(self) -> bool:
        """Whether it is empty and unused; its use is remembered for a while."""
        used = self.queue or self.kept_ready or self.flights or self.aside or self.unrecorded or len(self.stock)
        until = self.used_at + REMEMBERED_S if self.prefetched else float("-inf")
        return not used and self.clock() >= max(self.not_before, until)

    # Callers

    def want(self, want: Want) -> Want:
        """Appends a waiting caller to the queue."""
        self.queue.append(want)
        return want

    def collect(self, want: Want) -> list[Key]:
        """The keys of a served caller. Raises the error of one that was not served."""
        held, want.held = want.held, None
        if held is None:
            raise want.error or KMEExhausted("no key left")
        self.aside -= len(held)
        return self.stock.hand_out(held)

    def leave(self, want: Want) -> None:
        """Removes a caller; keys set aside for it are kept for the next one."""
        if want in self.queue:
            self.queue.remove(want)
        held, want.held = want.held, None
        if held is not None:
            self.aside -= len(held)
            self.stock.put_back(held)
        self.serve()

    def serve(self, *, short: bool = False) -> None:
        """Sets keys aside for waiting callers, in order; `short`: the KME issues no more at present."""
        while self.queue:
            want = self.queue[0]
            number = min(want.number, max(want.least, len(self.stock))) if short else want.number
            if (held := self.stock.set_aside(number)) is None:
                return
            self.aside += number
            self._end(want, held)

    # Requests

    def begin(self, flight: Hashable, most: int, *, alone: bool = False) -> int:
        """Starts a request for the returned number of keys, at most `most`; 0: none is needed.

        `alone`: keys are drawn for callers only.
        """
        number = self.missing
        if number <= 0 or (alone and not self.queue):
            self.filling = False
            return 0
        self.flights[flight] = number = min(number, most)
        return number

    def landed(self, flight: Hashable, *, short: bool, alone: bool = False) -> None:
        """Ends a request whose keys are in stock; `short`: fewer than requested."""
        self.flights.pop(flight, None)
        self.backoff = self.not_before = 0.0
        self.serve(short=short)
        if alone or len(self.stock) >= self.fill_to:
            self.filling = False
        for want in list(self.queue) if alone else []:
            self._end(want, error=KMEExhausted(f"{want.number} keys did not come in one batch"))
        if self.queue:
            first = self.queue[0]
            first.landings += 1
            if first.landings > 2 * first.number + 4:
                self._end(first, error=KMEExhausted(f"keys expire before {first.number} of them are there"))

    def failed(self, flight: Hashable, error: Trouble, chance: float) -> None:
        """Ends a failed request: all callers get the error, except those whose keys are in flight in another one.

        A retry for each of them would only take longer. `chance` (0 to 1) is for the jitter of the next request.
        """
        self.flights.pop(flight, None)
        if isinstance(error, _LATER):
            self.backoff = min(LONGEST_BACKOFF_S, max(FIRST_BACKOFF_S, self.backoff * 2))
            self.not_before = self.clock() + self.backoff * (0.5 + 0.5 * chance)
            self.trouble = error
        self.refuse(error)

    def refuse(self, error: Trouble) -> None:
        """Callers get keys in stock or in flight, else the error; ends the refill for now."""
        self.filling = False
        self.serve(short=not self.flights)
        coming = len(self.stock) + sum(self.flights.values())
        for want in list(self.queue):
            coming -= want.number
            if coming < 0:
                self._end(want, error=error)

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

    def forget_elsewhere(self, place: Hashable, flights: Collection[Hashable]) -> None:
        """Drops callers of other, ended event loops, and requests other than these."""
        self.queue = deque(want for want in self.queue if want.place is place)
        self.flights = {flight: number for flight, number in self.flights.items() if flight in flights}

    def expired_batches(self, *, all_of_them: bool = False) -> int:
        """Drops keys that could not be recorded in time, or `all_of_them`; returns how many."""
        now = self.clock()
        gone = [batch for batch in self.unrecorded if all_of_them or batch.until <= now]
        self.unrecorded = [batch for batch in self.unrecorded if batch not in gone]
        return sum(len(batch.keys) for batch in gone)

    def _end(self, want: Want, held: list[HeldKey] | None = None, error: Trouble | None = None) -> None:
        self.queue.remove(want)
        want.held, want.error = held, error
        want.notify()
