"""A client that goes away in the middle: what it has handed over is delivered once, what it has not is nothing.
Standard: RFC 5321 4.5.3.2.6 and RFC 1047 (a lost answer must not make a second copy).
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET

import pytest

from relay.entry.budget import Budget, Share
from relay.entry.smtp.session import SMTPSession
from relay.errors import NextHopUnavailable, StoreUnavailable
from relay.kme import DevelopmentKMEs
from relay.mail import Mail, Outcomes
from tests.integration.entry.smtp.recipes import Recorder, Running, serving
from tests.integration.entry.smtp.test_lmtp import POLICIES, with_lmtp
from tests.testlib import mails, sites
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.submit import submit, submit_lmtp, talking


@pytest.mark.parametrize("protocol", ["SMTP", "LMTP"])
async def test_a_mail_whose_client_left_while_the_next_hop_was_slow_is_delivered_once(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, protocol: str
) -> None:
    site = with_lmtp(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
            policies=POLICIES,
        )
    )  # fmt: skip
    recipients = ["ben@bob.example", "press@open.example"]
    wire.gate = asyncio.Event()
    async with sites.serving(site) as addresses:
        address = addresses["outgoing" if protocol == "SMTP" else "outgoing_lmtp"]
        async with talking(address) as talk:
            await talk.begin(*recipients, hello="EHLO" if protocol == "SMTP" else "LHLO")
            await talk.send(mails.plain() + b".\r\n")
            await wire.reached.wait()
        wire.gate.set()
        await wire.messages(2)
        while True:  # the first try may still be writing down what it has done
            if protocol == "SMTP":
                reply = await submit(address, mails.plain(), recipients=recipients)
            else:
                reply = max(
                    await submit_lmtp(address, mails.plain(), recipients=recipients), key=lambda each: each.code
                )
            if reply.code == 250:
                break
            assert str(reply).startswith("451 4.3.2")
    assert sorted(got.recipients for got in wire.got) == [("ben@bob.example",), ("press@open.example",)]


async def leave_while_it_is_delivered(running: Running, *recipients: str, reset: bool) -> None:
    """The client is gone, as the relay has noticed, and the mail is inside."""
    recipe = running.recipe
    recipe.gate.clear()
    recipe.arrived.clear()
    async with talking(running.address) as talk:
        await talk.begin(*recipients)
        await talk.send(b"Message-ID: <1@alice.example>\r\n\r\nx\r\n.\r\n")
        await recipe.arrived.wait()
        if reset:
            socket = talk.writer.get_extra_info("socket")
            socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    open_ones = list(running.entry.connections)
    assert all(isinstance(each, SMTPSession) for each in open_ones)
    while not all(each.left for each in open_ones if isinstance(each, SMTPSession)):
        await asyncio.sleep(0)


@pytest.mark.parametrize("reset", [True, False])
async def test_the_delivery_goes_on_and_its_outcome_is_noted_as_client_gone(reset: bool) -> None:
    async with serving() as running:
        await leave_while_it_is_delivered(running, "a@bob.example", "b@bob.example", reset=reset)
        running.recipe.outcomes = {"b@bob.example": NextHopUnavailable("later")}
        running.recipe.gate.set()
        async with asyncio.timeout(10):
            await running.recipe.noted.wait()
        [(mail, outcomes)] = running.recipe.client_gone_mails
        assert mail.envelope.addresses == ("a@bob.example", "b@bob.example")
        assert outcomes[0] is None
        assert isinstance(outcomes[1], NextHopUnavailable)
        assert running.recipe.cancelled == 0
        while running.budget.used:
            await asyncio.sleep(0)


async def test_a_client_that_only_sends_no_more_still_hears_what_became_of_its_mail() -> None:
    async with serving() as running, talking(running.address) as talk:
        running.recipe.gate.clear()
        await talk.begin()
        await talk.send(b"x\r\n.\r\nQUIT\r\n")
        talk.writer.write_eof()
        await running.recipe.arrived.wait()
        running.recipe.gate.set()
        assert (await talk.reply()).code == 250
        assert (await talk.reply()).code == 221
        assert await talk.ended()


async def test_a_mail_is_taken_whose_client_sends_no_more_while_it_waits_for_room() -> None:
    budget = Budget(2**20, patience=10)
    other = Share(budget)
    await other.hold(2**20)
    async with serving(budget=budget) as running, talking(running.address) as talk:
        talk.writer.write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<ben@bob.example>\r\nDATA\r\n")
        other.reduce(2**19)
        for _ in range(3):
            assert (await talk.reply()).code < 300
        assert (await talk.reply()).code == 354
        await talk.send(b"x" * 100_000)
        while not budget._waiting:
            await asyncio.sleep(0)
        await talk.send(b"\r\n.\r\nQUIT\r\n")
        talk.writer.write_eof()
        [conversation] = list(running.entry.connections)
        assert isinstance(conversation, SMTPSession)
        while not conversation.left:
            await asyncio.sleep(0)
        other.reduce()
        assert (await talk.reply()).code == 250
        assert (await talk.reply()).code == 221


@pytest.mark.parametrize("half", [b"x\r\n", b"x\r\n.\r", b"x\r\n.\n", b""])
async def test_content_without_its_end_is_no_mail_and_holds_no_memory(half: bytes) -> None:
    async with serving() as running:
        async with talking(running.address) as talk:
            await talk.begin()
            await talk.send(half)
        while list(running.entry.connections):
            await asyncio.sleep(0)
        assert not running.recipe.inside
        assert not running.recipe.mails
        assert running.budget.used == 0


async def test_a_journal_that_fails_then_is_logged_and_breaks_nothing() -> None:
    class Forgetful(Recorder):
        async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
            self.noted.set()
            raise StoreUnavailable("disk full")

    async with serving(recipe=Forgetful()) as running:
        await leave_while_it_is_delivered(running, "a@bob.example", reset=True)
        running.recipe.gate.set()
        await running.recipe.noted.wait()
        assert (await submit(running.address, mails.plain())).code == 250
