"""One call to a KME from beginning to end: breaker, timeout, and a single sending.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (HTTPS, mutual authentication), as in Cisco SKIP.

What the reply means (faults.py) decides whether the call is tried again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, Unpack

from relay.counting import key_metrics as metrics
from relay.errors import (
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
    StoreUnavailable,
)
from relay.keys.counts import Numbers
from relay.keys.events import Events
from relay.keys.faults import (
    FAILED_CODE,
    GATEWAY_CODES,
    UNAUTHORIZED,
    AmbiguousReply,
    Call,
    ErrorRule,
    KMEBusy,
    KMEFailed,
    KMEFault,
    KMERefusedRequest,
    KMEUnanswered,
    NotAsked,
    RepliedNotFound,
    classify,
    error_of,
    outcome_of,
    ruled,
    says_shortage,
    says_why,
    unclear,
)
from relay.keys.health import MAX_BACKOFF_S, Health
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer, Sender
from relay.keys.late import KeyRequests
from relay.keys.renewal import Renewal
from relay.keys.replies import KeyStatus, text_of_error
from relay.keys.settings import ClientOptions, ClientSettings, checked_url, without_password
from relay.keys.stock import Accounts
from relay.keys.types import SAEID, Key
from relay.runtime.aio import off_loop

log = Events(__name__)

Result = TypeVar("Result")

SHORTAGE = "shortage of keys"
"""The name of a refusal for too few keys in a cause, whatever its code and text."""

SILENT_CALLS = 2
"""Number of calls for received keys in a row without an answer after which the KME is reported."""

WELL_FOR_S = 1.0
"""Time for which a status reply proves the KME healthy, in seconds: dec_keys replies are then about keys."""


@dataclass(frozen=True, slots=True)
class Question(Generic[Result]):
    """A request to a KME, and `read`, which parses the body of its reply.

    `spends` is the number of keys burnt if the KME may have carried out a request without an answer. Such a request is
    retried within the burn budget. `bits` is the amount requested, to be compared with the status.
    """

    call: Call
    request: HTTPRequest
    read: Callable[[bytes | bytearray], Awaitable[Result]]
    spends: int = 0
    bits: int = 0


def _unnoticed() -> None:
    """Callback that does nothing."""


class Asker(ABC):
    """The base of clients of one KME, independent of the protocol."""

    usual_errors: tuple[ErrorRule, ...] = ()
    """Protocol-specific meanings of replies that differ from faults.py; the setting `errors` takes precedence."""

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """`url` is https and may carry a path prefix; `options` are the fields of ClientSettings.

        Raises ConfigError for another scheme than https, or unusable files.
        """
        # Imported here, so that only commands that ask a KME load aiohttp.
        from relay.keys.transport import Transport

        self.url = checked_url(url)
        self.settings = settings = ClientSettings(**options)
        self.retry_attempts, self.retry_delay = settings.retry_attempts, settings.retry_delay
        self.timeout = settings.timeout
        self.pool_connections, self.pool_maxsize = settings.pool_connections, settings.pool_maxsize
        self.name = settings.name or without_password(self.url)
        self._timing = settings.timing
        self.board = settings.board or Numbers()
        self.accounts = Accounts(self.name, self.board)
        """The accounts of fresh keys; only keys lost in transit are entered here."""
        self.transport = Transport(
            self.url,
            settings.read_tls(),
            ahead=settings.pool_connections,
            most=settings.pool_maxsize,
            keep_alive=settings.quirks.keep_alive and not self.one_by_one,
            connect=settings.timeout / 2,
        )
        self.state = Health(self.name, settings)
        """The health of the KME."""
        self.time_limits = self.state.limits
        self._receive: Sender = self.transport.send
        self._errors = (*settings.quirks.errors, *self.usual_errors)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns: dict[str, asyncio.Semaphore] = {}
        self.take_in: Callable[[str, int, list[Key]], None]
        """Callback for late keys: slave SAE, size in bits, keys."""
        self.key_requests = KeyRequests(self, most_late=settings.pool_maxsize // 2)
        self.renewal = Renewal(self)
        """Renewal of the certificate files."""
        self._well_at = float("-inf")

    @abstractmethod
    async def check_key_status(self, slave_sae_id: SAEID, *, patient: bool = True) -> KeyStatus:
        """The KME's stored keys for this pair of SAEs, and its limits. Raises KeyUnavailable."""

    @property
    def one_by_one(self) -> bool:
        """Whether keys are requested with GET: one request for each, which must not be resent silently."""
        return self.settings.quirks.method == "GET"

    @abstractmethod
    def status_request(self, slave_sae: str) -> HTTPRequest:
        """The request for the status."""

    def bind(self) -> None:
        """Binds the client to the running event loop, until it is closed or that loop is.

        Raises RuntimeError if another loop uses it: a caller there would wait for ever.
        """
        if self._loop is (loop := asyncio.get_running_loop()):
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError(
                f"{self.name}: this client is in use in another event loop or thread: close it there first, or make "
                "one of your own for this loop (OptimizedKMClient, CachedKMClient)"
            )
        self._loop = loop
        self._turns.clear()  # a lock belongs to one loop

    def renew_certificates(self, *, anyway: bool = False) -> None:
        """Reloads changed certificate files, or all with `anyway`; then resets the breakers.

        Each call also checks them.
        """
        self.renewal.look(anyway=anyway)

    def tries_again(self, failures: int, number: int) -> bool:
        """Whether to retry a request for `number` keys after this number of `failures`; it may burn them."""
        return failures < self.retry_attempts and self.state.budget.allows(number)

    def burn(self, sae: str, number: int, cause: str) -> None:
        """Records keys lost in transit, and charges the burn budget."""
        if number:
            self.accounts.issued_and_burnt(sae, number, cause)
            self.state.budget.spend(number)
            log.warning("keys_burnt", kme=self.name, slave_sae=sae, number=number, cause=cause)

    def _turn(self, purpose: str, at_once: int) -> asyncio.Semaphore:
        """Returns the semaphore that bounds concurrent `purpose`."""
        return self._turns.setdefault(purpose, asyncio.Semaphore(at_once))

    async def _ask(self, question: Question[Result], *, patient: bool = True) -> Result:
        """The result of the reply. Raises KeyUnavailable when no attempt is left or none would help.

        Raises StoreUnavailable if received keys could not be stored now; the KME is then not asked.
        """
        self.bind()
        call, sae, spends = question.call, question.request.sae, question.spends
        await self.renewal.before_a_call(sae)
        attempt = 0
        while True:
            try:
                with self.state.passing(call) as probing:
                    if probing and call is not Call.STATUS:
                        await self._probe(sae)
                    try:
                        result = await self._try(question)
                    except AmbiguousReply as reply:
                        error = await self._settled(reply, sae, question.bits)
                        if isinstance(error, KMEFailed):
                            self.burn(sae, spends, "the KME failed")
                        raise error from reply
                    if probing:
                        self.state.retry_all_now()
                    return result
            except NotAsked:
                raise
            except KMEUnreachable as error:
                if question.request.key_IDs and isinstance(error, KMEUnanswered):
                    await self._note_silence(sae)
                asked = (error.retry_after if isinstance(error, KMEBusy) else None) or 0.0
                if asked and call is not Call.DEC_KEYS:  # any mail can cause refusals of dec_keys
                    self.state.leave_alone(call, asked)
                again = not (spends and isinstance(error, KMEUnanswered)) or self.state.budget.allows(spends)
                if isinstance(error, KMEFailed) and spends > 1:
                    raise  # the caller then requests fewer
                pause = max(asked, self.state.backoff.pause(attempt))
                if not patient or attempt >= self.retry_attempts or not again or pause > MAX_BACKOFF_S:
                    raise
                cause = str(error)
            attempt += 1
            self.board.add(metrics.KME_RETRIES, self.name, call)
            log.warning(
                "kme_retry", kme=self.name, call=str(call), cause=cause, attempt=attempt, pause_s=round(pause, 3)
            )
            await self._timing.sleep(pause)

    async def _try(self, question: Question[Result]) -> Result:
        """One attempt within the timeout, which adapts to it; counted by outcome."""
        call, request = question.call, question.request
        outcome, limit = "cancelled", self.state.limits[call].seconds
        started = self._timing.clock()
        try:
            if question.spends:
                reply = await self.key_requests.reply(question, limit)
            else:
                send = self._receive if call is Call.DEC_KEYS and request.key_IDs else self.transport.send
                reply = await send(request, limit, _unnoticed)
            elapsed = self._timing.clock() - started
            self.state.answered(call, reply.code, elapsed)
            self.board.spread(metrics.KME_SECONDS, self.name, call).observe(elapsed)
            try:
                result = await self._result(question, reply)
            finally:
                if reply.code == 200:  # an error text is parsed later, and has no keys
                    reply.wipe()
            outcome = "ok"
            if call is Call.DEC_KEYS:
                self.state.refusal = ""
            return result
        except NoAnswer as error:
            self.state.unanswered(call, started, in_time=error.in_time)
            cause = f"{self.name}: {call}: {error}"
            trouble = KMEUnanswered(cause) if error.sent else error_of(error.fault, cause)
            outcome = outcome_of(trouble)
            raise trouble from error
        except KeyUnavailable as error:
            outcome = outcome_of(error)
            if isinstance(error, KMEUnanswered):  # reported by a gateway
                self.burn(request.sae, question.spends, "no answer")
            if call is Call.DEC_KEYS and request.key_IDs:
                self._note_refusal(reply, error)
            raise
        except StoreUnavailable:
            outcome = "not_asked"
            raise
        finally:
            self.board.add(metrics.KME_REQUESTS, self.name, call, outcome)

    def _note_refusal(self, reply: HTTPReply, error: KeyUnavailable) -> None:
        """Reports dec_keys refusals that are not about keys: else a broken KME or proxy looks like forged mail."""
        # A web server answers so without a client certificate (nginx), or to requests that it does not recognise.
        of_a_page = isinstance(error, KMERefusedRequest) and reply.body.lstrip().startswith(b"<")
        about_keys = isinstance(error, KeyNotFound | KMERefusedRequest | KMEBusy) and reply.code not in UNAUTHORIZED
        if about_keys and not of_a_page:
            self.state.refusal = "" if isinstance(error, KeyNotFound) else self.state.refusal
            return
        self.board.add(metrics.RECEIVED_KEYS_REFUSED, self.name)
        if self.state.refused(reply.code, str(error)):
            log.warning("received_keys_refused", kme=self.name, cause=str(error))

    async def _note_silence(self, sae: str) -> None:
        """Reports a KME that never answers dec_keys although it answers status calls."""
        if self.state.silent_calls < SILENT_CALLS:
            return
        try:
            await self._probe(sae)
        except KMEUnreachable:
            return
        calls = f"{self.state.silent_calls} calls in a row were not answered, and its status is"
        cause = f"{self.name}: {Call.DEC_KEYS}: {calls}: the KME, or a proxy in front of it, hangs there"
        self.board.add(metrics.RECEIVED_KEYS_REFUSED, self.name)
        if self.state.refused(0, cause):
            log.warning("received_keys_refused", kme=self.name, cause=cause)

    async def _result(self, question: Question[Result], reply: HTTPReply) -> Result:
        """The result of a reply. Raises KeyUnavailable: AmbiguousReply if the reply is not clear."""
        call, request = question.call, question.request
        number = max(question.spends, len(request.key_IDs))
        said, why = "", True
        if reply.code != 200:
            said, of_the_kme = await off_loop(len(reply.body), text_of_error, reply.body, number)
            why = says_why(reply.code, said, of_the_kme=of_the_kme)
        too_large = f"the reply is larger than {request.limit(reply.code)} bytes, more than was asked for"
        message = said if reply.whole else too_large
        rule = ruled(call, reply.code, message, self._errors) if self._errors else None
        try:
            if reply.code != 200:
                raise self._refusal(call, reply, message, rule or classify(call, reply.code, message, why=why))
            if not reply.whole:
                self.burn(request.sae, question.spends, "reply not believed")
                raise KMEBadReply(f"{self.name}: {call}: {message}")
            return await question.read(reply.body)
        except KeyUnavailable as error:
            if rule is not None or not unclear(call, reply.code, message, error):
                raise
            # The body of a 200 may hold keys, which must not get into errors.
            otherwise = None
            if isinstance(error, KMEExhausted):  # inferred from the code alone
                fault = KMEFault.UNREACHABLE if reply.code >= 500 else KMEFault.BAD_REQUEST
                otherwise = error_of(fault, str(error), reply.retry_after)
            raise AmbiguousReply(error, b"" if reply.code == 200 else reply.body, otherwise) from error

    def _refusal(self, call: Call, reply: HTTPReply, message: str, fault: KMEFault) -> KeyUnavailable:
        shortage = fault is KMEFault.EXHAUSTED and says_shortage(message)
        cause = f"{self.name}: {call}: {f'{SHORTAGE}: ' if shortage else ''}HTTP {reply.code}: {message}"
        # Whatever the reason; any mail can cause refusals of dec_keys.
        if call is Call.ENC_KEYS and reply.retry_after:
            self.state.leave_alone(call, reply.retry_after)
        if fault is KMEFault.NOT_FOUND:
            return RepliedNotFound(cause, reply.body, reply.code)
        failed = call is Call.ENC_KEYS and reply.code == FAILED_CODE and reply.retry_after is None
        if fault is KMEFault.UNREACHABLE and (failed or reply.code in GATEWAY_CODES):
            return KMEFailed(cause) if failed else KMEUnanswered(cause)
        return error_of(fault, cause, reply.retry_after)

    async def _probe(self, sae: str) -> None:
        """Probes with a status call. It fails only on silence or a fault of the KME: any answer shows that it is up."""
        try:
            await self.check_key_status(sae, patient=False)
        except (KMEMisconfigured, KMEBadReply, KMEExhausted, KeyNotFound) as error:
            log.info("kme_probe", kme=self.name, answer=str(error))
        except KMEUnanswered as error:
            # The probed call itself spent nothing.
            raise KMEUnreachable(str(error)) from error
        self._well_at = self._timing.clock()

    async def _settled(self, reply: AmbiguousReply, sae: str, bits: int) -> KeyUnavailable:
        """The meaning of an ambiguous reply: if the KME answers status, it was about the requested keys."""
        if bits:
            try:
                stored = (await self.check_key_status(sae, patient=False)).stored_bits
            except KeyUnavailable:
                return reply.meant
            if stored is None or stored < bits:
                return KMEExhausted(f"{reply}; {SHORTAGE}, by its status") if stored is not None else reply.meant
            return reply.otherwise or reply.meant
        async with self._turn("settle", 1):
            if self._timing.clock() - self._well_at >= WELL_FOR_S:
                try:
                    await self._probe(sae)
                except KMEUnreachable as silence:
                    log.warning("kme_is_not_well", kme=self.name, cause=str(reply), status=str(silence))
                    return reply.meant
        return RepliedNotFound(str(reply), reply.body)
