"""What is said to a next hop according to what it offers.
Standard: RFC 3461 6.2 (DSN), RFC 6152 (8BITMIME), RFC 6531 (SMTPUTF8), RFC 1870 (SIZE), Postfix's XFORWARD_README.
"""

from __future__ import annotations

import pytest

from relay.errors import NextHopRefused
from relay.mail import Origin, Recipient
from tests.integration.forward.conftest import Build
from tests.integration.forward.mails import BEN, TEXT, mail
from tests.testlib.hop import EVERYTHING, Hop

WITH_DSN = Recipient(BEN, notify="SUCCESS,DELAY", orcpt="rfc822;ben+2B@bob.example")
XFORWARD = "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"


def without(*names: str) -> tuple[str, ...]:
    return tuple(each for each in EVERYTHING if each.split()[0] not in names)


async def test_dsn_parameters_pass_through(build: Build) -> None:
    async with Hop() as hop:
        await build(hop).deliver(mail(WITH_DSN, sender="", ret="HDRS", envid="QQ314159"))
    assert "MAIL FROM:<> SIZE=20 RET=HDRS ENVID=QQ314159" in hop.commands
    assert f"RCPT TO:<{BEN}> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;ben+2B@bob.example" in hop.commands


async def test_a_next_hop_without_dsn_is_told_nothing_of_it(build: Build) -> None:
    async with Hop(without("DSN")) as hop:
        await build(hop).deliver(mail(WITH_DSN, ret="HDRS", envid="QQ314159"))
    assert hop.commands[1:3] == ["MAIL FROM:<ann@alice.example> SIZE=20", f"RCPT TO:<{BEN}>"]


async def test_a_next_hop_that_offers_nothing_is_told_addresses_only(build: Build) -> None:
    async with Hop(()) as hop:
        await build(hop).deliver(mail(WITH_DSN, smtputf8=True, origin=Origin(addr="192.0.2.1")))
    assert hop.commands[1:3] == ["MAIL FROM:<ann@alice.example>", f"RCPT TO:<{BEN}>"]


async def test_8_bit_content_is_announced(build: Build) -> None:
    async with Hop() as hop:
        await build(hop).deliver(mail(message=TEXT + b"\xfc\r\n"))
    assert hop.got[0].mail_options == ("SIZE=23", "BODY=8BITMIME")


async def test_8_bit_content_is_refused_where_the_next_hop_cannot_take_it(build: Build) -> None:
    async with Hop(without("8BITMIME")) as hop:
        with pytest.raises(NextHopRefused, match="8BITMIME") as caught:
            await build(hop).deliver(mail(message=TEXT + b"\xfc\r\n"))
        await hop.until_closed()
    assert caught.value.reply.startswith("554 5.6.3")
    assert hop.commands == ["EHLO relay.example", "QUIT"]


UTF8 = "b\u00e9n@bob.example"


async def test_utf8_addresses_pass_through(build: Build) -> None:
    async with Hop() as hop:
        await build(hop).deliver(mail(UTF8, smtputf8=True))
    assert (hop.got[0].recipients, hop.got[0].mail_options) == ((UTF8,), ("SIZE=20", "SMTPUTF8"))


async def test_a_mail_that_could_have_been_utf8_and_is_not_goes_without(build: Build) -> None:
    async with Hop(without("SMTPUTF8")) as hop:
        handed = await build(hop).deliver(mail(smtputf8=True, message=TEXT + "gr\u00fcn\r\n".encode()))
    assert handed.outcomes == (None,)
    assert "SMTPUTF8" not in hop.got[0].mail_options


@pytest.mark.parametrize(
    ("sender", "header"), [("\u00e4nn@alice.example", b""), ("ann@alice.example", "X: gr\u00fcn\r\n".encode())]
)
async def test_a_utf8_sender_or_header_is_refused_where_the_next_hop_cannot_take_it(
    build: Build, sender: str, header: bytes
) -> None:
    async with Hop(without("SMTPUTF8")) as hop:
        with pytest.raises(NextHopRefused, match="SMTPUTF8") as caught:
            await build(hop).deliver(mail(sender=sender, smtputf8=True, message=header + TEXT))
    assert caught.value.reply.startswith("554 5.6.7")
    assert not hop.got


async def test_a_utf8_recipient_whom_the_next_hop_cannot_take_does_not_stop_the_others(build: Build) -> None:
    async with Hop(without("SMTPUTF8")) as hop:
        refused, accepted = (await build(hop).deliver(mail(UTF8, BEN, smtputf8=True))).outcomes
    assert isinstance(refused, NextHopRefused)
    assert refused.status == "5.6.7"
    assert accepted is None
    assert hop.got[0].recipients == (BEN,)


@pytest.mark.parametrize("size", ["20", "0", "", "many", "9" * 1000])
async def test_a_message_that_fits_is_sent_with_its_size(build: Build, size: str) -> None:
    async with Hop((*without("SIZE"), f"SIZE {size}")) as hop:
        await build(hop).deliver(mail())
    assert hop.got[0].mail_options == ("SIZE=20",)


async def test_a_message_larger_than_the_next_hop_takes_is_refused_before_it_is_sent(build: Build) -> None:
    async with Hop((*without("SIZE"), "SIZE 19")) as hop:
        with pytest.raises(NextHopRefused, match="20 octets, the next hop takes 19") as caught:
            await build(hop).deliver(mail())
    assert caught.value.reply.startswith("554 5.3.4")
    assert not any("MAIL" in command for command in hop.commands)


async def test_the_origin_goes_to_a_next_hop_that_asks_for_it_but_never_the_users_name(build: Build) -> None:
    origin = Origin("h\u00f4st a", "2001:db8::1", "4711", "ESMTP", "a+b=c", "4XyZ", "LOCAL", user="ann-secret")
    async with Hop((*EVERYTHING, XFORWARD)) as hop:
        await build(hop).deliver(mail(origin=origin))
    assert hop.commands[1] == (
        "XFORWARD NAME=h+C3+B4st+20a ADDR=IPV6:2001:db8::1 PORT=4711 PROTO=ESMTP HELO=a+2Bb+3Dc IDENT=4XyZ SOURCE=LOCAL"
    )
    assert not any("secret" in command for command in hop.commands)


async def test_only_what_the_next_hop_lists_is_forwarded_and_what_is_unknown_is_said_to_be(build: Build) -> None:
    async with Hop((*EVERYTHING, "XFORWARD ADDR HELO FUTURE")) as hop:
        await build(hop).deliver(mail(origin=Origin(addr="192.0.2.1", ident="4XyZ")))
    assert hop.commands[1] == "XFORWARD ADDR=192.0.2.1 HELO=[UNAVAILABLE]"


async def test_a_long_origin_is_spread_over_several_commands(build: Build) -> None:
    origin = Origin(name="n" * 255, addr="192.0.2.1", helo="h" * 255, ident="i" * 256)
    async with Hop((*EVERYTHING, XFORWARD)) as hop:
        await build(hop).deliver(mail(origin=origin))
    lines = [command for command in hop.commands if command.startswith("XFORWARD ")]
    assert len(lines) == 2
    assert all(len(line) <= 510 for line in lines)
    assert "IDENT=[UNAVAILABLE]" in lines[1]


@pytest.mark.parametrize("extensions", [EVERYTHING, without("PIPELINING")])
async def test_a_next_hop_that_refuses_the_origin_gets_the_mail_all_the_same(
    build: Build, extensions: tuple[str, ...]
) -> None:
    async with Hop((*extensions, XFORWARD), instead={"XFORWARD": "550 5.7.0 not you"}) as hop:
        assert (await build(hop).deliver(mail(origin=Origin(addr="192.0.2.1")))).outcomes == (None,)
    assert len(hop.got) == 1
