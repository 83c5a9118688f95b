"""How well a KME answers: the breaker, time limits and backoff that follow it, and the budget that ends retries.
Standard: M. Nygard, "Release It!" (closed, open, half-open); RFC 6298 (smoothed time, variation, limit); full jitter as
in "Exponential Backoff And Jitter" (AWS). Pure, with an injected clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from relay.errors import KeyNotFound, KeyUnavailable, KMEExhausted, KMEMisconfigured
from relay.keys.faults import Call, KMERefusedRequest, NotAsked
from relay.keys.types import REAL_TIME, Timing

if TYPE_CHECKING:
    from relay.keys.settings import ClientSettings


class State(IntEnum):
    """The states; the values are those of the metric qumail_kme_breaker_state."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """`failures` in a row open it for `delay` seconds, doubled with each probe that fails, up to `longest`.

    A configuration fault, which no waiting cures, opens it at once for `misconfigured` seconds.
    """

    failures: int = 5
    delay: float = 5.0
    longest: float = 15.0
    misconfigured: float = 30.0


class Breaker:
    """The state of one KME and call; a call is made inside `passing`."""

    def __init__(self, name: str, rules: BreakerRules = BreakerRules(), timing: Timing = REAL_TIME) -> None:
        """`name` names KME and call for messages."""
        self._name = name
        self._rules = rules
        self._timing = timing
        self._failed = 0
        self._opened = 0
        self._until = 0.0
        self._cause: KeyUnavailable | None = None
        self._probing = False

    @property
    def state(self) -> State:
        """Closed: calls pass; open: none do; half-open: the time is over and one probe may pass."""
        if self._cause is None:
            return State.CLOSED
        return State.OPEN if self.opens_in > 0 else State.HALF_OPEN

    @property
    def opens_in(self) -> float:
        """Seconds until a probe may pass; 0 when closed or half-open."""
        return max(0.0, self._until - self._timing.clock()) if self._cause else 0.0

    @property
    def cause(self) -> str:
        """Why it is not closed, else an empty text."""
        return str(self._cause or "")

    def retry_now(self) -> None:
        """What it was opened for may have changed: the next call is a probe."""
        self._until = self._timing.clock()

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """Wraps one call: yields whether it is the probe of a half-open breaker, and records how it ended.

        Raises NotAsked (KMEMisconfigured where that opened the breaker) when the call may not be made.
        """
        probing = self._admit()
        try:
            yield probing
        except (KMEExhausted, KeyNotFound, KMERefusedRequest):
            self._answered()  # the KME is well, it only says no
            raise
        except KeyUnavailable as error:
            self._failed_with(error)
            raise
        except BaseException:
            self._probing = False  # cancelled: nothing is known, and the next call may probe
            raise
        else:
            self._answered()

    def _admit(self) -> bool:
        if self._cause is None:
            return False
        if self._probing or self.opens_in > 0:
            wait = "a probe is under way" if self._probing else f"next attempt in {self.opens_in:.1f} s"
            text = f"{self._name}: not asked, {wait}; the last failure was: {self._cause}"
            if isinstance(self._cause, KMEMisconfigured):
                raise KMEMisconfigured(text)
            raise NotAsked(text, self.opens_in)
        self._probing = True
        return True

    def _answered(self) -> None:
        self._failed = self._opened = 0
        self._cause, self._probing = None, False

    def _failed_with(self, error: KeyUnavailable) -> None:
        self._failed += 1
        probed, self._probing = self._probing, False
        misconfigured = isinstance(error, KMEMisconfigured)
        if not (probed or misconfigured or self._failed >= self._rules.failures):
            return
        base = self._rules.misconfigured if misconfigured else self._rules.delay
        delay = min(max(self._rules.longest, base), base * 2 ** min(self._opened, 16))
        self._opened += 1
        # A tenth of jitter, so that the relays of a site do not probe in step.
        self._until = self._timing.clock() + delay * (1 + 0.1 * self._timing.chance())
        self._cause = error


MAX_BACKOFF_S = 30.0
"""Maximum pause between two attempts, in seconds, unless the KME itself asks for a longer one."""


LEAST_USUAL_S = 1.0
"""Minimum time before a KME counts as late, in seconds."""


class TimeLimit:
    """How long an answer is waited for: at most `longest`, less for a KME that was seen to be quick.

    The limit is four times what RFC 6298 would give, but no less than `shortest`: a limit that is too short
    burns keys. After an expiry it doubles until an answer comes. Before the first answer it is `first`, by default
    `longest`. Where it is not `early` the limit is always `longest`. All in seconds.
    """

    def __init__(self, longest: float, shortest: float, first: float | None = None, *, early: bool = True) -> None:
        self._longest = longest
        self._shortest = min(shortest, longest)
        self._early = early
        self._first = longest if first is None else min(first, longest)
        self.latency: float | None = None
        """The smoothed time an answer takes, in seconds; None before the first."""
        self._variation = 0.0
        self._doublings = 0

    @property
    def seconds(self) -> float:
        """The limit for the next attempt."""
        if not self._early:
            return self._longest
        limit = self._first
        if self.latency is not None:
            limit = max(self._shortest, 4 * (self.latency + 4 * self._variation))
        return min(self._longest, limit * 2.0 ** min(self._doublings, 10))

    @property
    def usual(self) -> float:
        """Seconds within which an answer usually comes: what RFC 6298 gives, or `shortest` before the first answer."""
        if self.latency is None:
            return self._shortest
        return min(self._longest, max(LEAST_USUAL_S, self.latency + 4 * self._variation))

    def answered(self, seconds: float) -> None:
        """An answer took this long."""
        self._doublings = 0
        if self.latency is None:
            self.latency, self._variation = seconds, seconds / 2
            return
        self._variation += (abs(self.latency - seconds) - self._variation) / 4
        self.latency += (seconds - self.latency) / 8

    def expired(self) -> None:
        """No answer came within the limit."""
        self._doublings += 1


class Backoff:
    """The pause before the next attempt: `retry_delay` (seconds) at first, and doubled each time.

    Where it is `adaptive` it is fully jittered, and `retry_delay` is the longest first pause while about half of the
    attempts succeed. It is a quarter of it while nearly all do, four times it while nearly none do.
    """

    def __init__(self, retry_delay: float, timing: Timing = REAL_TIME, *, adaptive: bool = True) -> None:
        self._retry_delay = retry_delay
        self._timing = timing
        self._adaptive = adaptive
        self.success_rate = 1.0
        """The share of recent attempts that got an answer, 0 to 1."""

    def seen(self, *, success: bool) -> None:
        """One more attempt came to its end."""
        self.success_rate += (float(success) - self.success_rate) / 8

    def pause(self, attempt: int) -> float:
        """Seconds before attempt number `attempt` + 2 (the first pause has `attempt` 0)."""
        pressure: float = 4.0 ** (1 - 2 * self.success_rate) if self._adaptive else 1.0
        jitter = self._timing.chance() if self._adaptive else 1.0
        return jitter * min(MAX_BACKOFF_S, self._retry_delay * pressure * 2.0 ** min(attempt, 16))


SAID_AGAIN_S = 3600.0
"""Interval at which replies of one HTTP status without keys are logged again, in seconds."""


class BurnBudget:
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


class Health:
    """All that is known of how well one KME answers, as one value; what a call may do follows from it."""

    def __init__(self, kme: str, settings: ClientSettings) -> None:
        """`kme` names it in messages."""
        timing, timeout, shortest = settings.timing, settings.timeout, settings.shortest_timeout
        self._kme = kme
        self._timing = timing
        self._not_before: dict[Call, float] = {}
        self._refused_at: dict[int, float] = {}
        self.refusal = ""
        """What the KME last said to dec_keys where that is about no key, or that it is silent; empty since then."""
        self.silent_calls = 0
        """How many calls for received keys, each begun after the one before had failed, were not answered."""
        self._silent_at = float("-inf")
        self.breakers = {call: Breaker(f"{kme}: {call}", settings.breaker, timing) for call in Call}
        self.backoff = Backoff(settings.retry_delay, timing, adaptive=settings.adaptive)
        self.budget = BurnBudget(settings.burn_budget, timing)
        # A status costs no key, so nothing is lost by giving it up early; to give up enc_keys early would burn some.
        self.limits = {
            Call.STATUS: TimeLimit(timeout, shortest, shortest),
            Call.ENC_KEYS: TimeLimit(timeout, shortest, early=False),
            Call.DEC_KEYS: TimeLimit(timeout, shortest),
        }

    @property
    def score(self) -> float:
        """From 0 (fresh keys are not even asked for) to 1 (all recent attempts got an answer)."""
        worth = {State.CLOSED: 1.0, State.HALF_OPEN: 0.25, State.OPEN: 0.0}
        return worth[self.breakers[Call.ENC_KEYS].state] * self.backoff.success_rate

    @property
    def troubles(self) -> dict[str, str]:
        """Why calls are not made at present, or fail, by call; empty when all is well."""
        refused = {str(Call.DEC_KEYS): f"no key of arriving mail is available: {self.refusal}"} if self.refusal else {}
        return {str(call): breaker.cause for call, breaker in self.breakers.items() if breaker.cause} | refused

    def refused(self, code: int, cause: str) -> bool:
        """To dec_keys came a reply that says nothing of keys; gives whether it was not said for an hour."""
        self.refusal = cause
        now = self._timing.clock()
        if now - self._refused_at.get(code, float("-inf")) < SAID_AGAIN_S:
            return False
        self._refused_at[code] = now
        return True

    def passing(self, call: Call) -> AbstractContextManager[bool]:
        """Wraps one call: yields whether it is the probe of a half-open breaker, and records how it ended."""
        wait = self._not_before.get(call, 0.0) - self._timing.clock()
        if wait > 0:
            raise NotAsked(f"{self._kme}: {call}: not asked, the KME wants to be left alone for {wait:.1f} s", wait)
        return self.breakers[call].passing()

    def leave_alone(self, call: Call, seconds: float) -> None:
        """The KME has asked for that."""
        self._not_before[call] = self._timing.clock() + seconds

    def retry_all_now(self) -> None:
        """What breakers were opened for may have changed: the next calls are probes."""
        for breaker in self.breakers.values():
            breaker.retry_now()

    def answered(self, call: Call, code: int, seconds: float) -> None:
        """A reply came after `seconds`."""
        if call is Call.DEC_KEYS:
            self.silent_calls = 0
        # A refusal is quick, and anybody who sends forged mail can have dec_keys refused as often as they like.
        if code == 200:
            self.limits[call].answered(seconds)
        self.backoff.seen(success=code < 500 or call is Call.DEC_KEYS)

    def unanswered(self, call: Call, started: float, *, in_time: bool) -> None:
        """No reply came to a request of that time; `in_time` False: it was we who stopped waiting."""
        if call is Call.DEC_KEYS and started >= self._silent_at:  # of those under way together one counts
            self.silent_calls += 1
            self._silent_at = self._timing.clock()
        if not in_time:
            self.limits[call].expired()
        self.backoff.seen(success=False)
