"""A mail server between two sites: it keeps what passes, hands it on, and loses it where it is told to.
Standard: RFC 5321 4.5.4.1: what is put off is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from relay.config import TCPAddress
from tests.testlib.sink import Got, Sink
from tests.testlib.submit import submit, submit_lmtp


@dataclass
class MailServer(Sink):
    """What one site sends goes on to the relay `to`, by SMTP or LMTP; where it is not open it is lost.

    `carries` says which mails are for there at all. `answers` are what the relay has said to each mail. What is put off
    is tried again after `again_s` seconds, `tries` times in all.
    """

    to: TCPAddress = TCPAddress("", 0)
    lmtp: bool = False
    is_open: bool = True
    carries: Callable[[Got], bool] = lambda _: True
    answers: list[str] = field(default_factory=list)
    again_s: float = 0.05
    tries: int = 1000

    async def carry(self) -> None:
        """Hands on what comes, for ever."""
        done = 0
        while True:
            got = (await self.messages(done + 1, timeout=86_400))[done]
            done += 1
            if self.is_open and self.carries(got):
                await self.hand_on(got)

    async def hand_on(self, got: Got) -> str:
        """The last word to one mail."""
        answer = ""
        for _ in range(self.tries):
            if not (answer := await self.handed(got)).startswith("4"):
                break
            await asyncio.sleep(self.again_s)
        self.answers.append(answer)
        return answer

    async def handed(self, got: Got) -> str:
        """What is said to one try."""
        if self.lmtp:
            [reply] = await submit_lmtp(self.to, got.message, sender=got.sender, recipients=got.recipients)
            return str(reply)
        return str(await submit(self.to, got.message, sender=got.sender, recipients=got.recipients))
