"""What becomes of a mail when its next hop dies, refuses or talks nonsense at each point.
Standard: RFC 5321, 4.2.5 and 6.1: only a 250 after the content makes the mail somebody else's.
"""

from __future__ import annotations

import asyncio

import pytest

from relay.errors import NextHopRefused, NextHopUnavailable
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BEA, BEN, BIG, mail
from tests.testlib.hop import EVERYTHING, HANG_UP, SILENCE, Hop, Instead

POINTS = ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "content", "."]
BEFORE_THE_END = POINTS[:-1]
PIPELINED = [EVERYTHING, tuple(each for each in EVERYTHING if each != "PIPELINING")]


@pytest.mark.parametrize("extensions", PIPELINED)
async def test_a_mail_is_handed_over_octet_for_octet(build: Build, extensions: tuple[str, ...]) -> None:
    message = b"Subject: x\r\n\r\n.\r\n..\r\n.a\r\nno end of line."
    async with Hop(extensions) as hop:
        handed = await build(hop).deliver(mail(BEN, BEA, message=message))
    assert handed.outcomes == (None, None)
    assert handed.answer == "2.0.0 Ok: sunk"
    assert handed.next_hop == str(hop.address)
    assert [(got.recipients, got.message) for got in hop.got] == [((BEN, BEA), message + b"\r\n")]


@pytest.mark.parametrize("extensions", PIPELINED)
@pytest.mark.parametrize("point", POINTS)
async def test_a_next_hop_that_dies_at_any_point_holds_the_mail(
    build: Build, point: str, extensions: tuple[str, ...]
) -> None:
    async with Hop(extensions, instead={point: HANG_UP}) as hop:
        with pytest.raises(NextHopUnavailable, match=str(hop.address)):
            await build(hop).deliver(mail())
    assert not hop.got


@pytest.mark.parametrize("point", BEFORE_THE_END)
async def test_a_next_hop_that_dies_before_the_end_of_the_content_is_followed_by_the_next(
    build: Build, point: str
) -> None:
    async with Hop(instead={point: HANG_UP}) as first, Hop() as second:
        handed = await build(first, second).deliver(mail(message=BIG))
    assert handed.next_hop == str(second.address)
    assert [got.message for got in second.got] == [BIG]


@pytest.mark.parametrize("said", [HANG_UP, "451 4.3.0 later", "421 4.3.2 closing", b"not a reply\r\n"])
async def test_after_the_end_of_the_content_no_other_next_hop_is_tried(build: Build, said: bytes | str) -> None:
    async with Hop(instead={".": said}) as first, Hop() as second:
        with pytest.raises(NextHopUnavailable):
            await build(first, second).deliver(mail())
    assert not second.connections


async def test_a_next_hop_that_says_nothing_after_the_content_holds_the_mail_and_no_other_is_tried(
    build: Build, impatient: None
) -> None:
    async with Hop(instead={".": SILENCE}) as first, Hop() as second:
        with pytest.raises(NextHopUnavailable, match="whether it was taken is not known"):
            await build(first, second).deliver(mail())
    assert not second.connections


@pytest.mark.parametrize("point", ["greeting", "EHLO", "MAIL", "RCPT", "DATA"])
async def test_a_silent_next_hop_is_given_up_in_time_and_followed_by_the_next(
    build: Build, impatient: None, point: str
) -> None:
    async with Hop(instead={point: SILENCE}) as first, Hop() as second:
        handed = await build(first, second).deliver(mail())
    assert handed.next_hop == str(second.address)


async def test_a_next_hop_that_takes_no_content_is_given_up_in_time(build: Build, impatient: None) -> None:
    async with Hop(instead={"content": SILENCE}) as hop:
        with pytest.raises(NextHopUnavailable, match="not taken within"):
            await build(hop).deliver(mail(message=BIG))


@pytest.mark.parametrize(
    ("point", "said", "error", "status"),
    [
        ("MAIL", "550 5.7.1 not you", NextHopRefused, "5.7.1"),
        ("MAIL", "450 4.7.1 not now", NextHopUnavailable, "4.7.1"),
        ("RCPT", "550 5.1.1 who?", NextHopRefused, "5.1.1"),
        ("RCPT", "450 4.2.1 busy", NextHopUnavailable, "4.2.1"),
        ("DATA", "554 5.5.1 no", NextHopRefused, "5.5.1"),
        ("DATA", "451 4.3.0 no", NextHopUnavailable, "4.3.0"),
        (".", "552 5.3.4 too big", NextHopRefused, "5.3.4"),
        (".", "452 4.3.1 full", NextHopUnavailable, "4.3.1"),
        ("content", "552 5.3.4 too big", NextHopRefused, "5.3.4"),
        ("RCPT", "550 4.1.1 class and code differ", NextHopRefused, "5.0.0"),
        ("RCPT", "550 no status", NextHopRefused, "5.0.0"),
        ("RCPT", "450 4.1234.1 no status", NextHopUnavailable, "4.4.1"),
        ("greeting", "554 5.7.1 go away", NextHopUnavailable, "4.4.1"),
        (".", "354 what?", NextHopUnavailable, "4.4.1"),
    ],
)
async def test_a_refusal_is_passed_back_with_its_class_and_status(
    build: Build, point: str, said: str, error: type[Exception], status: str
) -> None:
    instead: Instead = {point: said}
    if point == "content":
        instead["."] = HANG_UP
    async with Hop(instead=instead) as hop:
        with pytest.raises(error) as caught:
            await build(hop).deliver(mail())
    assert said in str(caught.value)
    assert isinstance(caught.value, NextHopRefused | NextHopUnavailable)
    assert caught.value.reply.split()[1] == status


@pytest.mark.parametrize("extensions", PIPELINED)
async def test_recipients_that_are_not_accepted_do_not_stop_the_others(
    build: Build, extensions: tuple[str, ...]
) -> None:
    instead: Instead = {
        "RCPT TO:<bad@": "550 5.1.1 unknown", "RCPT TO:<later@": "450 4.2.0 busy",
    }  # fmt: skip
    async with Hop(extensions, instead=instead) as hop:
        handed = await build(hop).deliver(mail("bad@b.example", BEN, "later@b.example"))
    refused, accepted, held = handed.outcomes
    assert isinstance(refused, NextHopRefused)
    assert accepted is None
    assert isinstance(held, NextHopUnavailable)
    assert [got.recipients for got in hop.got] == [(BEN,)]


async def test_only_those_recipients_go_to_the_next_server_whom_the_first_neither_took_nor_refused(
    build: Build,
) -> None:
    instead: Instead = {
        "RCPT TO:<bad@": "550 5.1.1 unknown", "RCPT TO:<later@": "450 4.2.0 busy",
    }  # fmt: skip
    async with Hop(instead=instead) as first, Hop() as second:
        handed = await build(first, second).deliver(mail("bad@b.example", BEN, "later@b.example"))
    assert isinstance(handed.outcomes[0], NextHopRefused)
    assert handed.outcomes[1:] == (None, None)
    assert [got.recipients for got in first.got + second.got] == [(BEN,), ("later@b.example",)]


async def test_what_one_server_has_said_of_a_recipient_outlives_the_silence_of_the_next(build: Build) -> None:
    async with Hop(instead={"RCPT": "450 4.2.0 busy"}) as first, Hop(instead={"greeting": HANG_UP}) as second:
        with pytest.raises(NextHopUnavailable, match="busy"):
            await build(first, second).deliver(mail())


async def test_more_recipients_than_a_server_takes_at_once_go_in_several_transactions(build: Build) -> None:
    people = [f"r{number}@bob.example" for number in range(1000)]
    instead: Instead = {}
    for start in range(0, 1000, 300):
        for number in range(start + 300, 1000):
            instead.setdefault(f"RCPT TO:<r{number}@", [])
            answers = instead[f"RCPT TO:<r{number}@"]
            assert isinstance(answers, list)
            answers.append("452 4.5.3 too many recipients")
    async with Hop(instead=instead) as hop:
        handed = await build(hop).deliver(mail(*people))
    assert handed.outcomes == (None,) * 1000
    assert [len(got.recipients) for got in hop.got] == [300, 300, 300, 100]
    assert {each for got in hop.got for each in got.recipients} == set(people)


async def test_a_full_mailbox_is_not_taken_for_too_many_recipients(build: Build) -> None:
    async with Hop(instead={f"RCPT TO:<{BEA}>": "452 4.2.2 over quota"}) as hop:
        handed = await build(hop).deliver(mail(BEN, BEA))
    assert handed.outcomes[0] is None
    assert len(hop.connections) == 1


@pytest.mark.promise("A server that answers anything at all")
@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x00\xff\xfe\r\n",
        b"250-a\r\n451 b\r\n",
        b"2500 x\r\n",
        b"\r\n",
        b"250-" + b"x" * 40_000,
        b"250-more\r\n" * 10_000,
        b"250 Ok\r\n250 Ok\r\n250 Ok\r\n250 and nobody has asked\r\n",
    ],
)
@pytest.mark.parametrize("point", ["greeting", "EHLO", "MAIL"])
async def test_what_is_no_reply_ends_the_connection_and_holds_the_mail(build: Build, point: str, said: bytes) -> None:
    async with Hop(instead={point: said}) as hop, Hop() as other:
        next_hop = build(hop)
        with pytest.raises(NextHopUnavailable):
            await next_hop.deliver(mail())
        assert (await build(hop, other).deliver(mail())).next_hop == str(other.address)
        await hop.until_closed()
    assert not hop.got


@pytest.mark.promise("A server's words reach no terminal and no log as they stand")
async def test_control_characters_of_a_reply_do_not_reach_the_log(build: Build) -> None:
    async with Hop(instead={"MAIL": b"550 5.7.1 a\x1b[2Jb\xff\r\n"}) as hop:
        with pytest.raises(NextHopRefused) as caught:
            await build(hop).deliver(mail())
    assert str(caught.value).isprintable()


async def test_a_command_that_a_mail_would_smuggle_in_is_never_sent(build: Build) -> None:
    async with Hop() as hop:
        with pytest.raises(NextHopUnavailable, match="control characters"):
            await build(hop).deliver(mail("ben@bob.example>\r\nRCPT TO:<eve@eve.example"))
        await hop.until_closed()
    assert not any("eve" in command for command in hop.commands)


async def test_an_old_server_that_knows_no_ehlo_gets_helo(build: Build) -> None:
    async with Hop(instead={"EHLO": "502 5.5.1 what?"}) as hop:
        await build(hop).deliver(mail())
    assert hop.commands[:3] == ["EHLO relay.example", "HELO relay.example", "MAIL FROM:<ann@alice.example>"]


async def _accepts_and_hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 next.example\r\n")
    for reply in (b"250 next.example", b"250 Ok", b"250 Ok", b"354 Go on"):
        await reader.readline()
        writer.write(reply + b"\r\n")
    await reader.readuntil(b"\r\n.\r\n")
    writer.write(b"250 Ok: queued\r\n")
    writer.close()
    await writer.wait_closed()


async def test_a_next_hop_that_hangs_up_right_after_accepting_has_accepted(build: Build) -> None:
    async with await asyncio.start_server(_accepts_and_hangs_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert (await build(f"127.0.0.1:{port}").deliver(mail())).answer == "Ok: queued"
