"""What every client of one KME has, whatever it speaks, and one call to it from beginning to end.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (HTTPS, both sides authenticated), which Cisco SKIP shares.

A call passes the breaker, has a time limit, and is sent once; what its reply means (faults.py) decides whether it is
tried again.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import urlsplit, urlunsplit

from relay.aio import off_loop
from relay.counting import Board, metrics
from relay.errors import (
    ConfigError,
    KeyNotFound,
    KeyUnavailable,
    KMEBadReply,
    KMEExhausted,
    KMEMisconfigured,
    KMEUnreachable,
    StoreUnavailable,
)
from relay.keys.accounts import Accounts
from relay.keys.events import Events
from relay.keys.faults import (
    AmbiguousReply,
    Call,
    ErrorRule,
    KeysMissing,
    KMEBusy,
    KMEFault,
    KMERefusedRequest,
    KMEUnanswered,
    NotAsked,
    RepliedNotFound,
    classify,
    error_of,
    outcome_of,
    ruled,
    unclear,
)
from relay.keys.health import MAX_BACKOFF_S, Health, State
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer, Receiver, Sender
from relay.keys.pool import KeyPool
from relay.keys.refill import Prefetch
from relay.keys.replies import KeyStatus, text_of_error
from relay.keys.settings import ClientOptions, ClientSettings
from relay.keys.stock import SeenKeys
from relay.keys.tls import CertificateEnd, ClientTLS
from relay.keys.types import Key

log = Events(__name__)

Result = TypeVar("Result")

_UNAUTHORIZED = (401, 403)
"""To dec_keys it may be about one key (5.4), or about us."""
_GATEWAY_CODES = (502, 504)
"""A gateway's word that the KME behind it did not answer it; the KME may have done what was asked."""

LATE_KEYS_S = 30.0
"""How long an answer to enc_keys is listened for, from when it was asked for: its keys are good, however late."""

WELL_FOR_S = 1.0
"""So long after an answer to status, a reply to dec_keys is about keys: status is asked for once a second at most."""

RENEW_EVERY_S = 1.0
"""Certificate files are looked at no more often than this."""


def _without_password(url: str) -> str:
    """The URL as it may stand in a log."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check_numbers(number: int, size: int) -> None:
    """Raises ValueError where no KME could give `number` keys of `size` bits."""
    if number < 1 or size < 8 or size % 8:
        raise ValueError("number is at least 1, and size is a multiple of 8 bits above 0")


def _unnoticed() -> None:
    """Nothing is burnt when such a request was sent, and its answer did not come."""


Read = Callable[[bytes | bytearray], Awaitable[Any]]
"""What a reply's body brings."""


class KMEClient(ABC):
    """A client of one KME, over whatever protocol: subclasses make the three calls.

    Each call ends in a result or a typed error within the configured time; `patient` False means one try only.
    """

    usual_errors: tuple[ErrorRule, ...] = ()
    """What replies mean in a protocol, where that differs from faults.py; the setting `errors` comes first."""

    most_per_request: int | None = None
    """The most keys that one request can ask for; None: the KME says."""

    def __init__(self, url: str, **options: Unpack[ClientOptions]) -> None:
        """`url` is https and may carry a path prefix; `options` are the fields of ClientSettings.

        Raises ConfigError for another scheme than https, and when the files cannot be used.
        """
        # Here, so that aiohttp is loaded by who asks a KME, and not by every command that knows of keys.
        from relay.keys.transport import Transport

        if urlsplit(url).scheme != "https" or not urlsplit(url).hostname:
            raise ConfigError(f"{url}: a KME is asked over https, with certificates of both sides (GS QKD 014, 5.1)")
        self.settings = settings = ClientSettings(**options)
        self.retry_attempts, self.retry_delay = settings.retry_attempts, settings.retry_delay
        self.timeout = settings.timeout
        self.pool_connections, self.pool_maxsize = settings.pool_connections, settings.pool_maxsize
        self.url = url.rstrip("/")
        self.name = settings.name or _without_password(self.url)
        self._timing = settings.timing
        self.board = settings.board or Board()
        self.accounts = Accounts(self.name, self.board)
        """What became of fresh keys; here only those that were lost on the way are entered."""
        self.transport = Transport(
            self.url,
            ClientTLS(settings.ca, settings.certificate, settings.key, settings.tls),
            connections=settings.pool_connections * settings.pool_maxsize,
            per_host=settings.pool_maxsize,
            keep_alive=settings.quirks.keep_alive and not self.one_by_one,
            connect=settings.timeout / 2,
        )
        self.state = Health(self.name, settings)
        """How well the KME answers."""
        self.time_limits = self.state.limits
        self._receive: Sender = self.transport.send
        self._errors = (*settings.quirks.errors, *self.usual_errors)
        self._turns: dict[str, tuple[asyncio.AbstractEventLoop, asyncio.Semaphore]] = {}
        self.take_in: Callable[[str, int, list[Key]], None]
        """Called with keys that have come after their request was given up: slave SAE, size in bits, keys."""
        self._fresh = self._shared_requests()
        self._late: dict[asyncio.Task[None], int] = {}
        self._well_at = self._renewed_at = float("-inf")

    @abstractmethod
    async def check_key_status(self, slave_sae_id: int | str, *, patient: bool = True) -> KeyStatus:
        """What the KME has for this pair of SAEs, and its limits. Raises KeyUnavailable."""

    @abstractmethod
    async def draw_keys(self, slave_sae_id: str, number: int, size: int, *, patient: bool = True) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits, by a request of its own. Raises KeyUnavailable."""

    async def request_enc_keys(
        self, slave_sae_id: int | str, number: int = 1, size: int = 256, *, patient: bool = True
    ) -> list[Key]:
        """From 1 to `number` fresh keys of `size` bits shared with the slave SAE. Raises KeyUnavailable.

        Callers who wait at the same time share one request. Keys that come when their caller has given up are there for
        the next one.
        """
        check_numbers(number, size)
        return await self._fresh.take(str(slave_sae_id), size, number, least=1, patient=patient)

    @abstractmethod
    async def request_dec_keys(
        self, master_sae_id: int | str, key_IDs: Sequence[str], *, patient: bool = True
    ) -> list[Key]:
        """The keys with these IDs, in their order; the KME gives each once.

        Raises KeysMissing, which carries those that did come, or another KeyUnavailable.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Burns keys that nobody took, and closes all connections. The client may be used again afterwards."""
        await self._fresh.close()
        loop = asyncio.get_running_loop()
        late = [task for task in self._late if task.get_loop() is loop]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        await self.transport.close()
        self._fresh = self._shared_requests()

    def _shared_requests(self) -> KeyPool:
        """What the public calls for fresh keys share: it draws what callers ask for, and keeps nothing ready."""
        return KeyPool(self, Prefetch(low=0, high=0), SeenKeys(), self._timing, managed=False)

    def renew_certificates(self, *, anyway: bool = False) -> None:
        """Takes certificate files that have changed, or `anyway`; then no breaker keeps us from the KME.

        Each call looks at them as well.
        """
        now = self._timing.clock()
        if not anyway and now - self._renewed_at < RENEW_EVERY_S:
            return
        self._renewed_at = now
        if self.transport.renew(self.name, anyway=anyway):
            self.state.try_all_now()

    def ending_certificates(self, now: datetime) -> list[str]:
        """Which certificates end within 30 days of `now` (aware), or have: ours, the CA's, the KME's. Reads files."""
        return self.transport.tls.ending(now)

    def certificate_ends(self) -> list[CertificateEnd]:
        """When they end. Reads files. Raises OSError and ValueError."""
        return self.transport.tls.ends()

    async def keeps_undelivered(self, slave_sae_id: int | str, own_sae_id: int | str) -> bool | None:
        """Whether keys that were not delivered yet are still there when more were asked for; None: nobody can say.

        It costs two keys, and with a KME that drops keys whatever the slave has not fetched yet. Raises KeyUnavailable.
        """
        return None

    def receive_through(self, receiver: Receiver) -> None:
        """From now on `receiver` sends the requests for received keys."""
        self._receive = partial(receiver.send, self.name, self.transport)

    @property
    def health(self) -> float:
        """From 0 (fresh keys are not even asked for) to 1 (all recent tries got an answer)."""
        return self.state.score

    @property
    def one_by_one(self) -> bool:
        """Whether keys are asked for with GET: each by a request of its own, which must never be sent again unseen."""
        return self.settings.quirks.method == "GET"

    @property
    def at_once(self) -> int:
        """How many requests for fresh keys may be on their way for one slave SAE."""
        return self.settings.quirks.at_once

    @property
    def any_size(self) -> bool:
        """Whether keys of other sizes than the usual one can be had."""
        return self.settings.quirks.size_unit != "ignored"

    @property
    def breakers(self) -> dict[str, State]:
        """The state of the breaker of each call."""
        return {str(call): breaker.state for call, breaker in self.state.breakers.items()}

    @property
    def troubles(self) -> dict[str, str]:
        """Why calls are not made at present, by call; empty when all is well."""
        return self.state.troubles

    @staticmethod
    def _several(key_IDs: Sequence[str]) -> list[str]:
        """The key_IDs, each once. A string, which is a sequence of strings as well, is a mistake: raises TypeError."""
        if isinstance(key_IDs, str | bytes) or not all(isinstance(key_ID, str) for key_ID in key_IDs):
            raise TypeError("key_IDs is a sequence of strings: write [key_ID] for a single one")
        return list(dict.fromkeys(key_IDs))

    async def _each_by_itself(
        self, key_IDs: Sequence[str], one: Callable[[str], Awaitable[dict[str, Key]]]
    ) -> dict[str, Key]:
        """The keys by ID, each by a request of its own (`one`), at the same time.

        The failure of one does not lose the others. Raises KeyUnavailable where all failed, and not as unknown.
        """
        found: dict[str, Key] = {}
        trouble: KeyUnavailable | None = None
        for answer in await asyncio.gather(*map(one, key_IDs), return_exceptions=True):
            if isinstance(answer, dict):
                found |= answer
            elif not isinstance(answer, KeyUnavailable):
                raise answer
            elif not isinstance(answer, KeyNotFound):
                trouble = answer
        if trouble is not None and not found:
            raise trouble
        return found

    def _in_order(self, key_IDs: Sequence[str], found: dict[str, Key]) -> list[Key]:
        """The keys with these IDs. Raises KeysMissing, with those that did come."""
        if missing := [key_ID for key_ID in key_IDs if key_ID not in found]:
            text = f"{self.name}: dec_keys: {len(missing)} of {len(key_IDs)} keys did not come: {missing[0]}"
            raise KeysMissing(text, list(found.values()), missing)
        return [found[key_ID] for key_ID in key_IDs]

    def _burn(self, sae: str, number: int, cause: str) -> None:
        """Enters keys that were lost on the way, and charges the budget for that."""
        if number:
            self.accounts.issued_and_burnt(sae, number, cause)
            self.state.budget.spend(number)
            log.warning("keys_burnt", kme=self.name, slave_sae=sae, number=number, cause=cause)

    def _turn(self, what: str, at_once: int) -> asyncio.Semaphore:
        """For one of those that may do `what` at the same time, in this event loop: a lock belongs to one loop."""
        loop = asyncio.get_running_loop()
        if what not in self._turns or self._turns[what][0] is not loop:
            self._turns[what] = loop, asyncio.Semaphore(at_once)
        return self._turns[what][1]

    # One call

    async def _ask(
        self,
        call: Call,
        request: HTTPRequest,
        read: Callable[[bytes | bytearray], Awaitable[Result]],
        *,
        patient: bool = True,
        spends: int = 0,
        bits: int = 0,
    ) -> Result:
        """What `read` makes of the reply's body. Raises KeyUnavailable, when no try is left or none would help.

        Raises StoreUnavailable where received keys could not be kept now, and the KME was not asked.

        `spends` is how many keys are burnt when the KME may have carried out a request whose answer did not come; it
        is tried again within the budget for that. `bits` is how many are asked for where the status tells whether the
        KME has so many.
        """
        self.renew_certificates()
        attempt = 0
        while True:
            try:
                with self.state.passing(call) as probing:
                    if probing and call is not Call.STATUS:
                        await self._probe(request.sae)
                    try:
                        result = await self._try(call, request, read, spends)
                    except AmbiguousReply as reply:
                        raise await self._settled(reply, request.sae, bits) from reply
                    if probing:
                        self.state.try_all_now()
                    return result
            except NotAsked:
                raise
            except KMEUnreachable as error:
                asked = (error.retry_after if isinstance(error, KMEBusy) else None) or 0.0
                if asked:
                    self.state.leave_alone(call, asked)
                again = not (spends and isinstance(error, KMEUnanswered)) or self.state.budget.allows(spends)
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

    async def _try(
        self, call: Call, request: HTTPRequest, read: Callable[[bytes | bytearray], Awaitable[Result]], spends: int
    ) -> Result:
        """One request within the time limit, which learns from it, and what its answer means; counted by outcome."""
        outcome, limit = "cancelled", self.state.limits[call].seconds
        started = self._timing.clock()
        try:
            if spends:
                reply = await self._draw_within(limit, request, read, spends)
            else:
                send = self._receive if call is Call.DEC_KEYS and request.key_IDs else self.transport.send
                reply = await send(request, limit, _unnoticed)
            elapsed = self._timing.clock() - started
            self.state.answered(call, reply.code, elapsed)
            self.board.spread(metrics.KME_SECONDS, self.name, call).observe(elapsed)
            try:
                result = await self._result(call, request, reply, read, spends)
            finally:
                if reply.code == 200:  # what an error says is looked at later, and has no keys
                    reply.wipe()
            outcome = "ok"
            if call is Call.DEC_KEYS:
                self.state.refusal = ""
            return result
        except NoAnswer as error:
            self.state.unanswered(call, in_time=error.in_time)
            cause = f"{self.name}: {call}: {error}"
            trouble = KMEUnanswered(cause) if error.sent else error_of(error.fault, cause)
            outcome = outcome_of(trouble)
            raise trouble from error
        except KeyUnavailable as error:
            outcome = outcome_of(error)
            if isinstance(error, KMEUnanswered):  # of a gateway
                self._burn(request.sae, spends, "no answer")
            if call is Call.DEC_KEYS and request.key_IDs:
                self._note_refusal(reply.code, error)
            raise
        except StoreUnavailable:
            outcome = "not_asked"
            raise
        finally:
            self.board.add(metrics.KME_REQUESTS, self.name, call, outcome)

    def _note_refusal(self, code: int, error: KeyUnavailable) -> None:
        """Without that a KME, or a proxy in front of it, that has no keys for anybody looks like forged mail."""
        if isinstance(error, KeyNotFound | KMERefusedRequest | KMEBusy) and code not in _UNAUTHORIZED:
            self.state.refusal = "" if isinstance(error, KeyNotFound) else self.state.refusal
            return
        self.board.add(metrics.RECEIVED_KEYS_REFUSED, self.name)
        if self.state.refused(code, str(error)):
            log.warning("received_keys_refused", kme=self.name, cause=str(error))

    async def _result(
        self,
        call: Call,
        request: HTTPRequest,
        reply: HTTPReply,
        read: Callable[[bytes | bytearray], Awaitable[Result]],
        spends: int,
    ) -> Result:
        """What a reply brings. Raises KeyUnavailable: AmbiguousReply unless the reply is clear."""
        number = max(spends, len(request.key_IDs))
        said = await off_loop(len(reply.body), text_of_error, reply.body, number) if reply.code != 200 else ""
        message = (
            said if reply.whole else f"the reply is larger than {request.max_octets} bytes, more than was asked for"
        )
        rule = ruled(call, reply.code, message, self._errors) if self._errors else None
        try:
            if reply.code != 200:
                raise self._refusal(call, reply, message, rule or classify(call, reply.code, message))
            if not reply.whole:
                self._burn(request.sae, spends, "reply not believed")
                raise KMEBadReply(f"{self.name}: {call}: {message}")
            return await read(reply.body)
        except KeyUnavailable as error:
            if rule is not None or not unclear(call, reply.code, message, error):
                raise
            # The body of a 200 may hold keys, which belong into no error.
            otherwise = None
            if isinstance(error, KMEExhausted):  # guessed from the code alone
                fault = KMEFault.UNREACHABLE if reply.code >= 500 else KMEFault.BAD_REQUEST
                otherwise = error_of(fault, str(error), reply.retry_after)
            raise AmbiguousReply(error, b"" if reply.code == 200 else reply.body, otherwise) from error

    def _refusal(self, call: Call, reply: HTTPReply, message: str, fault: KMEFault) -> KeyUnavailable:
        cause = f"{self.name}: {call}: HTTP {reply.code}: {message}"
        if (
            call is Call.ENC_KEYS and reply.retry_after
        ):  # whatever the reason; dec_keys can be refused by anybody's mail
            self.state.leave_alone(call, reply.retry_after)
        if fault is KMEFault.NOT_FOUND:
            return RepliedNotFound(cause, reply.body)
        if fault is KMEFault.UNREACHABLE and reply.code in _GATEWAY_CODES:
            return KMEUnanswered(cause)
        return error_of(fault, cause, reply.retry_after)

    async def _draw_within(self, seconds: float, request: HTTPRequest, read: Read, spends: int) -> HTTPReply:
        """The reply to a request for fresh keys. Raises NoAnswer when none came in time; it is listened for further."""
        sent: list[bool] = []
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        async def send() -> HTTPReply:
            try:
                return await self.transport.send(request, max(seconds, LATE_KEYS_S), partial(sent.append, True))
            finally:
                end()

        sending = asyncio.create_task(send())
        sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # nobody may be left to see it
        timer = loop.call_later(seconds, end)
        answered = False
        try:
            await over
            answered = sending.done()
        finally:
            timer.cancel()
            if not answered:
                if sent:
                    self._listen_further(sending, request.sae, read, spends)
                # Others need connections, too, and what was waited for longest is likeliest to come yet.
                if not sent or len(self._late) > self.pool_maxsize // 2:
                    sending.cancel()
        if answered:
            try:
                return sending.result()
            except NoAnswer as error:
                if error.sent:
                    self._burn(request.sae, spends, "no answer")
                raise
        cause = f"no answer within {seconds:.1f} s" + ("; should one come, its keys are used" if sent else "")
        raise NoAnswer(cause, sent=bool(sent), fault=KMEFault.UNREACHABLE, in_time=False)

    @property
    def unread(self) -> int:
        """How many keys were asked for by requests that were given up, and whose answers may come yet."""
        return sum(self._late.values())

    def _listen_further(self, sending: asyncio.Task[HTTPReply], sae: str, read: Read, spends: int) -> None:
        """The keys count as lost for the budget, until they come; only then it is known what became of them."""
        self.state.budget.spend(spends)
        late = asyncio.create_task(self._take_in_late(sending, sae, read, spends))
        self._late[late] = spends

        def ended(late: asyncio.Task[None]) -> None:
            del self._late[late]
            self.state.budget.spend(-spends)

        late.add_done_callback(ended)

    async def _take_in_late(self, sending: asyncio.Task[HTTPReply], sae: str, read: Read, spends: int) -> None:
        try:
            reply = await sending
            keys: list[Key] = []
            # As where the answer comes in time: what the KME may have given, and nobody has read, is burnt.
            if reply.code == 200 and not reply.whole:
                self._burn(sae, spends, "reply not believed")
            elif reply.code in _GATEWAY_CODES:
                self._burn(sae, spends, "no answer")
            if reply.code == 200 and reply.whole:
                try:
                    keys = await read(reply.body)
                finally:
                    reply.wipe()
        except (NoAnswer, asyncio.CancelledError):
            self._burn(sae, spends, "no answer")
        except KeyUnavailable as error:
            log.warning("late_keys_refused", kme=self.name, slave_sae=sae, cause=str(error))
        else:
            if keys:
                log.info("late_keys_taken_in", kme=self.name, slave_sae=sae, number=len(keys))
                self.take_in(sae, len(keys[0].key) * 8, keys)

    async def _probe(self, sae: str) -> None:
        """Asks for the status. Only silence, or a fault of the KME itself, fails: any answer shows that it is there."""
        try:
            await self.check_key_status(sae, patient=False)
        except (KMEMisconfigured, KMEBadReply, KMEExhausted, KeyNotFound) as error:
            log.info("kme_probe", kme=self.name, answer=str(error))
        except KMEUnanswered as error:
            # What the call itself would have cost was not asked for.
            raise KMEUnreachable(str(error)) from error
        self._well_at = self._timing.clock()

    async def _settled(self, reply: AmbiguousReply, sae: str, bits: int) -> KeyUnavailable:
        """What the reply meant: a KME that answers status is well, and has spoken of the keys that it was asked for."""
        if bits:
            try:
                stored = (await self.check_key_status(sae, patient=False)).stored_bits
            except KeyUnavailable:
                return reply.meant
            if stored is None or stored < bits:
                return KMEExhausted(str(reply)) if stored is not None else reply.meant
            return reply.otherwise or reply.meant
        async with self._turn("settle", 1):
            if self._timing.clock() - self._well_at >= WELL_FOR_S:
                try:
                    await self._probe(sae)
                except KMEUnreachable as silence:
                    log.warning("kme_is_not_well", kme=self.name, cause=str(reply), status=str(silence))
                    return reply.meant
        return RepliedNotFound(str(reply), reply.body)
