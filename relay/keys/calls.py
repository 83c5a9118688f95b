"""One call to a KME from beginning to end: breaker, time limit, the try, what it meant, and whether to try again.
Standard: ETSI GS QKD 014 V1.1.1 for the calls; limits and pauses follow what the KME does, where that is wanted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from relay.errors import (
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
    StoreUnavailable,
)
from relay.keys.accounts import KeyMetrics
from relay.keys.events import Events
from relay.keys.faults import (
    AmbiguousReply,
    Call,
    ErrorRule,
    Fault,
    KMEBusy,
    KMERefusedRequest,
    KMEUnanswered,
    NotAsked,
    RepliedNotFound,
    classify,
    error_of,
    ruled,
)
from relay.keys.health import MAX_BACKOFF_S, Backoff, Breaker, BreakerRules, TimeLimit
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer, Sender, Transport
from relay.keys.replies import text_of_error
from relay.keys.types import Timing

log = Events(__name__)

Result = TypeVar("Result")

_GATEWAY_CODES = (502, 504)
"""A gateway's word that the KME behind it did not answer it; the KME may have done what was asked."""

WELL_FOR_S = 1.0
"""So long after an answer to status, a reply to dec_keys is about keys: status is asked for once a second at most."""

RENEW_EVERY_S = 1.0
"""Certificate files are looked at no more often than this."""

_OUTCOMES: dict[type[KeyUnavailable], str] = {
    KMEUnreachable: "unreachable",
    KMEUnanswered: "unreachable",
    KMEBusy: "busy",
    KMEExhausted: "exhausted",
    KMERefusedRequest: "bad_request",
    KMEMisconfigured: "misconfigured",
    KMEBadReply: "bad_reply",
    RepliedNotFound: "not_found",
    AmbiguousReply: "ambiguous",
}
"""The metric's label for how a request ended."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often a KME is asked; times in seconds.

    `retry_attempts` are the tries after the first, `retry_delay` is the first pause, and `timeout` what one try may
    take. Where they are `adaptive`, all follow what the KME does; `min_timeout` is then the least time for a try.
    """

    retry_attempts: int = 3
    retry_delay: float = 1.0
    timeout: float = 10.0
    min_timeout: float = 2.0
    adaptive: bool = False


class Calls:
    """Calls to one KME. What a reply means is said by `errors` first and by faults.py then."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        *,
        patience: Patience,
        breaker: BreakerRules,
        errors: tuple[ErrorRule, ...],
        timing: Timing,
        metrics: KeyMetrics,
    ) -> None:
        self.name = name
        self._transport = transport
        self._patience = patience
        self._errors = errors
        self._timing = timing
        self._metrics = metrics
        self.receive: Sender = transport.send
        """Sends the requests for received keys."""
        self._backoff = Backoff(patience.retry_delay, timing, adaptive=patience.adaptive)
        self._not_before: dict[Call, float] = {}
        self._settling = asyncio.Lock()
        self._well_at = float("-inf")
        self._renewed_at = float("-inf")
        self.breakers = {call: Breaker(f"{name}: {call}", breaker, timing) for call in Call}
        shortest = patience.min_timeout if patience.adaptive else patience.timeout
        # A status costs no key, so nothing is lost by giving it up early.
        self.limits = {
            call: TimeLimit(patience.timeout, shortest, shortest if call is Call.STATUS else None) for call in Call
        }

    @property
    def success_rate(self) -> float:
        """The share of recent tries that got an answer, 0 to 1."""
        return self._backoff.success_rate

    async def ask(
        self,
        call: Call,
        request: HTTPRequest,
        read: Callable[[bytes], Result],
        *,
        patient: bool = True,
        unanswered: Callable[[], bool] = lambda: True,
        status: Callable[[], Awaitable[object]] | None = None,
        short: Callable[[], Awaitable[bool]] | None = None,
    ) -> Result:
        """What `read` makes of the reply's body. Raises KeyUnavailable, when no try is left or none would help.

        Raises StoreUnavailable where received keys could not be kept now, and the KME was not asked.

        `unanswered` is called when the KME may have carried out a request whose answer did not come, and says
        whether trying again is allowed. `status` asks the KME for its status: first when the breaker is half-open,
        and after a reply to dec_keys that is about the key or about the KME. `short` asks whether the KME has fewer
        keys than are wanted, after a reply to enc_keys that may mean that.
        """
        self.renew_certificates()
        attempts = self._patience.retry_attempts if patient else 0
        attempt = 0
        while True:
            self._keep_away(call)
            try:
                with self.breakers[call].passing() as probing:
                    if probing and status is not None:
                        await self._probe(status)
                    try:
                        result = await self._try(call, request, read, unanswered)
                    except AmbiguousReply as reply:
                        raise await self._settled(reply, status, short) from reply
                    if probing:
                        self._try_all_now()
                    return result
            except NotAsked:
                raise
            except KMEUnreachable as error:
                if isinstance(error, KMEBusy) and error.retry_after:
                    self._not_before[call] = self._timing.clock() + error.retry_after
                again = not isinstance(error, KMEUnanswered) or unanswered()
                pause = self._pause(attempt, error)
                if attempt >= attempts or not again or pause > MAX_BACKOFF_S:
                    raise
                cause = str(error)
            attempt += 1
            self._metrics.retries.labels(self.name, call).inc()
            log.warning(
                "kme_retry", kme=self.name, call=str(call), cause=cause, attempt=attempt, pause_s=round(pause, 3)
            )
            await self._timing.sleep(pause)

    def renew_certificates(self, *, anyway: bool = False) -> None:
        """Takes certificate files that have changed, or `anyway`; then no breaker keeps us from the KME."""
        now = self._timing.clock()
        if not anyway and now - self._renewed_at < RENEW_EVERY_S:
            return
        self._renewed_at = now
        if self._transport.renew(self.name, anyway=anyway):
            self._try_all_now()

    def _try_all_now(self) -> None:
        for breaker in self.breakers.values():
            breaker.try_now()

    async def _try(
        self, call: Call, request: HTTPRequest, read: Callable[[bytes], Result], unanswered: Callable[[], bool]
    ) -> Result:
        """One request and what its answer means, counted by outcome."""
        sent: list[bool] = []
        outcome = "cancelled"
        try:
            reply = await self._send(call, request, lambda: sent.append(True))
            result = self._result(call, reply, read)
            outcome = "ok"
            return result
        except KeyUnavailable as error:
            outcome = _OUTCOMES.get(type(error), "unreachable")
            raise
        except StoreUnavailable:
            outcome = "not_asked"
            raise
        except asyncio.CancelledError:
            if sent:
                unanswered()
            raise
        finally:
            self._metrics.requests.labels(self.name, call, outcome).inc()

    async def _send(self, call: Call, request: HTTPRequest, on_sent: Callable[[], None]) -> HTTPReply:
        """The reply, within the adaptive time limit, which learns from it. Raises KeyUnavailable."""
        limit = self.limits[call]
        started = self._timing.clock()
        try:
            send = self.receive if call is Call.DEC_KEYS and request.key_IDs else self._transport.send
            reply = await send(request, limit.seconds, on_sent)
        except NoAnswer as error:
            if not error.in_time:
                limit.expired()
            self._backoff.seen(success=False)
            cause = f"{self.name}: {call}: {error}"
            if error.sent:
                raise KMEUnanswered(cause) from error
            raise error_of(error.fault, cause) from error
        elapsed = self._timing.clock() - started
        # A refusal is quick, and whoever sends forged mail can have dec_keys refused as often as they like.
        if reply.code == 200:
            limit.answered(elapsed)
        self._backoff.seen(success=reply.code < 500 or call is Call.DEC_KEYS)
        self._metrics.seconds.labels(self.name, call).observe(elapsed)
        return reply

    def _result(self, call: Call, reply: HTTPReply, read: Callable[[bytes], Result]) -> Result:
        """What a reply brings. Raises KeyUnavailable: AmbiguousReply unless the reply is clear."""
        message = "" if reply.code == 200 else text_of_error(reply.body)
        rule = ruled(call, reply.code, message, self._errors)
        try:
            if reply.code == 200:
                return read(reply.body)
            raise self._refusal(call, reply, message, rule or classify(call, reply.code, message))
        except KeyUnavailable as error:
            if rule is not None or not _unclear(call, reply.code, error):
                raise
            # The body of a 200 may hold keys, which belong into no error.
            raise AmbiguousReply(error, b"" if reply.code == 200 else reply.body) from error

    def _refusal(self, call: Call, reply: HTTPReply, message: str, fault: Fault) -> KeyUnavailable:
        cause = f"{self.name}: {call}: HTTP {reply.code}: {message}"
        if fault is Fault.NOT_FOUND:
            return RepliedNotFound(cause, reply.body)
        if fault is Fault.UNREACHABLE and reply.code in _GATEWAY_CODES:
            return KMEUnanswered(cause)
        return error_of(fault, cause, reply.retry_after)

    def _keep_away(self, call: Call) -> None:
        """Raises NotAsked while the time that the KME gave in Retry-After is not over."""
        wait = self._not_before.get(call, 0.0) - self._timing.clock()
        if wait > 0:
            raise NotAsked(f"{self.name}: {call}: not asked, the KME wants to be left alone for {wait:.1f} s", wait)

    def _pause(self, attempt: int, error: KMEUnreachable) -> float:
        asked = error.retry_after if isinstance(error, KMEBusy) else None
        return max(asked or 0.0, self._backoff.pause(attempt))

    async def _probe(self, status: Callable[[], Awaitable[object]]) -> None:
        """Asks for the status. Only silence, or a fault of the KME itself, fails: any answer shows that it is there."""
        try:
            await status()
        except (KMEMisconfigured, KMEBadReply, KMEExhausted, KeyNotFound) as error:
            log.info("kme_probe", kme=self.name, answer=str(error))
        except KMEUnanswered as error:
            # What the call itself would have cost was not asked for.
            raise KMEUnreachable(str(error)) from error
        self._well_at = self._timing.clock()

    async def _settled(
        self,
        reply: AmbiguousReply,
        status: Callable[[], Awaitable[object]] | None,
        short: Callable[[], Awaitable[bool]] | None,
    ) -> KeyUnavailable:
        """What the reply meant: a KME that answers status is well, and has spoken of the keys that it was asked for."""
        if short is not None:
            return KMEExhausted(str(reply)) if await short() else reply.meant
        if status is None:
            return reply.meant
        async with self._settling:
            if self._timing.clock() - self._well_at >= WELL_FOR_S:
                try:
                    await self._probe(status)
                except KMEUnreachable as silence:
                    log.warning("kme_is_not_well", kme=self.name, cause=str(reply), status=str(silence))
                    return reply.meant
        return RepliedNotFound(str(reply), reply.body)


def _unclear(call: Call, code: int, error: KeyUnavailable) -> bool:
    """Whether only the status can tell what a reply meant, which was read as `error`.

    To dec_keys: whether it is about the key or about the KME. To enc_keys: whether the KME has too few keys now.
    """
    if call is Call.DEC_KEYS:
        return code != 429 and not isinstance(error, KeyNotFound | KMERefusedRequest)
    about_us_or_later = code in (200, 401) or isinstance(error, KMEUnanswered | KMEBusy | KMEExhausted)
    return call is Call.ENC_KEYS and not about_us_or_later
