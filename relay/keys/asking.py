"""One call to a KME from beginning to end: breaker, timeout, and a single sending.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (HTTPS, mutual authentication), as in Cisco SKIP.

What the reply means (faults.py) decides whether the call is tried again, and health.py whether it is made at all.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Unpack

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
from relay.keys.events import Complaint, Events
from relay.keys.faults import (
    FAILED_CODE,
    Call,
    ErrorRule,
    KeysMissing,
    KMEBusy,
    KMEFault,
    KMERefusedRequest,
    KMEUnanswered,
    NotAsked,
    error_of,
    meaning,
    outcome_of,
    says_shortage,
)
from relay.keys.forks import forget_in_children
from relay.keys.health import MAX_BACKOFF_S, Health, State
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer, Question, Receiver, Result, Sender
from relay.keys.renewal import Renewal
from relay.keys.replies import ErrorText, KeyStatus, key_IDs_in_error, text_of_error
from relay.keys.settings import PARAMETERS, ClientOptions, ClientSettings, checked_url
from relay.keys.stock import Accounts
from relay.keys.takes import URL, check
from relay.keys.types import SAEID, Found, Key, sae_text
from relay.runtime.aio import off_loop

log = Events(__name__)

SHORTAGE = "shortage of keys"
"""The name of a refusal for too few keys in a cause, whatever its code and text."""


class Asker(ABC):
    """The base of clients of one KME, independent of the protocol."""

    usual_errors: tuple[ErrorRule, ...] = ()
    """Protocol-specific meanings of JSON replies that differ from faults.py; the setting `errors` takes precedence."""

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """`url` is https and may carry a path prefix; `options` are the fields of ClientSettings.

        Raises ConfigError for another scheme than https, or unusable files.
        """
        # Imported here, so that only commands that ask a KME load aiohttp.
        from relay.keys.transport import Transport

        check({"url": url, **options}, {"url": URL, **PARAMETERS})
        self.url = checked_url(url)
        self.settings = settings = ClientSettings(**options)
        self.retry_attempts, self.retry_delay = settings.retry_attempts, settings.retry_delay
        self.timeout = settings.timeout
        self.pool_connections, self.pool_maxsize = settings.pool_connections, settings.pool_maxsize
        self.name: str = settings.name or self.url
        self._timing = settings.timing
        self.board = settings.board or Numbers()
        self.accounts: Accounts = Accounts(self.name, self.board)
        """The accounts of fresh keys; only keys lost in transit are entered here."""
        self.transport = Transport(
            self.url,
            settings.read_tls(),
            ahead=settings.pool_connections,
            most=settings.pool_maxsize,
            keep_alive=not self.one_by_one,
            connect=settings.timeout / 2,
        )
        self.state: Health = Health(self.name, settings)
        """The health of the KME."""
        self._receive: Sender = self.transport.send
        self.loop: asyncio.AbstractEventLoop | None = None
        """The event loop that uses it, since `bind`."""
        self._turns: dict[str, asyncio.Lock] = {}
        self._sent: set[asyncio.Task[Any] | None] = set()
        """Calls for received keys whose request was sent: the KME may deliver them now."""
        self._late: set[asyncio.Task[Any]] = set()
        """Those of them whose caller has given up."""
        self.renewal = Renewal(
            self.name, self.transport, self.state, self.status_question, self.timeout, settings.timing.clock
        )
        """Renewal of the certificate files."""
        self._refused = Complaint(log.warning, log.debug, "received_keys_refused", self._timing.clock)
        forget_in_children(self)
        self._fails = {call: Complaint(log.warning, log.debug, "kme_call_failed", self._timing.clock) for call in Call}

    @property
    def one_batch(self) -> bool:
        """Whether a further request may lose the keys of the one before: one answer is then all that a caller gets."""
        return False

    most_per_request: int | None = None
    """Maximum number of keys in one request; None: reported by the KME."""

    async def check_key_status(self, slave_sae_id: SAEID, *, patient: bool = True) -> KeyStatus:
        """The KME's stored keys for this slave SAE, and its limits (GS QKD 014, 5.2).

        `patient` False means one attempt only. Raises KeyUnavailable.
        """
        return await self._ask(self.status_question(sae_text(slave_sae_id)), patient=patient)

    @abstractmethod
    def status_question(self, slave_sae: str) -> Question[KeyStatus]:
        """The question for the status."""

    @abstractmethod
    async def draw_keys(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits, by a request of its own. Raises KeyUnavailable."""

    @property
    def one_by_one(self) -> bool:
        """Whether keys are requested with GET: one request for each, which must not be resent silently."""
        return self.settings.quirks.method == "GET"

    def forked(self) -> None:
        """As for all."""
        self.accounts.entries.clear()
        self.transport.forked()
        self.loop = None
        self._turns.clear()
        self._late.clear()
        self._sent.clear()

    def bind(self) -> None:
        """Binds the client to the running event loop, until it is closed or that loop is.

        Raises RuntimeError if another loop uses it: a caller there would wait for ever.
        """
        if self.loop is (loop := asyncio.get_running_loop()):
            return
        if self.loop is not None and not self.loop.is_closed():
            raise RuntimeError(
                f"{self.name}: this client is in use in another event loop or thread: close it there first, or make "
                "one of your own for this loop (OptimizedKMClient, CachedKMClient)"
            )
        self.loop = loop
        self._turns.clear()  # a lock belongs to one loop
        self._late.clear()
        self._sent.clear()

    def renew_certificates(self, *, anyway: bool = False) -> None:
        """Reloads changed certificate files, or all with `anyway`; then resets the breakers.

        Each call also checks them.
        """
        self.renewal.look(anyway=anyway)

    def burn(self, sae: str, number: int, cause: str) -> None:
        """Records keys lost in transit, and charges the burn budget."""
        if number:
            self.accounts.issued_and_burnt(sae, number, cause)
            self.state.budget.spend(number)
            log.warning("keys_burnt", kme=self.name, slave_sae=sae, number=number, cause=cause)

    def _turn(self, slave_sae: str) -> asyncio.Lock:
        """The lock of requests for fresh keys: some KMEs drop the keys of the first when a second one arrives."""
        return self._turns.setdefault(slave_sae, asyncio.Lock())

    async def keeps_undelivered(self, slave_sae_id: SAEID, own_sae_id: SAEID) -> Found:
        """What becomes of undelivered keys with a further request for keys.

        A trial costs some keys, and with a KME that drops keys all that the slave has not fetched. Raises
        KeyUnavailable.
        """
        return "untold"

    def receive_through(self, receiver: Receiver) -> None:
        """Sets the sender of requests for received keys."""
        self._receive = partial(receiver.send, self.name, self.transport)

    @property
    def health(self) -> float:
        """From 0 (no requests for fresh keys) to 1 (all recent attempts were answered)."""
        return self.state.score

    @property
    def any_size(self) -> bool:
        """Whether keys of other sizes than the usual one are available."""
        return self.settings.quirks.size_unit != "ignored"

    @property
    def breaker(self) -> State:
        """The state of the KME's breaker."""
        return self.state.breaker

    @property
    def troubles(self) -> dict[str, str]:
        """Why calls are blocked at present, or fail, and other faults; empty when all is well."""
        if not (why := self.renewal.refused):
            return self.state.troubles
        text = f"the KME does not take the renewed files of CA, certificate and key, and those before are used: {why}"
        return self.state.troubles | {"certificates": text}

    async def _ask(self, question: Question[Result], *, patient: bool = True) -> Result:
        """The result of the reply. Raises KeyUnavailable when no attempt is left or none would help.

        Raises StoreUnavailable if received keys could not be stored now; the KME is then not asked.
        """
        self.bind()
        call = question.call
        try:
            result = await self._attempts(question, patient=patient)
        except (KMEUnreachable, KMEMisconfigured, KMEBadReply) as error:
            if not isinstance(error, NotAsked | KMERefusedRequest):
                self._fails[call].say(kme=self.name, call=str(call), cause=str(error))
            raise
        self._fails[call].over()
        return result

    async def _attempts(self, question: Question[Result], *, patient: bool) -> Result:
        call, sae = question.call, question.request.sae
        await self.renewal.before_a_call(sae)
        attempt = 0
        lost: KeyUnavailable | None = None
        while True:
            try:
                with self.state.passing(call, sae, again=attempt > 0) as probing:
                    if probing and call is not Call.STATUS:
                        await self._probe(sae)
                    return await self._try(question)
            except NotAsked:
                raise
            except KeyUnavailable as error:
                if lost is not None and isinstance(error, KeyNotFound):
                    lost.args = (f"{lost}; asked again, the KME says that the key is not there",)
                    raise lost from error
                if call is Call.DEC_KEYS and isinstance(error, KMEBadReply | KMEUnanswered):
                    lost = error
                asked = (error.retry_after if isinstance(error, KMEBusy) else None) or 0.0
                pause = max(asked, self.state.backoff.pause(attempt))
                again = patient and attempt < self.retry_attempts and pause <= MAX_BACKOFF_S
                again = again and asyncio.current_task() not in self._late  # nobody waits for it
                if not (again and self._may_pass(question, error)):
                    raise
                cause = str(error)
            await self._pause(call, cause, attempt, pause)
            attempt += 1

    async def _pause(self, call: Call, cause: str, attempt: int, pause: float) -> None:
        """Waits `pause` seconds before another attempt; counts and logs it."""
        self.board.add(metrics.KME_RETRIES, self.name, call)
        about = {"cause": cause, "attempt": attempt + 1, "pause_s": round(pause, 3)}
        log.warning("kme_retry", kme=self.name, call=str(call), **about)
        await self._timing.sleep(pause)

    def _may_pass(self, question: Question[Result], error: KeyUnavailable) -> bool:
        """Whether another attempt may do better, within the burn budget."""
        if question.spends > 1 and error.http_status == FAILED_CODE:
            return False  # the caller then requests fewer
        if error.found or (len(question.request.key_IDs) > 1 and isinstance(error, KMERefusedRequest)):
            return False  # these are not given again; the caller then requests fewer
        if question.spends and isinstance(error, KMEUnanswered):
            return self.state.budget.allows(question.spends)
        replied = question.call is Call.DEC_KEYS and error.http_status > 0 and not isinstance(error, KeyNotFound)
        return replied or isinstance(error, KMEUnreachable)

    async def _try(self, question: Question[Result]) -> Result:
        """One attempt within the timeout; counted by outcome."""
        call, request = question.call, question.request
        outcome, cause, limit = "cancelled", "", self.timeout
        started, sent, task = self._timing.clock(), list[bool](), asyncio.current_task()

        def on_sent() -> None:
            sent.append(True)
            if call is Call.DEC_KEYS:
                self._sent.add(task)

        try:
            send = self._receive if call is Call.DEC_KEYS and request.key_IDs else self.transport.send
            reply = await send(request, limit, on_sent)
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
            trouble = await self._unanswered(question, error)
            outcome, cause = outcome_of(trouble), str(trouble)
            raise trouble from error
        except KeyUnavailable as error:
            error.http_status = reply.code
            outcome, cause = outcome_of(error), str(error)
            if isinstance(error, KMEUnanswered):
                burnt = "the KME failed" if reply.code == FAILED_CODE else "no answer"
                self.burn(request.sae, question.spends, burnt)
            if request.key_IDs:
                self._note_refusal(error)
            raise
        except StoreUnavailable:
            outcome = "not_asked"
            raise
        except asyncio.CancelledError:
            self.burn(request.sae, question.spends if sent else 0, "no answer")
            if sent and request.key_IDs:
                number = len(request.key_IDs)
                log.warning("received_keys_lost", kme=self.name, number=number, cause="given up before an answer came")
            raise
        finally:
            if call is Call.DEC_KEYS:
                self._sent.discard(task)
            self.board.add(metrics.KME_REQUESTS, self.name, call, outcome)
            seconds = round(self._timing.clock() - started, 3)
            log.debug("kme_call", kme=self.name, call=str(call), outcome=outcome, seconds=seconds, cause=cause)

    async def _unanswered(self, question: Question[Result], error: NoAnswer) -> KeyUnavailable:
        """The error of a request without an answer; its keys are burnt if the KME may have carried it out."""
        call, request = question.call, question.request
        self.state.unanswered()
        cause, arrived = f"{self.name}: {call}: {error}", error.sent
        if error.unheard:
            # With TLS 1.3 a KME that does not know us closes only after the request was written, unread.
            arrived = call is not Call.STATUS and await self._replies(request.sae)
            if not arrived:
                cause += "; it closes connections without any answer: is our certificate known there?"
        self.burn(request.sae, question.spends if arrived else 0, "no answer")
        trouble = KMEUnanswered(cause) if arrived else error_of(error.fault, cause)
        if arrived and request.key_IDs:
            self._note_refusal(trouble)
        return trouble

    def _note_refusal(self, error: KeyUnavailable) -> None:
        """Reports failures of dec_keys that are no word about a key: else a broken KME looks like forged mail."""
        if isinstance(error, KeyNotFound):
            self.state.refusal = ""
            return
        self.board.add(metrics.RECEIVED_KEYS_REFUSED, self.name)
        self.state.refusal = str(error)
        self._refused.say(kme=self.name, cause=str(error))

    async def _result(self, question: Question[Result], reply: HTTPReply) -> Result:
        """The result of a reply. Raises KeyUnavailable."""
        if reply.code != 200:
            raise await self._refusal(question, reply)
        if not reply.whole:
            self.burn(question.request.sae, question.spends, "reply not believed")
            raise KMEBadReply(f"{self.name}: {question.call}: {_too_large(question.request, reply)}")
        return await question.read(reply.body)

    async def _refusal(self, question: Question[Result], reply: HTTPReply) -> KeyUnavailable:
        """The error of a reply that is no success."""
        call, request = question.call, question.request
        said = ErrorText(_too_large(request, reply))
        if reply.whole:
            number = max(question.spends, len(request.key_IDs))
            said = await off_loop(len(reply.body), text_of_error, reply.body, number)
        rules = (*self.settings.quirks.errors, *(self.usual_errors if said.sentences else ()))
        fault, certain = meaning(call, reply.code, said, rules)
        cause = f"{self.name}: {call}: HTTP {reply.code}: {said.text}"
        if reply.code in (401, 403) and not said.sentences:
            cause += f"; does the KME's operator know our certificate, and SAE {request.sae}?"
        if reply.retry_after:
            cause += f"; the KME asks for a pause of {reply.retry_after:.0f} s"
        if not certain and reply.retry_after is None and await self._is_short(question):
            return KMEExhausted(f"{cause}; {SHORTAGE}, by its status")
        if fault is KMEFault.EXHAUSTED and says_shortage(said):
            cause = f"{self.name}: {call}: {SHORTAGE}: HTTP {reply.code}: {said.text}"
        if reply.retry_after and call is not Call.DEC_KEYS:  # any mail can cause refusals of dec_keys
            self.state.leave_alone(call, reply.retry_after)
        if fault is KMEFault.NOT_FOUND:
            named = key_IDs_in_error(reply.body, request.key_IDs)
            return KeysMissing(cause, [], list(named or request.key_IDs), certain=bool(named))
        return error_of(fault, cause, call, reply.code, reply.retry_after)

    async def _is_short(self, question: Question[Result]) -> bool:
        """Whether the KME has fewer bits than that, by its status, and keys of that size."""
        try:
            status = await self._try(self.status_question(question.request.sae))
        except KeyUnavailable:
            return False
        size = question.bits // max(1, question.spends)
        if not (status.min_key_size or 0) <= size <= (status.max_key_size or size):
            return False
        return status.stored_bits is not None and status.stored_bits < question.bits

    async def _replies(self, sae: str) -> bool:
        """Whether the KME replies at all to a call for its status."""
        try:
            await self._try(self.status_question(sae))
        except KeyUnavailable as error:
            return error.http_status > 0
        return True

    async def _probe(self, sae: str) -> None:
        """Probes with a status call, which costs no key. It fails only on silence or a fault of the KME."""
        try:
            await self._try(self.status_question(sae))
        except KeyUnavailable as error:
            if not error.http_status or error.http_status >= 500:
                raise KMEUnreachable(str(error)) from error


def _too_large(request: HTTPRequest, reply: HTTPReply) -> str:
    return f"the reply is larger than {request.limit(reply.code)} bytes, more than was asked for"
