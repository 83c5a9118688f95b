"""Number of keys to draw ahead and in one request, from use and refill rates and the KME's limits.
The rule is `peak rate x (refill latency + outage to survive)`, capped by the KME's limits (ETSI GS QKD 014
V1.1.1, 6.1). Pure, with an injected clock. Amounts are in bits unless said otherwise.

Rates are exponentially weighted. If a KME does not state the limit of keys in a request, it is learnt from refusals.
A refusal may have had another reason, so a learnt limit is doubled again after a while. A wrong guess
costs a site its rate for some minutes, and a right one costs a refusal a minute, which burns no key.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from relay.errors import ConfigError
from relay.keys.replies import KeyStatus
from relay.keys.takes import SECONDS, WHOLE, Parameters

LASTING_SHARE = 0.4
"""Minimum share of its window over which a lasting rate is averaged."""


class Rate:
    """An event rate per second, averaged over about `window` seconds."""

    def __init__(
        self,
        window: float,
        clock: Callable[[], float],
        *,
        young: bool = True,
        began: float | None = None,
    ) -> None:
        """`young` False takes the time before the beginning (`began`, default now) as zero, not as unknown."""
        self._window = window
        self._young = young
        self._clock = clock
        self._rate = 0.0
        self._seen = clock()
        self._began = self._seen if began is None else began

    def add(self, amount: float) -> None:
        """`amount` happened now."""
        now = self._clock()
        self._rate = self._rate * math.exp((self._seen - now) / self._window) + amount / self._window
        self._seen = now

    @property
    def per_second(self) -> float:
        """The current rate; before a whole window has passed, the average since the beginning."""
        now = self._clock()
        rate = self._rate * math.exp((self._seen - now) / self._window)
        if not self._young:
            return rate
        return rate / (1 - math.exp(-max(now - self._began, self._window / 20) / self._window))

    @property
    def lasting(self) -> float:
        """As per_second, but averaged over at least some minutes: a burst after a start does not last."""
        age = max(self._clock() - self._began, self._window / 20)
        return self.per_second * self._share(age) / self._share(max(age, LASTING_SHARE * self._window))

    def _share(self, seconds: float) -> float:
        return 1 - math.exp(-seconds / self._window)


class Peak:
    """The recent peak rate: it rises at once and decays by half within `window` seconds."""

    def __init__(self, clock: Callable[[], float], window: float = 300.0) -> None:
        self._now = Rate(5.0, clock, young=False)
        self._window = window
        self._clock = clock
        self._peak = 0.0
        self._seen = clock()

    def add(self, amount: float) -> None:
        """`amount` happened now."""
        self._now.add(amount)
        self._peak = max(self.per_second, self._now.per_second)

    @property
    def per_second(self) -> float:
        """The current peak."""
        now = self._clock()
        self._peak *= 0.5 ** ((now - self._seen) / self._window)
        self._seen = now
        return self._peak


class DrawCount(Protocol):
    """Bits drawn from one KME for one slave SAE, by all processes of a relay."""

    def add(self, amount: int) -> None:
        """Adds `amount` drawn by this process."""

    @property
    def total(self) -> int:
        """The total so far; monotonic."""


class Draws:
    """The count of a single process."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, amount: int) -> None:
        """Adds `amount`."""
        self._total += amount

    @property
    def total(self) -> int:
        """The total so far."""
        return self._total


class LinkRate:
    """The key rate of the link, from two statuses and the bits drawn in between."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, float, float] | None = None
        self.per_second: float | None = None
        """The rate in bits a second; None if unknown."""

    def stored(self, bits: float, drawn: float, *, full: bool) -> None:
        """Records a status of `bits` after `drawn` bits in total; a full store gives no information."""
        now = self._clock()
        last = self._last
        if last is not None and now - last[0] < 0.5:  # too soon after the last status
            return
        self._last = now, bits, drawn
        if last is None:
            return
        made = max(0.0, bits - last[1] + drawn - last[2]) / (now - last[0])
        if full and made <= (self.per_second or 0.0):
            return
        self.per_second = made if self.per_second is None else self.per_second + (made - self.per_second) / 3


def empty_in(stored: float, use_rate: float, refill_rate: float | None) -> float | None:
    """Seconds until `stored` bits are used up at the present rates; None: never."""
    loss = use_rate - (refill_rate or 0.0)
    return stored / loss if loss > 1e-9 else None


OUTAGE_S = 10.0
"""KME outage that the pool covers, in seconds: the time of a restart."""

LIFETIME_SHARE = 0.5
"""Maximum pool size, as a share of the keys used within a lifetime at the peak rate: the rest would expire."""

MOST_READY = 100_000
"""Maximum number of keys kept ready."""

IDLE_SHARE = 0.05
"""Maximum share of a link's rate spent on ready keys that expire unused."""


@dataclass(frozen=True, slots=True)
class Prefetch(Parameters):
    """The keys kept ready for each peer, and their lifetime there in seconds.

    `low` keys of what is kept ready are there without use: one small batch. With use more follow, up to `high`, which
    is a maximum; 0 means no prefetch.
    """

    low: int = 8
    high: int = 256
    lifetime: float = 300.0

    TAKES: ClassVar = {**dict.fromkeys(("low", "high"), WHOLE._replace(most=MOST_READY)), "lifetime": SECONDS}

    def __post_init__(self) -> None:
        """Raises ConfigError."""
        Parameters.__post_init__(self)
        if self.low > self.high:
            raise ConfigError(f"low: it takes at most high, {self.high}, not {self.low}")


class WaterMarks(NamedTuple):
    """Below `low` keys a refill begins, and it goes up to `high`."""

    low: int
    high: int


def marks(
    prefetch: Prefetch,
    *,
    peak_rate: float,
    latency: float,
    use_rate: float = 0.0,
    outage: float = OUTAGE_S,
    room: int = MOST_READY,
    refill_rate: float | None = None,
    status: KeyStatus | None = None,
    given: int | None = None,
) -> WaterMarks:
    """The marks for keys used at `peak_rate` (keys/s) and drawn within `latency` (s).

    They last for an `outage` (s) of the KME. `room` is what keys of other sizes leave. `refill_rate` (keys/s) is
    the link's own, if known. No more is drawn than the link produces in a lifetime. Nor is more drawn than twice
    the use in that time, plus a small share of what the link produces. `use_rate` (keys/s) is that of the last
    minutes. An idle slow link keeps all of its keys. `given` is for sizes that nobody asked to keep ready: no more
    are drawn ahead than were given before.
    """
    if not prefetch.high:
        return WaterMarks(0, 0)
    lasting = math.ceil(peak_rate * prefetch.lifetime * LIFETIME_SHARE)
    caps = [prefetch.high, max(0, room), max(lasting, prefetch.low)]
    if refill_rate:
        made = refill_rate * prefetch.lifetime
        caps += [max(1, math.ceil(made)), int(IDLE_SHARE * made + 2 * use_rate * prefetch.lifetime)]
    if status is not None and status.max_key_count:
        caps.append(status.max_key_count)
    if given is not None:
        caps.append(given)
    high = min(max(prefetch.low if given is None else 0, math.ceil(peak_rate * (latency + outage))), *caps)
    return WaterMarks(max(-(-high // 2), min(high, math.ceil(peak_rate * latency * 2))), high)


BELIEVED_FOR_S = 60.0
"""Time before a learnt limit is tested again, in seconds."""

USUAL_BATCH = 128
"""Default number of keys in one request."""


class BatchLimit:
    """The limit of keys in a request for one KME and slave SAE; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._learnt: int | None = None
        self._believed_until = 0.0

    def most(self, stated: int | None) -> int:
        """Maximum number of keys in a request now; `stated` is the limit in the KME's status."""
        learnt = self._learnt
        if learnt is not None and self._clock() >= self._believed_until:
            learnt *= 2
        return min((limit for limit in (stated, learnt) if limit), default=USUAL_BATCH)

    def took(self, number: int, *, refused_more: bool) -> None:
        """Learns from a successful request of `number` keys; `refused_more`: after refusing a larger one."""
        if refused_more:
            self._learnt, self._believed_until = number, self._clock() + BELIEVED_FOR_S
        elif self._learnt is not None and number > self._learnt:
            self._learnt = number
