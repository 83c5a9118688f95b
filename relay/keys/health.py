"""The health of a KME: breaker, backoff, and the budget that limits retries.
Standard: M. Nygard, "Release It!" (closed, open, half-open); RFC 6298 (smoothed time, variation, limit); full jitter as
in "Exponential Backoff And Jitter" (AWS). Pure, with an injected clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar

from relay.errors import KeyNotFound, KeyUnavailable, KMEExhausted, KMEMisconfigured, KMEUnreachable
from relay.keys.events import Events
from relay.keys.faults import Call, KMERefusedRequest, NotAsked
from relay.keys.takes import SECONDS, WHOLE, Parameters
from relay.keys.types import REAL_TIME, Timing

if TYPE_CHECKING:
    from relay.keys.settings import ClientSettings

log = Events(__name__)


class State(IntEnum):
    """The states; the values are those of the metric qumail_kme_breaker_state."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class BreakerRules(Parameters):
    """`failures` in a row open it for `delay` seconds, doubled with each probe that fails, up to `longest`.

    A configuration fault, which waiting does not cure, opens it at once for `misconfigured` seconds.
    """

    failures: int = 5
    delay: float = 5.0
    longest: float = 15.0
    misconfigured: float = 30.0

    TAKES: ClassVar = {
        "failures": WHOLE._replace(least=1),
        **dict.fromkeys(("delay", "longest", "misconfigured"), SECONDS),
    }


class Breaker:
    """Whether calls may be made: closed, open, or half-open. `name` is for messages."""

    def __init__(self, name: str, rules: BreakerRules = BreakerRules(), timing: Timing = REAL_TIME) -> None:
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
        """Why it is not closed, or ""."""
        return str(self._cause or "")

    def retry_now(self) -> None:
        """Lets the next call probe: the cause may be fixed."""
        self._until = self._timing.clock()

    def check(self) -> None:
        """Raises NotAsked (KMEMisconfigured where that opened the breaker) while no call may be made."""
        if self._cause is None or not (self._probing or self.opens_in > 0):
            return
        wait = "a probe is under way" if self._probing else f"next attempt in {self.opens_in:.1f} s"
        text = f"{self._name}: not asked, {wait}; the last failure was: {self._cause}"
        raise KMEMisconfigured(text) if isinstance(self._cause, KMEMisconfigured) else NotAsked(text, self.opens_in)

    def begin(self, *, again: bool = False) -> bool:
        """Begins a call that `check` allows; returns whether the breaker is not closed.

        The call is then its probe, unless it is a further attempt (`again`) of a call that began before.
        """
        self._probing = self._cause is not None and not again
        return self._cause is not None

    def answered(self) -> None:
        """The call was answered: closes the breaker."""
        if self._cause is not None:
            log.debug("kme_breaker", of=self._name, state="closed")
        self._failed = self._opened = 0
        self._cause, self._probing = None, False

    def given_up(self) -> None:
        """The call ended without a result: the next one may probe."""
        self._probing = False

    def failed(self, error: KeyUnavailable) -> None:
        """The call failed: opens the breaker if it was the probe, or one failure too many."""
        self._failed += 1
        probed, self._probing = self._probing, False
        misconfigured = isinstance(error, KMEMisconfigured)
        opens = self._cause is None and (misconfigured or self._failed >= self._rules.failures)
        if not (probed or opens):
            return
        base = self._rules.misconfigured if misconfigured else self._rules.delay
        delay = min(max(self._rules.longest, base), base * 2 ** min(self._opened, 16))
        self._opened += 1
        # 10 % jitter, so that the relays of a site do not probe in step.
        self._until = self._timing.clock() + delay * (1 + 0.1 * self._timing.chance())
        self._cause = error
        log.debug("kme_breaker", of=self._name, state="open", seconds=round(delay, 1), cause=str(error))


MAX_BACKOFF_S = 30.0
"""Maximum pause between two attempts, in seconds, unless the KME itself asks for a longer one."""


class Backoff:
    """The pause before the next attempt: `retry_delay` (seconds) at first, and doubled each time.

    If `adaptive` it has full jitter, and `retry_delay` is the longest first pause while about half of the attempts
    succeed. It is a quarter of that while nearly all do, four times that while nearly none do.
    """

    def __init__(self, retry_delay: float, timing: Timing = REAL_TIME, *, adaptive: bool = False) -> None:
        self._retry_delay = retry_delay
        self._timing = timing
        self._adaptive = adaptive
        self.success_rate = 1.0
        """Share of recent attempts with an answer, 0 to 1."""

    def seen(self, *, success: bool) -> None:
        """Records the result of an attempt."""
        self.success_rate += (float(success) - self.success_rate) / 8

    def pause(self, attempt: int) -> float:
        """Seconds before attempt number `attempt` + 2 (the first pause has `attempt` 0)."""
        pressure: float = 4.0 ** (1 - 2 * self.success_rate) if self._adaptive else 1.0
        jitter = self._timing.chance() if self._adaptive else 1.0
        return jitter * min(MAX_BACKOFF_S, self._retry_delay * pressure * 2.0 ** min(attempt, 16))


class BurnBudget:
    """An allowance that refills with time: `most` at first and again after an hour without use."""

    def __init__(self, most: int, timing: Timing = REAL_TIME) -> None:
        self._most = float(most)
        self._left = float(most)
        self._timing = timing
        self._seen = timing.clock()

    def spend(self, number: int) -> None:
        """Spends `number`, whether allowed or not."""
        self._left = self.left - number

    def allows(self, number: int) -> bool:
        """Whether `number` more may be spent."""
        return self.left >= number

    @property
    def left(self) -> float:
        """The remaining budget; negative if overspent."""
        now = self._timing.clock()
        self._left = min(self._most, self._left + (now - self._seen) * self._most / 3600)
        self._seen = now
        return self._left


OF_AN_SAE = "SAE "
"""Prefix of the name of a trouble that is of one SAE alone."""


class Health:
    """The health of one KME as one value, which decides about its calls.

    One breaker is for the KME: it counts calls without any reply. A KME may refuse one SAE only, so refusals of
    enc_keys count for the SAE. So do those of status, if they are of what stands before a KME that is away. Any mail
    may cause refusals of dec_keys: they count nowhere.
    """

    def __init__(self, kme: str, settings: ClientSettings) -> None:
        """`kme` names it in messages."""
        timing = settings.timing
        self._kme = kme
        self._timing = timing
        self._not_before: dict[Call, float] = {}
        self.refusal = ""
        """The last failure of dec_keys that was no word about a key; empty after recovery."""
        self._rules = settings.breaker
        self._breaker = Breaker(kme, settings.breaker, timing)
        self._of_saes: dict[tuple[Call, str], Breaker] = {}
        self.backoff = Backoff(settings.retry_delay, timing, adaptive=settings.adaptive)
        self.budget = BurnBudget(settings.burn_budget, timing)
        self.latency: float | None = None
        """Smoothed time of an answer with fresh keys, in seconds (RFC 6298, 2); None before the first."""

    @property
    def breaker(self) -> State:
        """The state of the KME's breaker; a KME that refuses all SAEs is as good as away."""
        of_saes = [
            breaker.state
            for (call, sae), breaker in self._of_saes.items()
            if call is Call.ENC_KEYS or (Call.ENC_KEYS, sae) not in self._of_saes
        ]
        return max(self._breaker.state, min(of_saes, default=State.CLOSED))

    @property
    def score(self) -> float:
        """From 0 (no requests for fresh keys) to 1 (all recent attempts were answered)."""
        worth = {State.CLOSED: 1.0, State.HALF_OPEN: 0.25, State.OPEN: 0.0}
        return worth[self.breaker] * self.backoff.success_rate

    @property
    def troubles(self) -> dict[str, str]:
        """Why calls are blocked at present, or fail; empty when all is well."""
        troubles = {"breaker": self._breaker.cause}
        troubles |= {OF_AN_SAE + sae: breaker.cause for (_, sae), breaker in self._of_saes.items() if breaker.cause}
        troubles[Call.DEC_KEYS] = self.refusal and f"no key of arriving mail is available: {self.refusal}"
        return {name: cause for name, cause in troubles.items() if cause}

    @contextmanager
    def passing(self, call: Call, sae: str, *, again: bool = False) -> Iterator[bool]:
        """Wraps one attempt: yields whether it is the probe of a half-open breaker, and records how it ended.

        A breaker decides about a call at its first attempt: those that follow (`again`) are made. Raises NotAsked
        (KMEMisconfigured where that opened a breaker) when the call may not be made.
        """
        if (wait := self.asks_for_pause(call)) > 0:
            raise NotAsked(f"{self._kme}: {call}: not asked, the KME wants to be left alone for {wait:.1f} s", wait)
        breakers = [self._breaker]
        if call is not Call.DEC_KEYS:
            if (call, sae) not in self._of_saes:
                self._of_saes[call, sae] = Breaker(f"{self._kme}: SAE {sae}", self._rules, self._timing)
            breakers.append(self._of_saes[call, sae])
        for breaker in breakers if not again else ():
            breaker.check()
        try:
            begun = [breaker.begin(again=again) for breaker in breakers]
            yield any(begun)
        except KeyUnavailable as error:
            replied = isinstance(error, KMEExhausted | KeyNotFound | KMERefusedRequest)
            if call is Call.STATUS and error.http_status:
                replied = not isinstance(error, KMEUnreachable)
            for breaker in breakers:
                if replied or (breaker is self._breaker and error.http_status):
                    breaker.answered()
                elif breaker is self._breaker or error.http_status:
                    breaker.failed(error)
                else:
                    breaker.given_up()
            raise
        except BaseException:
            for breaker in breakers:
                breaker.given_up()  # the next call may probe
            raise
        for breaker in breakers:
            breaker.answered()

    def leave_alone(self, call: Call, seconds: float) -> None:
        """Blocks a call after Retry-After."""
        self._not_before[call] = self._timing.clock() + seconds

    def asks_for_pause(self, call: Call) -> float:
        """Seconds that are left of the last Retry-After; 0 or less: none."""
        return self._not_before.get(call, 0.0) - self._timing.clock()

    def retry_all_now(self) -> None:
        """Lets the next calls probe: the causes may be fixed."""
        self._not_before.clear()
        for breaker in (self._breaker, *self._of_saes.values()):
            breaker.retry_now()

    def answered(self, call: Call, code: int, seconds: float) -> None:
        """Records a reply after `seconds`."""
        if code == 200 and call is Call.ENC_KEYS:
            self.latency = seconds if self.latency is None else self.latency + (seconds - self.latency) / 8
        self.backoff.seen(success=code < 500 or call is Call.DEC_KEYS)

    def unanswered(self) -> None:
        """Records an unanswered request."""
        self.backoff.seen(success=False)
