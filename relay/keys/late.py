"""Answers to enc_keys that come after their request was given up: they are listened for, and their keys taken in.
Standard: ETSI GS QKD 014 V1.1.1, 5.3: what a KME has given is gone there, whether its answer is read here or not.
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
"""Time for which an enc_keys reply is accepted, from the request, in seconds: late keys are good too."""


class KeyRequests:
    """The requests for fresh keys of one client, each in a task of its own, which outlives those who wait for it."""

    def __init__(self, client: Asker, most_late: int) -> None:
        """At most `most_late` answers are listened for at a time: others need connections, too."""
        self._client = client
        self._most_late = most_late
        self._late: dict[asyncio.Task[None], int] = {}

    @property
    def unread(self) -> int:
        """How many keys were asked for by requests that were given up, and whose answers may come yet."""
        return sum(self._late.values())

    async def reply(self, question: Question[Any], seconds: float) -> HTTPReply:
        """The reply to a request for fresh keys. Raises NoAnswer when none came in time; it is listened for further."""
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
            if error.sent:
                client.burn(question.request.sae, question.spends, "no answer")
            raise

    async def close(self) -> None:
        """Ends those of this event loop; their keys count as burnt."""
        loop = asyncio.get_running_loop()
        late = [task for task in self._late if task.get_loop() is loop]
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _leave(self, sending: asyncio.Task[HTTPReply], question: Question[Any], *, sent: bool) -> None:
        """Nobody waits any longer. Its keys count as lost for the budget, until it is known what became of them."""
        sending.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        if sent:
            budget, spends = self._client.state.budget, question.spends
            budget.spend(spends)
            late = asyncio.create_task(self._take_in(sending, question))
            self._late[late] = spends
            late.add_done_callback(lambda late: budget.spend(-self._late.pop(late)))
        # What was waited for longest is likeliest to come yet.
        if not sent or len(self._late) > self._most_late:
            sending.cancel()

    async def _take_in(self, sending: asyncio.Task[HTTPReply], question: Question[Any]) -> None:
        client, sae, spends = self._client, question.request.sae, question.spends
        keys: list[Key] = []
        try:
            reply = await sending
            # As where the answer comes in time: what the KME may have given, and nobody has read, is burnt.
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
