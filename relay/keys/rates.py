"""How fast keys are used and how fast the link makes new ones, from what passes by; and when they will be gone.
Standard: exponentially weighted rates; pure, with an injected clock. Amounts are in bits unless said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


class Rate:
    """Something that happens, per second, averaged over about `window` seconds."""

    def __init__(
        self,
        window: float,
        clock: Callable[[], float],
        *,
        young: bool = True,
        began: float | None = None,
    ) -> None:
        """`young` False takes what was before the beginning (`began`, default now) as nothing, not as unknown."""
        self._window = window
        self._young = young
        self._clock = clock
        self._rate = 0.0
        self._seen = clock()
        self._began = self._seen if began is None else began

    def add(self, amount: float) -> None:
        """`amount` happened now."""
        self._decay()
        self._rate += amount / self._window

    @property
    def per_second(self) -> float:
        """The rate now. Before a whole window has passed, the average since the beginning."""
        self._decay()
        if not self._young:
            return self._rate
        elapsed = self._clock() - self._began
        whole = 1 - math.exp(-max(elapsed, self._window / 20) / self._window)
        return self._rate / whole

    def _decay(self) -> None:
        now = self._clock()
        self._rate *= math.exp((self._seen - now) / self._window)
        self._seen = now


class Peak:
    """The highest rate of late: it rises at once and halves within `window` seconds when less happens."""

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
        """The peak, as far as it is remembered."""
        now = self._clock()
        self._peak *= 0.5 ** ((now - self._seen) / self._window)
        self._seen = now
        return self._peak


class Refill:
    """How many bits a second the link makes, from two looks at the KME's store and what was drawn between."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[float, float] | None = None
        self._drawn = 0.0
        self._rate: float | None = None

    def drawn(self, bits: float) -> None:
        """So many bits left the KME's store through us."""
        self._drawn += bits

    def stored(self, bits: float, *, full: bool) -> None:
        """The KME says that it has so many bits; a store that is full shows nothing about the link."""
        now = self._clock()
        last, self._last = self._last, (now, bits)
        drawn, self._drawn = self._drawn, 0.0
        if last is None or now - last[0] < 0.5:
            if last is not None:  # too near the last look to say anything: keep that one
                self._last, self._drawn = last, drawn
            return
        made = max(0.0, bits - last[1] + drawn) / (now - last[0])
        if full and made <= (self._rate or 0.0):
            return
        self._rate = made if self._rate is None else self._rate + (made - self._rate) / 3

    @property
    def per_second(self) -> float | None:
        """The rate, or None before it is known."""
        return self._rate


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long the bits at hand last: `empty_in` seconds at the present rates, None for "they do not end"."""

    stored: float
    use_rate: float
    refill_rate: float | None

    @property
    def empty_in(self) -> float | None:
        """Seconds until nothing is left."""
        loss = self.use_rate - (self.refill_rate or 0.0)
        return self.stored / loss if loss > 1e-9 else None


@dataclass(frozen=True, slots=True)
class Supply:
    """The answer to "can I have so many octets, and if not, when?".

    `now`: yes. Otherwise `wait` is the expected time in seconds, or None where nobody can say; `why` is for
    a person. `octets` is what it costs in quantum key, 0 where that is not known.
    """

    now: bool
    wait: float | None
    why: str
    octets: int = 0
