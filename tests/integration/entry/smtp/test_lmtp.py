"""LMTP: a reply for each recipient, so that the mail server holds, refuses or forgets each by itself.
Standard: RFC 2033; the relay behind it is a whole one, with a next hop that treats recipients differently.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.errors import MalformedMessage, NextHopRefused, PolicyHolds, TryLater
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from tests.integration.entry.smtp.recipes import serving
from tests.testlib import mails, sites
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit, submit_lmtp, talking

POLICIES = {"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'}


def with_lmtp(site: Site) -> Site:
    """The site, whose entries listen for both."""
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace('listen = "127.0.0.1:0"', 'listen = "127.0.0.1:0"\nlmtp = "127.0.0.1:0"'))
    return site


@pytest.fixture
async def addresses(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> AsyncIterator[dict[str, TCPAddress]]:
    """Alice's relay: sealed for Bob, in clear for open.example."""
    site = with_lmtp(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0],
            outgoing=wire.address, incoming=wire.address, policies=POLICIES,
        )
    )  # fmt: skip
    async with sites.serving(site) as running:
        yield running


async def test_both_directions_listen_for_both_protocols(addresses: dict[str, TCPAddress]) -> None:
    assert set(addresses) == {"outgoing", "outgoing_lmtp", "incoming", "incoming_lmtp"}
    for name in ("outgoing_lmtp", "incoming_lmtp"):
        [reply] = await submit_lmtp(addresses[name], mails.plain())
        assert reply.code == 250
    for name in ("outgoing", "incoming"):
        assert (await submit(addresses[name], mails.plain(), recipients=["ann@bob.example"])).code == 250


async def test_each_recipient_has_a_reply_of_its_own_in_their_order(
    addresses: dict[str, TCPAddress], wire: Sink
) -> None:
    recipients = ["press@open.example", "ben@bob.example", "bea@bob.example", "news@open.example"]
    wire.on_rcpt = {"ben@bob.example": "550 5.1.1 unknown", "news@open.example": "451 4.2.0 busy"}
    replies = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=recipients)
    assert [reply.code for reply in replies] == [250, 554, 250, 451]
    assert sorted(got.recipients for got in wire.got) == [("bea@bob.example",), ("press@open.example",)]


async def test_the_retry_for_the_one_who_was_held_repeats_nothing(addresses: dict[str, TCPAddress], wire: Sink) -> None:
    wire.on_rcpt = {"ben@bob.example": "451 4.2.0 busy"}
    both = ["press@open.example", "ben@bob.example"]
    replies = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=both)
    assert [reply.code for reply in replies] == [250, 451]
    wire.on_rcpt = {}
    [reply] = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=both[1:])
    assert reply.code == 250
    assert [got.recipients for got in wire.got] == [("press@open.example",), ("ben@bob.example",)]
    assert mime.is_sealed(wire.got[1].message)


async def test_a_recipient_that_policy_refuses_is_answered_at_once_and_the_others_go_on(
    addresses: dict[str, TCPAddress], wire: Sink
) -> None:
    recipients = ["x@nowhere.example", "ben@bob.example"]
    replies = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=recipients)
    assert [str(reply)[:9] for reply in replies] == ["550 5.7.1", "250 2.1.5"]
    assert [got.recipients for got in wire.got] == [("ben@bob.example",)]


async def test_what_holds_for_the_whole_mail_is_said_to_each(addresses: dict[str, TCPAddress], wire: Sink) -> None:
    bare = mails.plain(body="bare\nline feed\r\n")
    replies = await submit_lmtp(addresses["outgoing_lmtp"], bare, recipients=["a@bob.example", "b@bob.example"])
    assert [str(reply)[:9] for reply in replies] == ["554 5.6.0"] * 2
    assert not wire.got


async def test_the_received_field_says_lmtp(addresses: dict[str, TCPAddress], wire: Sink) -> None:
    await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=["press@open.example"])
    assert b" with LMTP id " in wire.got[0].message
    await submit_lmtp(
        addresses["outgoing_lmtp"], mails.plain(), recipients=["bén@open.example"], options=["SMTPUTF8"]
    )  # fmt: skip
    assert b" with UTF8LMTP id " in wire.got[1].message


async def test_lmtp_greets_with_lhlo_and_smtp_with_ehlo() -> None:
    async with serving("LMTP") as running, talking(running.address) as talk:
        for smtp in ("EHLO a.example", "HELO a.example"):
            assert str(await talk.say(smtp)).startswith("500 5.5.1")
        assert str(await talk.say("MAIL FROM:<a@b.example>")).startswith("503 5.5.1 Send LHLO")
        lines = (await talk.say("LHLO a.example")).text.split("\n")
        assert {"PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", "SMTPUTF8", "DSN"} < set(lines)
    async with serving("SMTP") as running, talking(running.address) as talk:
        assert str(await talk.say("LHLO a.example")).startswith("500 5.5.1")


async def test_without_any_accepted_recipient_there_is_no_content() -> None:
    async with serving("LMTP") as running, talking(running.address) as talk:
        running.recipe.outcomes = {"held@bob.example": PolicyHolds("no policy")}
        await talk.say("LHLO a.example")
        await talk.say("MAIL FROM:<a@b.example>")
        assert (await talk.say("RCPT TO:<held@bob.example>")).code == 451
        assert str(await talk.say("DATA")).startswith("503 5.5.1")


async def test_the_same_recipient_twice_has_two_replies() -> None:
    async with serving("LMTP") as running:
        running.recipe.outcomes = {"b@bob.example": NextHopRefused("no")}
        recipients = ["b@bob.example", "a@bob.example", "b@bob.example"]
        replies = await submit_lmtp(running.address, mails.plain(), recipients=recipients)
        assert [reply.code for reply in replies] == [554, 250, 554]
        assert running.recipe.mails[0].each_answered


@pytest.mark.parametrize("failure", [TryLater("x"), MalformedMessage("x"), RuntimeError("secret path")])
async def test_an_exception_is_the_same_reply_for_each_and_the_connection_goes_on(failure: Exception) -> None:
    async with serving("LMTP") as running, talking(running.address) as talk:
        running.recipe.failure = failure
        await talk.begin("a@bob.example", "b@bob.example", hello="LHLO")
        await talk.send(b"x\r\n.\r\n")
        first, second = str(await talk.reply()), str(await talk.reply())
        assert first == second
        assert first.startswith("554 5.6.0" if isinstance(failure, MalformedMessage) else "451 4.3.0")
        assert "secret" not in first
        assert (await talk.say("NOOP")).code == 250


async def test_content_that_is_too_large_is_refused_for_each() -> None:
    async with serving("LMTP", max_message_size=1000) as running:
        replies = await submit_lmtp(running.address, b"x\r\n" * 1000, recipients=["a@b.example", "c@d.example"])
        assert [str(reply)[:9] for reply in replies] == ["552 5.3.4"] * 2


async def test_swaks_speaks_lmtp_with_it(addresses: dict[str, TCPAddress], wire: Sink) -> None:
    address = addresses["outgoing_lmtp"]
    process = await asyncio.create_subprocess_exec(
        "swaks", "--protocol", "LMTP", "--server", address.host, "--port", str(address.port), "--helo", "a.example",
        "--from", "ann@alice.example", "--to", "ben@bob.example,press@open.example",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert sorted(got.recipients for got in wire.got) == [("ben@bob.example",), ("press@open.example",)]
