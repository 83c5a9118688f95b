"""Clients that say much and bring no mail keep nobody waiting: their commands are few at a time, and soon few a second.
Standard: processor time of the event loop, counted in commands, so that a slow machine changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from relay.config import TCPAddress
from relay.entry.smtp import aiosmtpd_base
from relay.entry.smtp.session import SMTPSession
from tests.integration.entry.smtp.recipes import serving
from tests.testlib import mails
from tests.testlib.submit import submit, talking

FLOODING = 60
"""Clients at once."""
AT_ONCE = 600
"""Commands for which somebody else may have to wait, in all: about 50 ms of processor time."""
SENT = 4000
"""Commands that each of them sends at once."""


Command = Callable[[SMTPSession, str | None], Awaitable[None]]


class Answered:
    """Commands that were carried out, by verb."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = 0
        for verb in ("NOOP", "RSET", "HELP", "VRFY", "EHLO", "MAIL", "RCPT"):
            monkeypatch.setattr(SMTPSession, f"smtp_{verb}", self._counting(getattr(SMTPSession, f"smtp_{verb}")))

    def _counting(self, command: Command) -> Command:
        async def counted(session: SMTPSession, argument: str | None) -> None:
            self.number += 1
            await command(session, argument)

        return counted


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answered:
    return Answered(monkeypatch)


async def _read_all(reader: asyncio.StreamReader) -> None:
    while await reader.read(2**20):
        pass


@asynccontextmanager
async def flooding(address: TCPAddress, commands: bytes) -> AsyncIterator[None]:
    """Many clients have said HELO and send these commands at the same time; they read the replies."""
    async with AsyncExitStack() as stack:
        writers = []
        for _ in range(FLOODING):
            reader, writer = await asyncio.open_connection(*address)
            stack.callback(writer.close)
            reading = asyncio.create_task(_read_all(reader))
            stack.callback(reading.cancel)
            writers.append(writer)
        for writer in writers:
            writer.write(b"HELO flood\r\n" + commands)
        yield


FLOODS = {
    "NOOP": b"NOOP\r\n", "RSET": b"RSET\r\n", "HELP": b"HELP\r\n", "VRFY": b"VRFY x\r\n", "EHLO": b"EHLO x\r\n",
    "MAIL": b"MAIL FROM:<a@alice.example>\r\nRSET\r\n",
    "RCPT": b"MAIL FROM:<a@alice.example>\r\n" + b"RCPT TO:<b@bob.example>\r\n" * 20 + b"RSET\r\n",
}  # fmt: skip


@pytest.mark.promise("Clients that say much keep nobody waiting")
@pytest.mark.parametrize("flood", FLOODS)
async def test_others_do_not_wait_for_clients_that_flood(answered: Answered, flood: str) -> None:
    commands = FLOODS[flood] * (SENT // FLOODS[flood].count(b"\n"))
    async with (
        serving(connections=500) as running,
        talking(running.address) as talk,
        flooding(running.address, commands),
    ):
        while answered.number < FLOODING:
            await asyncio.sleep(0)
        waited = []
        for _ in range(20):
            before = answered.number
            assert (await talk.say("NOOP")).code == 250
            waited.append(answered.number - before)
        assert max(waited) < AT_ONCE, waited
        assert (await submit(running.address, mails.plain())).code == 250


@pytest.mark.promise("Clients that say much keep nobody waiting")
async def test_a_client_that_brings_no_mail_gets_few_answers_a_second_and_one_that_does_gets_all(
    answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is the test's: without it nothing is given back."""
    monkeypatch.setattr(aiosmtpd_base, "SPARE_A_SECOND", 1e-9)
    async with serving() as running, talking(running.address) as talk:
        for _ in range(aiosmtpd_base.SPARE_COMMANDS):
            await talk.say("NOOP")
        waiting = asyncio.create_task(talk.say("NOOP"))
        assert (await submit(running.address, mails.plain())).code == 250
        assert not waiting.done()
        waiting.cancel()
    async with serving() as running, talking(running.address) as talk:
        everybody = [f"ben{number}@bob.example" for number in range(aiosmtpd_base.SPARE_COMMANDS)]
        for _ in range(5):
            await talk.begin(*everybody)
            await talk.send(mails.plain() + b".\r\n")
            assert (await talk.reply()).code == 250
