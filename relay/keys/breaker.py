"""The circuit breaker of one KME and call: after repeated failures it is left in peace, then probed.
Standard: the breaker of M. Nygard, "Release It!" (closed, open, half-open); pure, with an injected clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from relay.errors import KeyNotFound, KeyUnavailable, KMEExhausted, KMEMisconfigured
from relay.keys.faults import KMERefusedRequest, NotAsked
from relay.keys.timing import REAL_TIME, Timing


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

    def __init__(self, what: str, rules: BreakerRules = BreakerRules(), timing: Timing = REAL_TIME) -> None:
        """`what` names KME and call for messages."""
        self._what = what
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

    def try_now(self) -> None:
        """What it was opened for may have changed: the next call is a probe."""
        self._until = self._timing.clock()

    @contextmanager
    def passing(self) -> Iterator[bool]:
        """Around one call: gives whether it is the probe of a half-open breaker, and hears how it ended.

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
            wait = "a probe is under way" if self._probing else f"next try in {self.opens_in:.1f} s"
            text = f"{self._what}: not asked, {wait}; the last failure was: {self._cause}"
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
