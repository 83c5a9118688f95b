"""Clients that are too many, too slow or make no sense are told so and let go; the others go on.
Standard: RFC 5321 4.5.3 (sizes and timeouts), 3.8 (421).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from relay.config import TCPAddress
from relay.entry.listening import TooManyConnections
from relay.entry.smtp import aiosmtpd_base
from relay.errors import RelayError, TryLater
from tests.integration.entry.smtp.recipes import Recorder, serving
from tests.testlib import mails
from tests.testlib.submit import SMTPReply, Talk, submit, submit_lmtp, talking


async def greeting(address: TCPAddress) -> SMTPReply:
    """What a new connection hears first."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        talk = Talk(reader, writer)
        reply = await talk.reply()
        if reply.code == 421:
            assert await talk.ended()
        return reply
    finally:
        writer.close()


async def test_more_connections_than_there_may_be_hear_421_until_one_ends_and_are_counted() -> None:
    async with serving(connections=3) as running, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(talking(running.address))
        turned_away: list[RelayError] = []
        running.entry.turned_away = turned_away.append
        async with talking(running.address):
            assert str(await greeting(running.address)).startswith("421 4.7.0")
        assert [type(each) for each in turned_away] == [TooManyConnections]
        while len(list(running.entry.connections)) > 2:
            await asyncio.sleep(0)
        assert (await greeting(running.address)).code == 220


async def test_one_client_cannot_take_all_connections_unless_it_is_trusted() -> None:
    async with serving(connections_per_client=2, trusted=["192.0.2.0/24"]) as running, AsyncExitStack() as stack:
        for _ in range(2):
            await stack.enter_async_context(talking(running.address))
        assert str(await greeting(running.address)).startswith("421 4.7.0")
    async with serving(connections_per_client=2) as running, AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(talking(running.address))


@pytest.mark.parametrize("said", [b"", b"EHLO client.example", b"NOOP\r\nNO"])
async def test_a_client_that_says_nothing_whole_is_let_go(said: bytes) -> None:
    async with serving(timeout=1) as running, talking(running.address) as talk:
        await talk.send(said)
        if b"\r\n" in said:
            assert (await talk.reply()).code == 250
        assert str(await talk.reply()).startswith("421 4.4.2")
        assert await talk.ended()


async def test_a_client_that_stops_in_the_content_is_let_go() -> None:
    async with serving(timeout=1) as running, talking(running.address) as talk:
        await talk.begin()
        await talk.send(b"half a line")
        assert str(await talk.reply()).startswith("421 4.4.2")
        assert await talk.ended()
        assert running.budget.used == 0
        assert not running.recipe.mails


async def test_content_that_comes_drop_by_drop_has_an_end() -> None:
    """Each drop comes well within the idle time, but all of them are far below the least rate."""
    async with serving(timeout=1) as running, talking(running.address) as talk:
        await talk.begin()
        last = asyncio.create_task(talk.reply())
        drops = 0
        while not last.done() and drops < 200:
            await talk.send(b"x")
            drops += 1
            await asyncio.wait([last], timeout=0.05)
        assert str(await last).startswith("421 4.4.2")
        assert drops < 200


async def test_a_delivery_that_takes_longer_than_the_idle_time_is_waited_for() -> None:
    async with serving(timeout=1) as running, talking(running.address) as talk:
        running.recipe.gate.clear()
        await talk.begin()
        await talk.send(b"x\r\n.\r\n")
        await running.recipe.arrived.wait()
        asyncio.get_running_loop().call_later(1.5, running.recipe.gate.set)
        assert (await talk.reply()).code == 250
        assert (await talk.say("NOOP")).code == 250


async def test_a_client_that_does_not_read_our_replies_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aiosmtpd_base, "SPARE_COMMANDS", 10**9)  # else it takes minutes to fill what lies between
    async with serving(timeout=0.3) as running, talking(running.address) as talk:
        talk.reader._transport.pause_reading()  # type: ignore[attr-defined]
        talk.writer.write(b"HELP\r\n" * 500_000)
        while list(running.entry.connections):
            await asyncio.sleep(0.01)
        talk.writer.transport.abort()


class Wordy(TryLater):
    """More than all buffers between two programs hold, when there are some hundred of it."""

    public = "x" * 100_000


async def test_a_client_that_does_not_read_what_became_of_its_mail_is_let_go_and_counts_as_gone() -> None:
    recipients = [f"user{number}@bob.example" for number in range(300)]
    recipe = Recorder(outcomes={each: Wordy() for each in recipients})
    async with serving("LMTP", timeout=0.5, recipe=recipe) as running, talking(running.address) as talk:
        await talk.begin(*recipients, hello="LHLO")
        talk.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await talk.send(b"x\r\n.\r\n")
        async with asyncio.timeout(20):
            await recipe.noted.wait()
        while running.budget.used:
            await asyncio.sleep(0.01)
        talk.writer.transport.abort()


async def test_too_many_commands_that_make_no_sense_end_the_connection() -> None:
    async with serving() as running, talking(running.address) as talk:
        for _ in range(aiosmtpd_base.MAX_ERRORS - 1):
            assert str(await talk.say("FOO")).startswith("500 5.5.1")
        assert str(await talk.say("FOO")).startswith("421 4.7.0")
        assert await talk.ended()


async def test_further_recipients_than_one_transaction_takes_are_told_to_come_again() -> None:
    recipients = [f"r{number}@bob.example" for number in range(5)]
    async with serving("LMTP", max_recipients=3) as running:
        replies = await submit_lmtp(running.address, mails.plain(), recipients=recipients)
        assert [str(reply)[:9] for reply in replies] == ["250 2.1.5"] * 3 + ["452 4.5.3"] * 2
        assert running.recipe.mails[0].envelope.addresses == tuple(recipients[:3])


@pytest.mark.parametrize("length", [2047, 2048, 5000, 70_000, 1_000_000])
async def test_a_line_may_be_2048_octets_long_and_what_is_longer_is_one_wrong_command(length: int) -> None:
    async with serving() as running, talking(running.address) as talk:
        reply = await talk.say("NOOP " + "x" * (length - 7))
        assert str(reply).startswith("250 2.0.0" if length <= 2048 else "500 5.5.2")
        assert str(await talk.say("NOOP")).startswith("250 2.0.0")


async def test_a_message_at_the_limit_is_taken_and_one_octet_more_is_refused() -> None:
    async with serving(max_message_size=1000) as running:
        for octets, expected in ((1000, "250 2.0.0"), (1001, "552 5.3.4"), (3_000_000, "552 5.3.4")):
            for content in (b"x" * (octets - 2) + b"\r\n", (b".\r\n" * octets)[-octets:]):
                assert str(await submit(running.address, content)).startswith(expected)
        assert str(await submit(running.address, b"", options=["SIZE=1001"])).startswith("552 5.3.4")
        assert [len(mail.message) for mail in running.recipe.mails] == [1000, 1000]
