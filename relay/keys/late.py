"""Late answers to enc_keys, after their request was given up: they are still read, and their keys used.
Standard: ETSI GS QKD 014 V1.1.1, 5.3: issued keys are gone at the KME, whether or not its answer is read.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from relay.errors import KeyUnavailable
from relay.keys.events import Events
from relay.keys.faults import FAILED_CODE, GATEWAY_CODES, KMEFault
from relay.keys.http import HTTPReply, NoAnswer
from relay.keys.types import Key

if TYPE_CHECKING:
    from relay.keys.asking import Asker, Question

log = Events(__name__)

LATE_KEYS_S = 30.0
"""Time for which an enc_keys reply is accepted, from the request, in seconds: late keys are usable."""


class KeyRequests:
    """The requests for fresh keys of one client, each in a task that outlives its callers."""

    def __init__(self, client: Asker, most_late: int) -> None:
        """At most `most_late` late answers are awaited at a time: other calls need connections."""
        self._client = client
        self._most_late = most_late
        self._late: dict[asyncio.Task[None], int] = {}

    @property
    def unread(self) -> int:
        """Number of keys in abandoned requests whose answers may still arrive."""
        return sum(self._late.values())

    async def reply(self, question: Question[Any], seconds: float) -> HTTPReply:
        """The reply to a request for fresh keys. Raises NoAnswer on timeout; a late reply is still read."""
        loop, client = asyncio.get_running_loop(), self._client
        sent: list[bool] = []
        over: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            if not over.done():
                over.set_result(None)

        async def send() -> HTTPReply:
            try:
                return await client.transport.send(
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
            raise NoAnswer(cause, sent=bool(sent), fault=KMEFault.UNREACHABLE, in_time=False)
        try:
            return sending.result()
        except NoAnswer as error:
            if error.sent and not error.unheard:
                client.burn(question.request.sae, question.spends, "no answer")
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
            budget, spends = self._client.state.budget, question.spends
            budget.spend(spends)
            late = asyncio.create_task(self._take_in(sending, question))
            self._late[late] = spends
            late.add_done_callback(lambda late: budget.spend(-self._late.pop(late)))
        # The oldest is likeliest to be answered.
        if not sent or len(self._late) > self._most_late:
            sending.cancel()

    async def _take_in(self, sending: asyncio.Task[HTTPReply], question: Question[Any]) -> None:
        client, sae, spends = self._client, question.request.sae, question.spends
        keys: list[Key] = []
        try:
            reply = await sending
            # As for an answer in time: keys that may have been issued, and were not read, are burnt.
            if reply.code == 200 and not reply.whole:
                client.burn(sae, spends, "reply not believed")
            elif reply.code in GATEWAY_CODES:
                client.burn(sae, spends, "no answer")
            elif reply.code == FAILED_CODE:
                client.burn(sae, spends, "the KME failed")
            elif reply.code == 200:
                try:
                    keys = await question.read(reply.body)
                finally:
                    reply.wipe()
        except (NoAnswer, asyncio.CancelledError):
            client.burn(sae, spends, "no answer")
        except KeyUnavailable as error:
            log.warning("late_keys_refused", kme=client.name, slave_sae=sae, cause=str(error))
        if keys:
            log.info("late_keys_taken_in", kme=client.name, slave_sae=sae, number=len(keys))
            client.take_in(sae, len(keys[0].key) * 8, keys)
