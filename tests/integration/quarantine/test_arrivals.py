"""The same message in several transactions, crashes, floods, notices: what the quarantine does as mail comes in.
Standard: one entry for a message; 250 is said only for what is on the disk; other mail is not touched.
"""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import aiosmtplib
import pytest
from hypothesis import given, strategies as st
from structlog.testing import LogCapture

from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly, upkeep
from relay.quarantine.triage import identity
from relay.store import store
from tests.integration.quarantine.conftest import PATIENCE, Bob, Seal, changed, flipped, settings
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.alarms import until_written
from tests.testlib.identities import Identities
from tests.testlib.refusals import PASSING, REFUSALS
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import give_identity
from tests.testlib.submit import submit

BEN, CARL, DORA = "ben@bob.example", "carl@bob.example", "dora@bob.example"
NOTICE = "notice = true"
SMALL = 'max_message_size = "40 KiB"\n\n[policies]'


def received(by: str) -> bytes:
    return f"Received: from a by {by}; Wed, 25 Nov 2026 10:00:00 +0000\r\n".encode()


async def test_copies_of_a_message_are_one_entry_for_all_their_recipients(bob: Bob, seal: Seal) -> None:
    message = flipped(await seal())
    async with bob.running() as relay:
        for number, recipients in enumerate(([BEN], [BEN, CARL], [DORA])):
            assert (await submit(relay, received(f"mx{number}") + message, recipients=recipients)).code == 250
        other = flipped(await seal())
        assert (await submit(relay, other)).code == 250
        assert (await submit(relay, message, sender="eve@stranger.example")).code == 250
    first, *others = await bob.listed()
    assert (first["recipients"], first["arrivals"]) == ([BEN, CARL, DORA], 4)
    assert len(others) == 1, "another message is another one; who sends this one on the way is no matter"


HEADERS = st.lists(st.sampled_from(["Received: x\r\n", "X-Spam: no\r\n", "Return-Path: <a@b.example>\r\n"]), max_size=5)


def mail(message: bytes, sender: str = "a@b.example", recipient: str = "x@y.example") -> Mail:
    return Mail(Envelope(sender, (Recipient(recipient),)), message)


@given(HEADERS, HEADERS, st.binary(min_size=1, max_size=60), st.binary(min_size=1, max_size=60), st.booleans())
def test_sealed_mail_is_the_same_where_its_cms_is_and_other_mail_where_sender_and_octets_are(
    some: list[str], more: list[str], content: bytes, other: bytes, ours: bool
) -> None:
    sealed = [mime.sealed_message(b"\r\n", der) for der in (content, content, other)]
    one, two, three = (
        mail("".join(headers).encode() + message) for headers, message in zip((some, more, some), sealed, strict=True)
    )
    assert identity(one) == identity(two)
    assert (identity(one) == identity(three)) is (content == other)
    assert identity(mail(one.message, sender="c@b.example")) == identity(one)
    plain = mail("".join(some).encode() + b"Subject: x\r\n\r\n" + content)
    assert (identity(plain) == identity(mail(plain.message + (b"" if ours else b"\r\n")))) is ours
    assert identity(mail(plain.message, sender="c@b.example")) != identity(plain)


async def test_a_spoilt_copy_cannot_take_the_place_of_the_true_one(bob: Bob, seal: Seal, sink: Sink) -> None:
    """Who saw a message pass sends it again, with the same CMS in a shape that never opens, before the true one."""
    message = await seal()
    header, body = message.split(b"\r\n\r\n", 1)
    spoilt = header.replace(b"base64", b"x-none") + b"\r\n\r\n" + body
    bob.configure(lambda text: text.replace('sae_id = "2"', 'sae_id = "5"'))
    async with bob.running() as relay:
        assert (await submit(relay, spoilt)).code == 250
        assert (await submit(relay, message)).code == 250
    bob.configure(lambda text: text.replace('sae_id = "5"', 'sae_id = "2"'))
    assert [entry["reason"] for entry in await bob.listed()] == ["unknown-format", "wrong-site"]
    await bob.command("release", "--all")
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_relay_killed_between_keeping_a_message_and_saying_so_recognises_it_again(
    bob: Bob, seal: Seal, sink: Sink
) -> None:
    bob.configure(settings(NOTICE))
    message = flipped(await seal())
    sink.gate = asyncio.Event()  # the notice waits here, and so does the reply
    async with bob.process() as relay:
        client = asyncio.create_task(submit(relay.addresses["incoming"], message))
        await sink.reached.wait()
        relay.kill()
        with pytest.raises(aiosmtplib.SMTPServerDisconnected):
            await client
    sink.gate.set()
    async with bob.process() as relay:
        assert (await submit(relay.addresses["incoming"], message)).code == 250
    [entry] = await bob.listed()
    assert (entry["arrivals"], entry["recipients"]) == (2, [BEN])


async def test_recipients_are_told_once_and_nothing_of_the_content(bob: Bob, seal: Seal, sink: Sink) -> None:
    bob.configure(settings(NOTICE))
    message = flipped(await seal())
    async with bob.running() as relay:
        for recipients in ([BEN], [BEN, CARL]):
            assert (await submit(relay, message, recipients=recipients)).code == 250
    [entry] = await bob.listed()
    assert [(got.sender, got.recipients) for got in sink.got] == [("", (BEN,)), ("", (CARL,))]
    for got in sink.got:
        text = got.message.decode("ascii")
        assert "Auto-Submitted: auto-generated\r\n" in text
        assert "From: postmaster@bob.example\r\n" in text
        assert all(word in text for word in ("ann@alice.example", "tampered", entry["id"]))
        assert "smime" not in text


@pytest.mark.in_process
async def test_a_notice_that_cannot_be_sent_changes_nothing(bob: Bob, seal: Seal, sink: Sink, log: LogCapture) -> None:
    bob.configure(settings(NOTICE))
    message = flipped(await seal())
    sink.on_data = ["451 4.2.0 busy"]
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    assert len(await bob.listed()) == 1
    assert [entry["event"] for entry in log.entries if "notice" in entry["event"]] == ["notice_not_sent"]


async def test_a_notice_that_is_refused_does_not_stop_those_to_the_others(bob: Bob, seal: Seal, sink: Sink) -> None:
    bob.configure(settings(NOTICE))
    message = flipped(await seal())
    sink.on_rcpt = {BEN: "550 5.1.1 unknown"}
    async with bob.running() as relay:
        assert (await submit(relay, message, recipients=[BEN, CARL])).code == 250
    assert [got.recipients for got in sink.got] == [(CARL,)]


@pytest.mark.parametrize(
    ("setting", "sender"), [("notice = false", "ann@alice.example"), (NOTICE, "x@y.example"), (NOTICE, "")]
)
async def test_without_the_setting_and_for_mail_of_strangers_nobody_is_told(
    bob: Bob, seal: Seal, sink: Sink, setting: str, sender: str
) -> None:
    bob.configure(settings(setting))
    message = changed(await seal(), lambda der: der.replace(b"\x0c\x011", b"\x0c\x019"))
    async with bob.running() as relay:
        assert (await submit(relay, message, sender=sender)).code == 250
    assert (len(await bob.listed()), sink.got) == (1, [])


@pytest.mark.in_process
async def test_a_flood_of_strangers_mail_leaves_room_for_the_peers_and_no_other_mail_is_held(
    bob: Bob, seal: Seal, sink: Sink, log: LogCapture
) -> None:
    bob.configure(settings('max_size = "84 KiB"'))
    bob.configure(lambda text: text.replace("[policies]", SMALL))
    body = mails.plain(body="x" * 70 + "\r\n" + "y" * 12_000 + "\r\n")
    flood = [changed(await seal(body), lambda der: der.replace(b"\x0c\x011", b"\x0c\x019")) for _ in range(3)]
    async with bob.running() as relay:
        replies = [await submit(relay, each, sender="x@stranger.example") for each in flood]
        assert [reply.code for reply in replies] == [250, 250, 451]
        assert str(replies[2]).startswith("451 4.3.1")
        assert (await submit(relay, flood[0], sender="x@stranger.example")).code == 250, "known mail needs no room"
        assert (await submit(relay, flipped(await seal(body)))).code == 250
        assert (await submit(relay, mails.plain(), sender="x@stranger.example")).code == 250
    assert sink.got[0].message.endswith(mails.plain())
    assert len(await bob.listed()) == 3
    [event] = [each for each in log.entries if each["event"] == "quarantine_full"]
    assert (event["log_level"], "in the name of no peer" in event["cause"]) == ("error", True)


async def test_hostile_names_disturb_no_terminal(bob: Bob, seal: Seal) -> None:
    message = changed(await seal(), lambda der: der.replace(b"\x0c\x011", b"\x0c\x01\x1b"))
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    _, _, out = await bob.raw_command("list")
    assert b"\x1b" not in out
    _, _, out = await bob.raw_command("show", (await bob.listed())[0]["id"])
    assert b"\x1b" not in out


async def test_a_store_that_cannot_be_written_holds_the_mail(
    bob: Bob, seal: Seal, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.5)
    message = flipped(await seal())
    async with bob.running() as relay:
        with closing(sqlite3.connect(bob.site.directory / "relay.db", isolation_level=None)) as somebody:
            somebody.execute("BEGIN IMMEDIATE")
            assert str(await submit(relay, message)).startswith("451 4.3.1")
        assert await bob.listed() == []
        assert (await submit(relay, message)).code == 250
    assert (len(await bob.listed()), sink.got) == (1, [])


async def test_a_mail_that_is_given_up_at_any_moment_is_kept_once_or_asked_for_again(bob: Bob, seal: Seal) -> None:
    """Cancelled after more and more steps, as when the relay is stopped; each time the client tries again."""
    message = flipped(await seal())
    given_up = 0
    async with assembly.parts(bob.site.config, prefetch=False) as parts:
        incoming = assembly.incoming_recipe(parts)
        for steps in range(0, 90, 3):
            work = asyncio.create_task(incoming.process(mail(message, "ann@alice.example", BEN)))
            for _ in range(steps):
                await asyncio.sleep(0)
            work.cancel()
            [outcome] = await asyncio.gather(work, return_exceptions=True)
            given_up += isinstance(outcome, asyncio.CancelledError)
            assert len(await parts.store.quarantine.all()) <= 1
            assert await incoming.process(mail(message, "ann@alice.example", BEN)) == (None,)
            [kept] = await parts.store.quarantine.all()
            assert kept.envelope.addresses == (BEN,)
            await parts.store.quarantine.drop(kept.id)
    assert given_up > 10


@pytest.mark.in_process
async def test_mail_of_a_peer_that_is_put_aside_is_told_until_somebody_has_decided(
    bob: Bob, seal: Seal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SWEEP_S", 0.2)
    message = flipped(await seal())
    with shortened():
        async with bob.running() as relay:
            assert (await submit(relay, message)).code == 250
            await until_written(bob.site, "mail_put_aside")
            status, _, out = await run("check", "--config", bob.site.config_file)
            assert (
                status,
                b"1 mail in the name of peer alice, as sender or sealed layers say (not verified), in quarantine: tampered"
                in out,
            ) == (1, True), out
            [entry] = await bob.listed()
            assert (await bob.command("drop", entry["id"]))[0] == 0
            await until_written(bob.site)


OTHERS = {"a bounce": "", "forwarded": "editor@list.example"}


@pytest.mark.parametrize("sender", OTHERS.values(), ids=OTHERS.keys())
async def test_what_names_a_peer_in_its_sealed_layers_is_in_that_peer_s_name(
    bob: Bob, seal: Seal, sender: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SWEEP_S", 0.2)
    message = flipped(await seal(sender=sender))
    with shortened():
        async with bob.running() as relay:
            assert (await submit(relay, message, sender=sender)).code == 250
            await until_written(bob.site, "mail_put_aside")
    [entry] = await bob.listed()
    assert (entry["named"], entry["party"], entry["reason"]) == ("alice", "", "tampered")


async def test_of_a_message_that_was_opened_the_verified_peer_counts_and_of_one_that_names_nobody_nobody(
    bob: Bob, seal: Seal, identities: Identities
) -> None:
    give_identity(bob.site, identities, "bob", "alice")
    message = await seal(how='peer = "bob"\nlevels = ["pqc"]\n', sender="", recipients=[BEN])
    async with bob.running() as relay:
        assert (await submit(relay, message, sender="", recipients=[CARL])).code == 250
        assert (await submit(relay, flipped(message), sender="", recipients=[BEN])).code == 250
        status, _, out = await run("check", "--config", bob.site.config_file)
        assert (status, b"2 messages" in out) == (1, True), out
    assert {(each["reason"], each["named"]) for each in await bob.listed()} == {
        ("redirected", "alice"),
        ("tampered", ""),
    }


async def test_what_is_put_aside_is_seen_without_the_site_secret(bob: Bob, seal: Seal) -> None:
    message = flipped(await seal())
    async with bob.running() as relay:
        assert (await submit(relay, message)).code == 250
    secret = bob.site.directory / "site.secret"
    kept = secret.rename(secret.with_name("elsewhere"))
    [entry] = await bob.listed()
    status, _, out = await run("check", "--config", bob.site.config_file, "--before-start", "--no-next-hops")
    assert (status, b"1 message (1 tampered) waits for a decision" in out, b"put it back" in out) == (1, True, True), (
        out
    )
    status, err, _ = await bob.command("show", entry["id"], "--raw")
    assert (status, "which is missing" in err) == (1, True)
    assert not secret.exists()
    kept.rename(secret)


async def test_a_database_that_cannot_be_reached_is_found_before_the_first_start(bob: Bob) -> None:
    bob.configure(lambda text: text.replace('"relay.db"', '"postgresql://relay@127.0.0.1:1/relay"'))
    status, _, out = await run("check", "--config", bob.site.config_file, "--before-start", "--no-next-hops")
    assert (status, b"WRONG  store  " in out, b"ok     quarantine" in out) == (1, True, False), out


@pytest.mark.in_process
async def test_mail_whose_key_is_refused_without_a_word_about_it_is_held_and_what_was_said_is_found_wherever_one_looks(
    bob: Bob, seal: Seal, kmes: DevelopmentKMEs, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WRITE_DOWN_S", 0.2)
    bob.configure(settings("hold_for = 0"))
    message = await seal()
    with shortened():
        async with bob.running() as relay:
            for name, refusal in REFUSALS.items():
                log.entries.clear()
                kmes.km2.misbehave(
                    "dec_keys", "http", times=None, code=refusal.code, body=refusal.body, headers=refusal.headers
                )
                assert (await submit(relay, message)).code == 451, name
                [cause] = [each["cause"] for each in log.entries if each["event"] == "mail_not_accepted"]
                assert refusal.said in cause, name
                assert f"HTTP {refusal.code}" in cause, name
            await until_written(bob.site, "received_keys_refused")
            async with asyncio.timeout(30):
                while b"alarm received_keys_refused" not in (
                    said := (await run("check", "--config", bob.site.config_file))[2]
                ):
                    await asyncio.sleep(0.1)
            assert refusal.said.encode() in said
            assert said.count(b"to a call for a key that does not exist") == 1
            assert b"quarantine_grows" not in said
            _, _, rows = await run("keys", "status", "--config", bob.site.config_file)
            assert refusal.said.encode() in rows
            assert await bob.listed() == []
            kmes.km2.behave()
            assert (await submit(relay, message)).code == 250


@pytest.mark.in_process
async def test_a_kme_that_fails_for_a_moment_delays_a_mail_and_no_more(
    bob: Bob, seal: Seal, kmes: DevelopmentKMEs
) -> None:
    bob.configure(lambda text: text.replace(PATIENCE, "lag_patience = 20"))
    async with bob.running() as relay:
        for name, refusal in PASSING.items():
            message = await seal()
            retry_after = tuple((field, value.replace("2", "1")) for field, value in refusal.headers)
            kmes.km2.misbehave("dec_keys", "http", code=refusal.code, body=refusal.body, headers=retry_after)
            assert (await submit(relay, message)).code == 250, name


@pytest.mark.in_process
async def test_a_kme_that_never_answers_for_keys_of_arriving_mail_is_named_wherever_one_looks(
    bob: Bob, seal: Seal, kmes: DevelopmentKMEs, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WRITE_DOWN_S", 0.2)
    bob.configure(lambda text: text.replace(PATIENCE, f"{PATIENCE}\ntimeout = 0.5"))
    message = await seal()
    kmes.km2.misbehave("dec_keys", "hang", times=None)
    with shortened():
        async with bob.running() as relay:
            async with asyncio.timeout(60):
                while not any(each["event"] == "received_keys_refused" for each in log.entries):
                    assert (await submit(relay, message)).code == 451
                await until_written(bob.site, "received_keys_refused")
                while b"no key of arriving mail" not in (
                    said := (await run("check", "--config", bob.site.config_file))[2]
                ):
                    await asyncio.sleep(0.1)
            assert b"alarm received_keys_refused" in said
            assert b"a proxy in front of it" in said
