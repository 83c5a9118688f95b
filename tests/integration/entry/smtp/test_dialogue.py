"""What a client may say wrong, and that nothing of it is taken for a mail, ends the process or shows what is inside.
Standard: RFC 5321 4.1.4 (order), 4.2 (replies), RFC 3463 (enhanced codes); only CRLF ends a line.
"""

from __future__ import annotations

import re

import pytest

from relay.errors import MalformedMessage, NextHopRefused, NextHopUnavailable
from tests.integration.entry.smtp.recipes import Recorder, serving
from tests.testlib import mails
from tests.testlib.submit import submit, talking

MAIL, RCPT = "MAIL FROM:<a@alice.example>", "RCPT TO:<b@bob.example>"


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        (["MAIL FROM:<a@b.example>"], "503 5.5.1"),
        (["EHLO"], "501 5.5.4"),
        (["EHLO grün"], "501 5.5.4"),
        (["EHLO a", RCPT], "503 5.5.1"),
        (["EHLO a", "DATA"], "503 5.5.1"),
        (["EHLO a", MAIL, "DATA"], "503 5.5.1"),
        (["EHLO a", MAIL, MAIL], "503 5.5.1"),
        (["EHLO a", MAIL, RCPT, "DATA now"], "501 5.5.4"),
        (["EHLO a", MAIL, RCPT, "RSET", "DATA"], "503 5.5.1"),
        (["EHLO a", MAIL, RCPT, "EHLO a", "DATA"], "503 5.5.1"),
        (["EHLO a", MAIL, RCPT, "HELO a", RCPT], "503 5.5.1"),
        (["RSET now"], "501 5.5.4"),
        (["QUIT now"], "501 5.5.4"),
        (["VRFY"], "501 5.5.4"),
        (["VRFY a@b.example"], "252 2.0.0"),
        (["HELP"], "214 2.0.0"),
        (["NOOP whatever"], "250 2.0.0"),
        (["noop"], "250 2.0.0"),
        (["EHLO a", "BDAT 10 LAST"], "502 5.5.1"),
        (["EXPN staff"], "502 5.5.1"),
        (["STARTTLS"], "502 5.5.1"),
        (["AUTH PLAIN AGEAYg=="], "502 5.5.1"),
        (["FOO"], "500 5.5.1"),
        ([""], "500 5.5.1"),
        ([" EHLO a"], "500 5.5.1"),
        (["ÄHLO a"], "500 5.5.1"),
        (["EHLO a\0b"], "500 5.5.2"),
        (["NOOP \x1b[2J"], "500 5.5.2"),
        (["EHLO a", "MAIL FROM:<a@b.example>\rRCPT TO:<c@d.example>"], "500 5.5.2"),
        (["EHLO a", "MAIL FROM:<ä@b.example>"], "553 5.6.7"),
        (["EHLO a", "MAIL FROM:<\udcff@b.example> SMTPUTF8"], "553 5.6.7"),
        (["EHLO a", "MAIL FROM:<a@b.example> SIZE=99999999999"], "552 5.3.4"),
        (["EHLO a", "MAIL FROM:<a@b.example> ENVID=a+b"], "555 5.5.4"),
        (["EHLO a", "MAIL FROM:<a@b.example> AUTH=<>"], "555 5.5.4"),
        (["EHLO a", MAIL, "RCPT TO:<b@bob.example> ORCPT=rfc822;b+40bob.example"], "250 2.1.5"),
        (["EHLO a", MAIL, "RCPT TO:<b@bob.example> ORCPT=rfc822;b+4"], "555 5.5.4"),
        (["EHLO a", MAIL, "RCPT TO:<b@bob.example> ORCPT=utf-8;bén@bob.example"], "555 5.5.4"),
        (["EHLO a", f"{MAIL} SMTPUTF8", "RCPT TO:<bén@bob.example> ORCPT=utf-8;bén@bob.example"], "250 2.1.5"),
    ],
)  # fmt: skip
async def test_each_command_is_answered_as_the_standard_has_it(commands: list[str], expected: str) -> None:
    async with serving() as running, talking(running.address) as talk:
        for command in commands:
            reply = await talk.say(command)
        assert str(reply).startswith(expected), reply
        assert (await talk.say("NOOP")).code == 250
        assert (await talk.say("QUIT")).code == 221
        assert await talk.ended()
        assert not running.recipe.mails


async def test_the_extensions_are_those_that_we_can_do() -> None:
    async with serving(max_message_size=1234, trusted=[]) as running, talking(running.address) as talk:
        assert (await talk.say("EHLO a")).text.split("\n") == [
            "relay.alice.example", "PIPELINING", "SIZE 1234", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN",
        ]  # fmt: skip


@pytest.mark.parametrize("line", [b"NOOP\n", b"NOOP\n\r\n", b"NO\0OP\r\n", b"N" * 70_000 + b"\n"])
async def test_a_line_that_does_not_end_in_crlf_is_no_command(line: bytes) -> None:
    async with serving() as running, talking(running.address) as talk:
        await talk.send(line)
        assert str(await talk.reply()).startswith("500 5.5.2")


@pytest.mark.parametrize("line", ["GET / HTTP/1.1", "POST /x HTTP/1.1", "Host: relay", "Subject: hello"])
async def test_what_a_browser_says_ends_the_connection_at_once(line: str) -> None:
    async with serving() as running, talking(running.address) as talk:
        assert str(await talk.say(line)).startswith("421 4.7.0")
        assert await talk.ended()


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\r", b"\0\r\n.\0\r\n", b"\r\n..\r\n", b"\r\n. \r\n"]
)  # fmt: skip
async def test_nothing_but_a_dot_between_two_crlf_ends_the_content(end: bytes) -> None:
    """SMTP smuggling: what follows stays inside the first mail, however a sender before us reads it."""
    async with serving() as running, talking(running.address) as talk:
        await talk.begin()
        smuggled = b"MAIL FROM:<eve@alice.example>\r\nRCPT TO:<ben@bob.example>\r\nDATA\r\ninjected"
        await talk.send(b"first" + end + smuggled + b"\r\n.\r\n")
        assert (await talk.reply()).code == 250
        [mail] = running.recipe.mails
        assert mail.message == b"first" + end.replace(b"\r\n.", b"\r\n") + smuggled + b"\r\n"
        assert (await talk.say("QUIT")).code == 221


async def test_what_is_pipelined_behind_the_content_is_the_next_command() -> None:
    async with serving() as running, talking(running.address) as talk:
        whole = f"EHLO a\r\n{MAIL}\r\n{RCPT}\r\nDATA\r\n".encode() + b"one\r\n.\r\n"
        await talk.send(whole + whole.removeprefix(b"EHLO a\r\n").replace(b"one", b"two") + b"QUIT\r\n")
        codes = [(await talk.reply()).code for _ in range(10)]
        assert codes == [250, 250, 250, 354, 250, 250, 250, 354, 250, 221]
        assert [mail.message for mail in running.recipe.mails] == [b"one\r\n", b"two\r\n"]


async def test_content_that_was_sent_although_data_is_refused_is_not_read_as_commands() -> None:
    async with serving() as running, talking(running.address) as talk:
        inside = f"{MAIL}\r\n{RCPT}\r\nDATA\r\ninjected\r\n.\r\n"
        await talk.send(f"EHLO a\r\n{MAIL}\r\nDATA\r\nRSET\r\n{inside}".encode())
        codes = [(await talk.reply()).code for _ in range(3)]
        assert codes == [250, 250, 503]
        assert await talk.ended()
        assert not running.recipe.mails


async def test_a_mixed_answer_that_refuses_says_how_many_have_the_mail() -> None:
    recipients = ["a@bob.example", "b@bob.example", "c@bob.example"]
    async with serving(recipe=Recorder(outcomes={"b@bob.example": NextHopRefused("no")})) as running:
        reply = await submit(running.address, mails.plain(), recipients=recipients)
        assert str(reply) == "554 5.0.0 Refused by the next hop (2 of 3 recipients have it)"
        running.recipe.outcomes["a@bob.example"] = NextHopUnavailable("later")
        reply = await submit(running.address, mails.plain(), recipients=recipients)
        assert str(reply) == "451 4.4.1 Next hop not available, try again later"
        running.recipe.outcomes = dict.fromkeys(recipients, NextHopRefused("no"))
        reply = await submit(running.address, mails.plain(), recipients=recipients)
        assert str(reply) == "554 5.0.0 Refused by the next hop"


async def test_what_nobody_foresaw_holds_the_mail_and_is_not_shown() -> None:
    recipe = Recorder(failure=ZeroDivisionError("in /etc/secret"))
    async with serving(recipe=recipe) as running, talking(running.address) as talk:
        await talk.begin()
        await talk.send(b"x\r\n.\r\n")
        assert str(await talk.reply()) == "451 4.3.0 Temporary failure, try again later"
        assert (await talk.say("QUIT")).code == 221


async def test_a_fault_in_a_command_holds_it_and_the_dialogue_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as running, talking(running.address) as talk:
        await talk.say("EHLO a")
        monkeypatch.setattr("relay.entry.smtp.session.path_of", lambda *_: 1 / 0)
        assert str(await talk.say(MAIL)) == "451 4.3.0 Temporary failure, try again later"
        assert (await talk.say("NOOP")).code == 250


async def test_no_reply_to_wrong_text_is_more_than_one_line_or_echoes_control_characters() -> None:
    async with serving() as running, talking(running.address) as talk:
        await talk.say("EHLO a")
        for command in ("MAIL FROM:<a@b.example> \x7f=1", "MAIL FROM:<a@b.example> X=\x80", f"MAIL FROM:<{'a' * 1900}"):
            reply = await talk.say(command)
            assert re.fullmatch(r"5\d\d 5\.\d\.\d [\x20-\x7e]{1,200}", str(reply)), reply


async def test_the_received_field_names_protocol_and_client() -> None:
    async with serving() as running:
        await submit(running.address, mails.plain())
        await submit(running.address, mails.plain(), options=["SMTPUTF8"])
        async with talking(running.address) as talk:
            for command in ("HELO old.example", MAIL, RCPT, "DATA"):
                await talk.say(command)
            await talk.send(b".\r\n")
            await talk.reply()
        words = [
            re.search(rb"from (\S+) \(\[(\S+)\]\).* with (\S+) id", m.trace, re.DOTALL) for m in running.recipe.mails
        ]
        assert [word.groups() for word in words if word] == [
            (b"client.example", b"127.0.0.1", b"ESMTP"),
            (b"client.example", b"127.0.0.1", b"UTF8SMTP"),
            (b"old.example", b"127.0.0.1", b"SMTP"),
        ]


@pytest.mark.parametrize("cause", ["bare CR", "header too long"])
async def test_a_malformed_message_is_told_why(cause: str) -> None:
    async with serving(recipe=Recorder(failure=MalformedMessage(cause))) as running:
        assert str(await submit(running.address, mails.plain())) == f"554 5.6.0 Malformed message: {cause}"
