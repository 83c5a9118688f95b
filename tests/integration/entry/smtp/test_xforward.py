"""XFORWARD: a trusted mail server says who its own client was; anybody else is not offered it and cannot.
Standard: Postfix XFORWARD_README; what it says is for the log and the next hop, and lasts for one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from relay.errors import TryLater
from relay.mail import Origin
from tests.integration.entry.smtp.recipes import serving
from tests.testlib.submit import Talk, talking

ALL = "XFORWARD NAME=mail.eve.example ADDR=192.0.2.7 PORT=4711 PROTO=ESMTP HELO=eve.example IDENT=4F3A SOURCE=REMOTE"
MAIL = ("MAIL FROM:<a@alice.example>", "RCPT TO:<b@bob.example>", "DATA")


async def send(talk: Talk, *before: str) -> None:
    for command in (*before, *MAIL):
        reply = await talk.say(command)
        assert reply.code in (250, 354), reply
    await talk.send(b"x\r\n.\r\n")
    await talk.reply()


@pytest.mark.parametrize(("protocol", "hello"), [("SMTP", "EHLO a.example"), ("LMTP", "LHLO a.example")])
async def test_what_a_trusted_server_says_goes_with_the_mail_and_ends_with_it(protocol: str, hello: str) -> None:
    async with serving(protocol) as running, talking(running.address) as talk:
        assert "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" in (await talk.say(hello)).text.split("\n")
        await send(talk, ALL)
        await send(talk)
        first, second = (mail.origin for mail in running.recipe.mails)
        assert first == Origin(
            "mail.eve.example", "192.0.2.7", "4711", "ESMTP", "eve.example", "4F3A", "REMOTE", user=""
        )
        assert (second.name, second.addr, second.helo, second.ident) == ("", "127.0.0.1", "a.example", "")
        assert b"[127.0.0.1]" in running.recipe.mails[0].trace


@pytest.mark.parametrize(
    ("attributes", "origin"),
    [
        ("NAME=[UNAVAILABLE] ADDR=192.0.2.7", Origin(addr="192.0.2.7")),
        ("name=[unavailable] addr=IPv6:2001:db8::1", Origin(addr="2001:db8::1")),
        ("HELO=a+20b+2Bc ADDR=192.0.2.7", Origin(helo="a b+c", addr="192.0.2.7")),
        ("HELO=x+0D+0AEvil+00 ADDR=192.0.2.7", Origin(helo="x??Evil?", addr="192.0.2.7")),
        ("IDENT=", None), ("COLOUR=red", None), ("", None), ("ADDR", None), ("ADDR=mail.example", None),
        ("PORT=70000", None), ("PORT=x", None), ("SOURCE=ELSEWHERE", None), (f"NAME={'n' * 300}", None),
    ],
)  # fmt: skip
async def test_values_are_decoded_and_wrong_ones_refused(attributes: str, origin: Origin | None) -> None:
    async with serving() as running, talking(running.address) as talk:
        await talk.say("EHLO a.example")
        reply = await talk.say(f"XFORWARD {attributes}")
        if origin is None:
            assert str(reply).startswith("501 5.5.4")
            return
        assert reply.code == 250
        await send(talk)
        assert running.recipe.mails[0].origin == origin


async def test_several_commands_add_up_and_rset_forgets_them() -> None:
    async with serving() as running, talking(running.address) as talk:
        await talk.say("EHLO a.example")
        await send(talk, "XFORWARD NAME=n.example ADDR=192.0.2.7", "XFORWARD HELO=h.example NAME=[UNAVAILABLE]")
        await send(talk, "XFORWARD NAME=n.example", "RSET")
        first, second = (mail.origin for mail in running.recipe.mails)
        assert first == Origin(addr="192.0.2.7", helo="h.example")
        assert second.name == ""


async def test_in_the_middle_of_a_transaction_it_comes_too_late() -> None:
    async with serving() as running, talking(running.address) as talk:
        for command in ("EHLO a.example", MAIL[0]):
            await talk.say(command)
        assert str(await talk.say(ALL)).startswith("503 5.5.1")


async def test_others_are_not_offered_it_and_cannot() -> None:
    async with serving(trusted=["192.0.2.0/24"]) as running, talking(running.address) as talk:
        assert "XFORWARD" not in (await talk.say("EHLO a.example")).text
        assert str(await talk.say(ALL)).startswith("550 5.7.1")
        await send(talk)
        assert running.recipe.mails[0].origin.addr == "127.0.0.1"


@pytest.fixture
def log() -> Iterator[Any]:
    """What the log has, with what is bound to each line."""
    capture, before = LogCapture(), structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture
    structlog.configure(**before)


async def test_the_log_names_the_original_client_who_handed_the_mail_on_and_its_queue_id(log: Any) -> None:
    async with serving() as running, talking(running.address) as talk:
        running.recipe.failure = TryLater("no key")
        await talk.say("EHLO a.example")
        await send(talk, ALL)
    [entry] = [entry for entry in log.entries if entry["event"] == "mail_not_accepted"]
    assert (entry["client"], entry["via"], entry["queue_id"]) == ("192.0.2.7", "127.0.0.1", "4F3A")


async def test_the_log_names_the_mail_its_sender_and_its_queue_id_with_each_recipient_that_is_refused(log: Any) -> None:
    async with serving(max_recipients=2) as running, talking(running.address) as talk:
        running.recipe.outcomes["held@bob.example"] = TryLater("no key")
        for command in ("EHLO a.example", ALL, "MAIL FROM:<a@alice.example>", "RCPT TO:<held@bob.example>"):
            reply = await talk.say(command)
        assert reply.code == 451
        assert (await talk.say("RCPT TO:nonsense")).code == 501
        await talk.say("RCPT TO:<b@bob.example>")
        assert (await talk.say("RCPT TO:<c@bob.example>")).code == 452
        await talk.say("DATA")
        await talk.send(b"x\r\n.\r\n")
        accepted = (await talk.reply()).text.split()[-1]
    refused = [entry for entry in log.entries if entry["event"] == "recipient_not_accepted"]
    assert [entry["reply"][:9] for entry in refused] == ["451 4.3.0", "501 5.5.4", "452 4.5.3"]
    said = {(entry["mail"], entry["queue_id"], entry["sender"], entry["client"]) for entry in refused}
    assert said == {(accepted, "4F3A", "a@alice.example", "192.0.2.7")}
