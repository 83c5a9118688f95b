"""Late answers to enc_keys, after their request was given up: they are still read, and their keys used.
Standard: ETSI GS QKD 014 V1.1.1, 5.3: issued keys are gone at the KME, whether or not its answer is read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from relay.errors import KeyUnavailable
from relay.keys.events import Events
from relay.keys.faults import FAILED_CODE, GATEWAY_CODES, Call, KMEFault
from relay.keys.health import BurnBudget
from relay.keys.http import HTTPReply, HTTPRequest, NoAnswer
from relay.keys.types import Key

if TYPE_CHECKING:
    from relay.keys.transport import Transport

log = Events(__name__)

Result = TypeVar("Result")

LATE_KEYS_S = 30.0
"""Time for which an enc_keys reply is accepted, from the request, in seconds: late keys are usable."""


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


class KeyRequests:
    """The requests for fresh keys of one client, each in a task that outlives its callers."""

    def __init__(
        self,
        name: str,
        transport: Transport,
        budget: BurnBudget,
        burn: Callable[[str, int, str], None],
        most_late: int,
    ) -> None:
        """`burn` records lost keys: slave SAE, number, cause.

        At most `most_late` late answers are awaited at a time: other calls need connections.
        """
        self._name = name
        self._transport = transport
        self._budget = budget
        self._burn = burn
        self.take_in: Callable[[str, int, list[Key]], None]
        """What gets late keys: slave SAE, size in bits, keys."""
        self._most_late = most_late
        self._late: dict[asyncio.Task[None], int] = {}

    @property
    def unread(self) -> int:
        """Number of keys in abandoned requests whose answers may still arrive."""
        return sum(self._late.values())

    async def reply(self, question: Question[Any], seconds: float) -> HTTPReply:
        """The reply to a request for fresh keys. Raises NoAnswer on timeout; a late reply is still read."""
        loop = asyncio.get_running_loop()
        sent: list[bool] = []
        over: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        async def send() -> HTTPReply:
            try:
                return await self._transport.send(
                    question.request, max(seconds, LATE_KEYS_S), partial(sent.append, True)
                )
            finally:
                end()

        sending = asyncio.create_task(send())
        timer = loop.call_later(seconds, end)
        answered = False
        try:
            await over
            answered = sending.done()
        finally:
            timer.cancel()
            if not answered:
                self._leave(sending, question, sent=bool(sent))
        if not answered:
            cause = f"no answer within {seconds:.1f} s" + ("; should one come, its keys are used" if sent else "")
            raise NoAnswer(cause, sent=bool(sent), fault=KMEFault.UNREACHABLE)
        try:
            return sending.result()
        except NoAnswer as error:
            if error.sent and not error.unheard:
                self._burn(question.request.sae, question.spends, "no answer")
            raise

    async def close(self) -> None:
        """Cancels the requests of this event loop; their keys count as burnt."""
        loop = asyncio.get_running_loop()
        late = [task for task in self._late if task.get_loop() is loop]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _leave(self, sending: asyncio.Task[HTTPReply], question: Question[Any], *, sent: bool) -> None:
        """Abandons a request. Its keys are charged to the burn budget until their fate is known."""
        sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if sent:
            budget, spends = self._budget, question.spends
            budget.spend(spends)
            late = asyncio.create_task(self._take_in(sending, question))
            self._late[late] = spends
            late.add_done_callback(lambda late: budget.spend(-self._late.pop(late)))
        # The oldest is likeliest to be answered.
        if not sent or len(self._late) > self._most_late:
            sending.cancel()

    async def _take_in(self, sending: asyncio.Task[HTTPReply], question: Question[Any]) -> None:
        sae, spends = question.request.sae, question.spends
        keys: list[Key] = []
        try:
            reply = await sending
            # As for an answer in time: keys that may have been issued, and were not read, are burnt.
            if reply.code == 200 and not reply.whole:
                self._burn(sae, spends, "reply not believed")
            elif reply.code in GATEWAY_CODES:
                self._burn(sae, spends, "no answer")
            elif reply.code == FAILED_CODE:
                self._burn(sae, spends, "the KME failed")
            elif reply.code == 200:
                try:
                    keys = await question.read(reply.body)
                finally:
                    reply.wipe()
        except (NoAnswer, asyncio.CancelledError):
            self._burn(sae, spends, "no answer")
        except KeyUnavailable as error:
            log.warning("late_keys_refused", kme=self._name, slave_sae=sae, cause=str(error))
        if keys:
            log.info("late_keys_taken_in", kme=self._name, slave_sae=sae, number=len(keys))
            self.take_in(sae, len(keys[0].key) * 8, keys)
