"""Date and Message-ID are added where they are missing, the same ones for each try, and nothing else is touched.
Standard: RFC 6409 8.2 and 8.3, RFC 5322 3.6.1 and 3.6.4.
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

import pytest
import structlog

from relay.entry.smtp.completion import Completion
from relay.entry.smtp.senders import SenderRights, parse_rights
from relay.mail import Envelope, Mail, Recipient
from tests.integration.entry.smtp.recipes import Recorder
from tests.integration.entry.submission.conftest import Server, Start
from tests.testlib.sink import Sink
from tests.testlib.wire import Wire

FROM = b"From: ann@alice.example\r\n"
DATE = b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\n"
MESSAGE_ID = b"message-id : <1@alice.example>\r\n"
BODY = b"\r\nDate: not a field\r\n.dots\r\n"
_ADDED_DATE = rb"Date: (.+)\r\n"
_ADDED_ID = rb"Message-ID: <([0-9a-f]{32})@relay\.alice\.example>\r\n"


@pytest.mark.parametrize(
    ("message", "added"),
    [
        (FROM + BODY, _ADDED_DATE + _ADDED_ID),
        (FROM + DATE + BODY, _ADDED_ID),
        (FROM + MESSAGE_ID + BODY, _ADDED_DATE),
        (MESSAGE_ID + FROM + DATE + BODY, rb""),
        (FROM + DATE + MESSAGE_ID, rb""),
    ],
)
async def test_what_is_missing_stands_on_top(server: Server, sink: Sink, message: bytes, added: bytes) -> None:
    async with server.user() as program:
        assert (await program.mail(message.replace(b"\r\n.", b"\r\n.."))).startswith("250")
    [got] = sink.got
    trace = rb"Received: from [^\r]+\r\n(?:\t[^\r]+\r\n)+"
    match = re.fullmatch(trace + added + re.escape(message), got.message)
    assert match, got.message
    if added.startswith(_ADDED_DATE):
        assert datetime.now(UTC) - parsedate_to_datetime(match[1].decode()) < timedelta(minutes=5)


@pytest.mark.promise("Submission's additions change no other field")
@pytest.mark.parametrize("user", ["ann", "printer"])
@pytest.mark.parametrize("blank", [b" ", b"\t", b" \r\n", b" Subject: x\r\n"])
async def test_what_would_continue_the_field_put_in_front_of_it_is_refused(
    server: Server, sink: Sink, user: str, blank: bytes
) -> None:
    async with server.user(user) as program:
        reply = await program.mail(blank + FROM + BODY, "ann@alice.example")
        assert reply == "554 5.6.0 Malformed message: the first line begins with a blank, as if it continued another"
        assert await program.ask("NOOP") == "250 2.0.0 Ok"
    assert sink.got == []


async def test_a_second_try_is_the_same_mail(start: Start, sink: Sink) -> None:
    async with Wire(sink.address) as wire:
        sink.on_data += ["451 4.3.0 Not now"]
        async with start(next_hop=wire.address) as server, server.user() as program:
            assert (await program.mail(FROM + BODY)).startswith("4")
            assert (await program.mail(FROM + BODY)).startswith("250")
            first, second = re.findall(_ADDED_DATE + _ADDED_ID, wire.sent)
            assert first == second
            assert (await program.mail(FROM + BODY)).startswith("250")
            *_, third = re.findall(_ADDED_DATE + _ADDED_ID, wire.sent)
            assert third[1] != second[1]
    assert len(sink.got) == 2


async def test_a_mail_whose_acceptance_the_client_did_not_hear_is_not_delivered_again(
    server: Server, sink: Sink
) -> None:
    sink.gate = asyncio.Event()
    with structlog.testing.capture_logs() as log:
        async with server.user() as program:
            await program.ask("MAIL FROM:<ann@alice.example>")
            await program.ask("RCPT TO:<ben@bob.example>")
            await program.ask("DATA")
            await program.send(FROM + BODY + b".\r\n")
            await sink.reached.wait()
        sink.gate.set()
        async with asyncio.timeout(30):
            while not any(entry["event"] == "delivered_client_gone" for entry in log):
                await asyncio.sleep(0.01)
    async with server.user() as program:
        assert (await program.mail(FROM + BODY)).startswith("250")
    assert len(sink.got) == 1


class AnyUser:
    """Everybody may send from everywhere."""

    async def rights(self, name: str) -> SenderRights | None:
        return parse_rights(["*"])


async def test_that_a_client_is_gone_is_told_before_its_next_try_can_come() -> None:
    recorder = Recorder()
    completion = Completion(recorder, AnyUser(), "relay.alice.example", check_from=False)
    mail = Mail(Envelope("ann@alice.example", (Recipient("ben@bob.example"),)), FROM + BODY, "1")
    outcomes = await completion.process(mail)
    telling = asyncio.create_task(completion.client_gone(mail, outcomes))
    await asyncio.sleep(0)
    [(told, _)] = recorder.client_gone_mails
    assert told.message == recorder.mails[0].message
    await telling
