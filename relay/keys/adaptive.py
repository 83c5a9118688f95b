"""Time limits and backoff that follow what a KME was seen to do, and the budgets that end a row of retries.
Standard: RFC 6298 (smoothed time, variation, limit); full jitter as in "Exponential Backoff And Jitter" (AWS).
"""

from __future__ import annotations

from relay.keys.timing import REAL_TIME, Timing

MAX_BACKOFF_S = 30.0
"""No single pause between two tries is longer, unless the KME itself asks for it."""


LEAST_USUAL_S = 1.0
"""No KME is called late before this time, however quick it was so far."""


class TimeLimit:
    """How long an answer is waited for: at most `longest`, less for a KME that was seen to be quick.

    The limit is four times what RFC 6298 would give, but no less than `shortest`: a limit that is too short
    burns keys. After an expiry it doubles until an answer comes. Before the first answer it is `first`, by default
    `longest`. All in seconds.
    """

    def __init__(self, longest: float, shortest: float, first: float | None = None) -> None:
        self._longest = longest
        self._shortest = min(shortest, longest)
        self._first = longest if first is None else min(first, longest)
        self._smoothed: float | None = None
        self._variation = 0.0
        self._doublings = 0

    @property
    def latency(self) -> float | None:
        """The smoothed time an answer takes, in seconds; None before the first."""
        return self._smoothed

    @property
    def seconds(self) -> float:
        """The limit for the next try."""
        limit = self._first
        if self._smoothed is not None:
            limit = max(self._shortest, 4 * (self._smoothed + 4 * self._variation))
        return min(self._longest, limit * 2.0 ** min(self._doublings, 10))

    @property
    def usual(self) -> float:
        """Seconds within which an answer usually comes: what RFC 6298 gives, or `shortest` before the first answer."""
        if self._smoothed is None:
            return self._shortest
        return min(self._longest, max(LEAST_USUAL_S, self._smoothed + 4 * self._variation))

    def answered(self, seconds: float) -> None:
        """An answer took this long."""
        self._doublings = 0
        if self._smoothed is None:
            self._smoothed, self._variation = seconds, seconds / 2
            return
        self._variation += (abs(self._smoothed - seconds) - self._variation) / 4
        self._smoothed += (seconds - self._smoothed) / 8

    def expired(self) -> None:
        """No answer came within the limit."""
        self._doublings += 1


class Backoff:
    """The pause before the next try: `retry_delay` (seconds) at first, and doubled each time.

    Where it is `adaptive` it is fully jittered, and `retry_delay` is the longest first pause while about half of the
    tries succeed; a quarter of it while nearly all do, four times while nearly none do.
    """

    def __init__(self, retry_delay: float, timing: Timing = REAL_TIME, *, adaptive: bool = True) -> None:
        self._retry_delay = retry_delay
        self._timing = timing
        self._adaptive = adaptive
        self._success = 1.0

    @property
    def success_rate(self) -> float:
        """The share of recent tries that got an answer, 0 to 1."""
        return self._success

    def seen(self, *, success: bool) -> None:
        """One more try came to its end."""
        self._success += (float(success) - self._success) / 8

    def pause(self, attempt: int) -> float:
        """Seconds before try number `attempt` + 2 (the first pause has `attempt` 0)."""
        pressure: float = 4.0 ** (1 - 2 * self._success) if self._adaptive else 1.0
        jitter = self._timing.chance() if self._adaptive else 1.0
        return jitter * min(MAX_BACKOFF_S, self._retry_delay * pressure * 2.0 ** min(attempt, 16))


class Budget:
    """An allowance that refills with time: `most` at first and again after an hour without use."""

    def __init__(self, most: int, timing: Timing = REAL_TIME) -> None:
        self._most = float(most)
        self._left = float(most)
        self._timing = timing
        self._seen = timing.clock()

    def spend(self, number: int) -> None:
        """`number` are gone, whether they were allowed or not."""
        self._left = self.left - number

    def allows(self, number: int) -> bool:
        """Whether `number` more may go."""
        return self.left >= number

    @property
    def left(self) -> float:
        """What is left now; below 0 when more went than was allowed."""
        now = self._timing.clock()
        self._left = min(self._most, self._left + (now - self._seen) * self._most / 3600)
        self._seen = now
        return self._left
