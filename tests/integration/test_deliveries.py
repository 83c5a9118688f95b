"""A mail in several forms, a next hop that fails for some of them, retries: each recipient gets it once.
Standard: RFC 5321 6.1; a retry repeats nothing and spends no second key.
"""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from relay.config import TCPAddress
from relay.errors import DeliveryUnderWay, StoreUnavailable, TryLater
from relay.formats import mime
from relay.journey.deliveries import Deliveries
from relay.journey.planner import Planner
from relay.journey.sealing import SealedCopy
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.store.secret import SiteSecret
from relay.store.sent import SentRecords
from relay.store.store import open_store
from tests.integration.entry.milter.mta import MTA, Field, in_thread
from tests.testlib import mails
from tests.testlib.hop import HANG_UP, SILENCE, Answer, Hop
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process, serving
from tests.testlib.submit import SMTPReply, submit, submit_lmtp, talking

RECIPIENTS = ["ben@bob.example", "press@open.example"]
AES_OCTETS = bytes.fromhex("060960864801650304012e")
OTP_OCTETS = bytes.fromhex("0614698286a6dcf08ff1ca9e97b8c5a2c1d1aea39e71")
"""How DER writes the content encryption of each level."""


@pytest.fixture
def site(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> Site:
    """Alice's site: sealed for Bob, in clear for open.example."""
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'},
    )  # fmt: skip


@pytest.fixture
async def hop() -> AsyncIterator[Hop]:
    async with Hop() as server:
        yield server


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[TCPAddress]:
    async with serving(site) as addresses:
        yield addresses["outgoing"]


async def send(relay: TCPAddress, message: bytes = mails.plain()) -> SMTPReply:
    return await submit(relay, message, recipients=RECIPIENTS)


def forms(site: Site) -> list[bytes]:
    """The sealed forms that wait in the journal."""
    with closing(sqlite3.connect(site.directory / "relay.db")) as database:
        return [message for (message,) in database.execute("SELECT message FROM sealed_copies")]


def journal(site: Site) -> list[bool]:
    """Of each recipient that is remembered, whether the mail was delivered."""
    with closing(sqlite3.connect(site.directory / "relay.db")) as database:
        return [bool(has_it) for (has_it,) in database.execute("SELECT copy IS NULL FROM deliveries")]


def deliveries(wire: Sink) -> list[tuple[str, ...]]:
    return [got.recipients for got in wire.got]


async def test_a_retry_completes_what_failed_and_repeats_nothing(site: Site, wire: Sink) -> None:
    async with running(site) as relay:
        wire.on_rcpt = {"press@open.example": "451 4.2.0 busy"}
        assert (await send(relay)).code == 451
        assert deliveries(wire) == [("ben@bob.example",)]
        wire.on_rcpt = {}
        assert (await send(relay)).code == 250
        assert deliveries(wire) == [("ben@bob.example",), ("press@open.example",)]
        assert wire.got[1].message.endswith(mails.plain())


async def test_a_retry_sends_the_same_sealed_form_under_the_same_key(
    site: Site, wire: Sink, kmes: DevelopmentKMEs
) -> None:
    async with running(site) as relay:
        wire.on_data = ["451 4.2.0 busy"] * 3
        for _ in range(3):
            assert (await submit(relay, mails.plain())).code == 451
        issued = kmes.link.issued.total()
        assert (await submit(relay, mails.plain())).code == 250
        assert kmes.link.issued.total() == issued
    assert len(wire.got) == 1


def keys_live_for(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """As if the peer's KME forgot a key so long after it was used here: for a relay in this process."""
    monkeypatch.setattr(Planner, "left_for_peer", lambda _, keys: seconds if keys else math.inf)


def behind(site: Site, hop: Hop) -> None:
    """The site's mail goes on to this next hop."""
    site.config_file.write_text(re.sub('next_hop = ".*"', f'next_hop = "{hop.next_hop}"', site.config_file.read_text()))


@pytest.mark.in_process
async def test_a_form_whose_key_the_peer_need_not_have_any_more_is_sealed_anew(
    site: Site, wire: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_live_for(monkeypatch, 0.0)
    async with running(site) as relay:
        wire.on_data = ["451 4.2.0 busy"]
        assert (await submit(relay, mails.plain())).code == 451
        [before] = forms(site)
        assert (await submit(relay, mails.plain())).code == 250
    [got] = wire.got
    assert AES_OCTETS in mime.sealed_content(got.message)
    assert mime.sealed_content(got.message) != mime.sealed_content(before)


@pytest.mark.in_process
async def test_while_no_next_hop_answers_such_a_form_waits_and_no_key_is_spent(
    site: Site, hop: Hop, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys_live_for(monkeypatch, 0.0)
    behind(site, hop)
    async with running(site) as relay:
        hop.instead = {"greeting": "421 4.3.2 closed"}
        assert (await submit(relay, mails.plain())).code == 451
        [before] = forms(site)
        for _ in range(3):
            assert (await submit(relay, mails.plain())).code == 451
            assert forms(site) == [before]
        hop.instead = {}
        assert (await submit(relay, mails.plain())).code == 250
    [got] = hop.got
    assert mime.sealed_content(got.message) != mime.sealed_content(before)


@pytest.mark.in_process
async def test_a_form_that_a_next_hop_may_have_is_sent_again_however_old_it_is(
    site: Site, hop: Hop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed anew it would be a second mail for the peer."""
    keys_live_for(monkeypatch, 0.0)
    behind(site, hop)
    async with running(site) as relay:
        hop.instead = {".": [HANG_UP]}
        assert (await submit(relay, mails.plain())).code == 451
        [before] = forms(site)
        hop.instead = {"RCPT": ["451 4.2.1 busy"]}
        assert (await submit(relay, mails.plain())).code == 451
        assert (await submit(relay, mails.plain())).code == 250
    assert {mime.sealed_content(got.message) for got in hop.got} == {mime.sealed_content(before)}


async def test_a_retry_after_a_restart_still_knows_what_has_left(site: Site, wire: Sink) -> None:
    async with running(site) as relay:
        wire.on_rcpt = {"ben@bob.example": "451 4.2.0 busy"}
        assert (await send(relay)).code == 451
    assert deliveries(wire) == [("press@open.example",)]
    wire.on_rcpt = {}
    async with running(site) as relay:
        assert (await send(relay)).code == 250
    assert deliveries(wire) == [("press@open.example",), ("ben@bob.example",)]
    assert mime.is_sealed(wire.got[1].message)


async def test_a_retry_after_a_kill_still_knows_what_has_left(site: Site, wire: Sink) -> None:
    async with relay_process(site) as relay:
        wire.on_rcpt = {"ben@bob.example": "451 4.2.0 busy"}
        assert (await send(relay.addresses["outgoing"])).code == 451
        relay.kill()
    wire.on_rcpt = {}
    async with relay_process(site) as relay:
        assert (await send(relay.addresses["outgoing"])).code == 250
    assert sorted(deliveries(wire)) == [("ben@bob.example",), ("press@open.example",)]


async def test_a_relay_killed_between_two_forms_sends_only_the_second_one_when_the_mail_comes_again(
    site: Site, wire: Sink
) -> None:
    wire.gate, wire.gate_from = asyncio.Event(), 1
    async with relay_process(site) as relay:
        sending = asyncio.create_task(send(relay.addresses["outgoing"]))
        await wire.reached.wait()
        relay.kill()
        with pytest.raises((OSError, EOFError)):
            await sending
    await wire.stop()  # nobody hears about the second
    wire.gate = None
    await wire.start()
    async with relay_process(site) as relay:
        [line] = [line for line in relay.log.splitlines() if "delivery_interrupted" in line]
        assert json.loads(line)["recipients"] == 2, "one of whom may get it twice, for all that is known"
        assert (await send(relay.addresses["outgoing"])).code == 250
    assert sorted(deliveries(wire)) == [("ben@bob.example",), ("press@open.example",)]


async def test_a_relay_killed_between_two_transactions_with_a_next_hop_that_limits_them_repeats_none(
    site: Site, hop: Hop
) -> None:
    site.config_file.write_text(re.sub('next_hop = ".*"', f'next_hop = "{hop.next_hop}"', site.config_file.read_text()))
    ends: list[Answer] = ["", SILENCE]
    hop.instead = {"RCPT TO:<bea@bob.example>": ["452 4.5.3 Too many recipients"], ". ": ends}
    recipients = ["ben@bob.example", "bea@bob.example"]
    async with relay_process(site) as relay:
        sending = asyncio.create_task(submit(relay.addresses["outgoing"], mails.plain(), recipients=recipients))
        while ends:
            await asyncio.sleep(0.01)
        relay.kill()
        await asyncio.gather(sending, return_exceptions=True)
    async with relay_process(site) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    assert [got.recipients for got in hop.got] == [("ben@bob.example",), ("bea@bob.example",)]


async def test_a_mail_whose_client_left_before_the_answer_comes_once_whatever_comes_of_others_meanwhile(
    site: Site, wire: Sink
) -> None:
    async with running(site) as relay:
        wire.gate = asyncio.Event()
        _, writer = await asyncio.open_connection(*relay)
        lines = ["EHLO c.example", "MAIL FROM:<ann@alice.example>", "RCPT TO:<ben@bob.example>", "DATA"]
        writer.write("".join(f"{line}\r\n" for line in lines).encode() + mails.plain() + b".\r\n")
        await wire.reached.wait()
        writer.transport.abort()
        wire.gate.set()
        await wire.messages(1)
        while not journal(site):
            await asyncio.sleep(0.01)
        assert (await submit(relay, mails.plain(), recipients=["press@open.example"])).code == 250
        assert (await submit(relay, mails.plain(), recipients=["ben@bob.example"])).code == 250
    assert deliveries(wire) == [("ben@bob.example",), ("press@open.example",)]


async def test_by_lmtp_a_recipient_whose_delivery_was_confirmed_is_not_remembered(site: Site, wire: Sink) -> None:
    text = site.config_file.read_text().replace("[outgoing]", '[outgoing]\nlmtp = "127.0.0.1:0"')
    site.config_file.write_text(text)
    async with serving(site) as addresses:
        wire.on_rcpt = {"ben@bob.example": "451 4.2.0 busy"}
        first = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(), recipients=RECIPIENTS)
        assert [reply.code for reply in first] == [451, 250]
        wire.on_rcpt = {}
        async with asyncio.timeout(20):
            while journal(site) != [False]:  # not before the client has its answer
                await asyncio.sleep(0.01)


async def test_the_same_message_sent_again_after_success_is_a_new_mail(site: Site, wire: Sink) -> None:
    async with running(site) as relay:
        for _ in range(2):
            assert (await send(relay)).code == 250
    assert sorted(deliveries(wire)) == [("ben@bob.example",)] * 2 + [("press@open.example",)] * 2


async def test_a_form_that_is_refused_does_not_stop_the_others_and_the_sender_is_told(site: Site, wire: Sink) -> None:
    async with running(site) as relay:
        wire.on_rcpt = {"ben@bob.example": "550 5.1.1 unknown"}
        assert str(await send(relay)) == "554 5.1.1 Refused by the next hop (1 of 2 recipients have it)"
    assert deliveries(wire) == [("press@open.example",)]


@pytest.mark.in_process
async def test_one_of_a_thousand_who_is_refused_costs_the_others_nothing(site: Site, wire: Sink) -> None:
    """By LMTP the reply to each is their own; the one reply that SMTP has refuses, and says how many have the mail."""
    site.config_file.write_text(
        site.config_file.read_text().replace("[outgoing]", '[outgoing]\nlmtp = "127.0.0.1:0"', 1)
    )
    thousand = [f"user{number}@bob.example" for number in range(1000)]
    wire.on_rcpt = {thousand[500]: "550 5.1.1 unknown"}
    async with serving(site) as addresses:
        told = await submit(addresses["outgoing"], mails.plain(), recipients=thousand)
        each = await submit_lmtp(addresses["outgoing_lmtp"], mails.plain(body="another\r\n"), recipients=thousand)
    assert str(told) == "554 5.1.1 Refused by the next hop (999 of 1000 recipients have it)"
    assert str(each.pop(500)) == "554 5.1.1 Refused by the next hop"
    assert {reply.code for reply in each} == {250}
    assert [len(got.recipients) for got in wire.got] == [999, 999]


async def test_a_policy_tightened_meanwhile_keeps_the_retry_from_leaving_in_clear(site: Site, wire: Sink) -> None:
    async with running(site) as relay:
        wire.on_rcpt = {"press@open.example": "451 4.2.0 busy"}
        assert (await send(relay)).code == 451
    wire.on_rcpt = {}
    site.write_policies({"open.example.toml": 'levels = ["aes"]\notherwise = "refuse"\n'})
    async with running(site) as relay:
        assert str(await send(relay)).startswith("550 5.7.1")
    assert deliveries(wire) == [("ben@bob.example",)]


@pytest.mark.promise("Mail that waits for a retry is ciphertext")
async def test_no_plaintext_is_kept_for_the_retry(site: Site, wire: Sink) -> None:
    async with running(site) as relay:
        wire.on_data = ["451 4.2.0 busy"] * 2
        assert (await send(relay)).code == 451
    for path in site.directory.glob("relay.db*"):
        assert b"figures" not in path.read_bytes()


@pytest.mark.parametrize("first", ["250", "451 4.2.0 busy"])
async def test_a_mailbox_whose_domain_is_written_in_two_ways_gets_one_copy(site: Site, wire: Sink, first: str) -> None:
    recipients = ["ben@bob.example", "ben@BOB.Example", "Ben@bob.example"]
    wire.on_data = [first] if first != "250" else []
    async with running(site) as relay:
        if wire.on_data:
            assert (await submit(relay, mails.plain(), recipients=recipients)).code == 451
            recipients.reverse()  # nor does a retry need the same spelling
        assert (await submit(relay, mails.plain(), recipients=recipients)).code == 250
    [got] = wire.got
    assert sorted(address.partition("@")[0] for address in got.recipients) == ["Ben", "ben"]


async def test_who_has_the_mail_does_not_get_it_again_under_another_spelling_of_their_domain(
    site: Site, wire: Sink
) -> None:
    async with running(site) as relay:
        wire.on_rcpt = {"press@open.example": "451 4.2.0 busy"}
        assert (await send(relay)).code == 451
        wire.on_rcpt = {}
        assert (await submit(relay, mails.plain(), recipients=["ben@bob.EXAMPLE", "press@OPEN.example"])).code == 250
    assert deliveries(wire) == [("ben@bob.example",), ("press@OPEN.example",)]


@pytest.mark.parametrize(
    ("edit", "makes_another", "octets"),
    [
        ({"bob.example.toml": 'levels = ["otp"]\n'}, True, OTP_OCTETS),
        ({"bob.example.toml": 'levels = ["otp", "aes"]\n'}, False, AES_OCTETS),
        ({"nowhere.example.toml": 'levels = ["otp"]\n'}, False, AES_OCTETS),
    ],
    ids=["stronger", "still listed", "of others"],
)
async def test_a_sealed_form_waits_only_for_as_long_as_policy_wants_it(
    site: Site, wire: Sink, kmes: DevelopmentKMEs, edit: dict[str, str], makes_another: bool, octets: bytes
) -> None:
    async with running(site) as relay:
        wire.on_data = ["451 4.2.0 busy"]
        assert (await submit(relay, mails.plain())).code == 451
    site.write_policies(edit)
    async with running(site) as relay:
        [form] = forms(site)
        assert (await submit(relay, mails.plain())).code == 250
    [got] = wire.got
    assert octets in mime.sealed_content(mails.untraced(got.message))
    assert (mails.untraced(got.message) != form) == makes_another
    assert forms(site) == []


async def test_what_a_milter_handed_on_itself_goes_once_however_often_the_mail_server_tries(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    site = make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=wire.address,
        settings='milter = "127.0.0.1:0"',
    )  # fmt: skip
    forged: list[Field] = [("From", " ann@alice.example"), ("X-QuMail-Protection", " aes; peer=alice")]

    def once(milter: TCPAddress) -> None:
        mta = MTA(milter)
        mta.negotiate()
        mta.mail(forged, "a last line without an end, as edits cannot make it")
        mta.close()

    async with serving(site) as addresses:
        for _ in range(3):
            await in_thread(once, addresses["incoming_milter"])
    assert len(wire.got) == 1


async def send_and_shut(relay: TCPAddress, message: bytes) -> SMTPReply:
    """The answer to a client that sends no more behind its mail, but listens."""
    async with talking(relay) as talk:
        await talk.begin("press@open.example")
        await talk.send(message + b".\r\nQUIT\r\n")
        talk.writer.write_eof()
        reply = await talk.reply()
        assert (await talk.reply()).code == 221
        return reply


@pytest.mark.parametrize(("field", "copies"), [(b"", 2), (b"Message-ID: <1@a>\r\n", 1), (b"Received: id 1\r\n", 1)])
async def test_of_who_may_have_heard_a_second_mail_is_kept_back_only_where_it_must_be_the_same(
    site: Site, wire: Sink, field: bytes, copies: int
) -> None:
    """Of a script that sends the same octets every night nothing may be lost."""
    async with running(site) as relay:
        wire.gate = asyncio.Event()
        sending = asyncio.create_task(send_and_shut(relay, field + b"Subject: all is well\r\n\r\n"))
        await wire.reached.wait()
        wire.gate.set()
        assert (await sending).code == 250
        while field and not journal(site):
            await asyncio.sleep(0.01)
        async with asyncio.timeout(30):  # another worker may take it up before the first one has put the mail away
            while (again := await send_and_shut(relay, field + b"Subject: all is well\r\n\r\n")).code == 451:
                pass
        assert again.code == 250
    assert len(wire.got) == copies


def two_recipients(message: bytes, mail_id: str) -> Mail:
    """A mail from a client that hears an outcome for each of them."""
    envelope = Envelope("ann@alice.example", (Recipient("a@x"), Recipient("b@y")))
    return Mail(envelope, message, mail_id, each_answered=True)


async def test_who_has_the_mail_is_known_when_a_try_is_cancelled_while_its_outcome_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = SiteSecret.load_or_create(tmp_path / "secret")
    writing, gate = asyncio.Event(), asyncio.Event()
    async with await open_store(tmp_path / "relay.db", secret) as store:
        settle = store.deliveries.settle

        async def slow(*arguments: Any) -> None:
            writing.set()
            await gate.wait()
            await settle(*arguments)

        monkeypatch.setattr(store.deliveries, "settle", slow)
        tries, mail = Deliveries("outgoing", store.deliveries), two_recipients(b"x\r\n", "1")

        async def work() -> None:
            async with tries.of(mail) as delivery:
                first, second = mail.envelope.recipients
                delivery.note([first, second], (None, TryLater("busy")))
                delivery.copies.append(SealedCopy("aes", "bob", b"sealed", "policy", "1", recipients=[second]))

        working = asyncio.create_task(work())
        await writing.wait()
        working.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        with pytest.raises(asyncio.CancelledError):
            await working
    async with (
        await open_store(tmp_path / "relay.db", secret) as store,
        Deliveries("outgoing", store.deliveries).of(mail) as again,
    ):
        assert again.begun.delivered == {"a@x"}
        assert again.rest.envelope.recipients == ()


async def test_a_retry_that_comes_as_its_client_is_found_gone_delivers_nothing_again(tmp_path: Path) -> None:
    """The message is so large that its digest takes longer than everything else."""
    octets = b"x" * 20_000_000
    async with await open_store(tmp_path / "relay.db", SiteSecret.load_or_create(tmp_path / "secret")) as store:
        tries, mail = Deliveries("incoming", store.deliveries), two_recipients(octets, "1")

        async def again() -> tuple[Recipient, ...]:
            with suppress(DeliveryUnderWay):
                async with tries.of(two_recipients(octets, "2")) as delivery:
                    return delivery.rest.envelope.recipients
            return ()

        async with tries.of(mail) as delivery:
            delivery.note(mail.envelope.recipients, (None, None))
            retry = asyncio.create_task(again())
            await asyncio.sleep(0)
        await tries.client_gone(mail, (None, None))
        assert await retry == ()


@pytest.mark.promise("A killed relay sends nothing twice")
@pytest.mark.parametrize("recipients", [["ben@bob.example"], ["ben@bob.example", "bea@bob.example"]])
async def test_a_relay_killed_right_after_the_next_hop_has_said_250_sends_nothing_twice(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, recipients: list[str]
) -> None:
    """The store is locked, so that nothing of it can be in there."""
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with relay_process(site) as relay:
        # So there are keys at hand, which need not be written down any more.
        assert (await submit(relay.addresses["outgoing"], mails.eight_bit(), recipients=recipients)).code == 250
        wire.got.clear()
        wire.reached.clear()
        with closing(sqlite3.connect(site.directory / "relay.db", isolation_level=None)) as other:
            wire.gate = asyncio.Event()
            sending = asyncio.create_task(submit(relay.addresses["outgoing"], mails.plain(), recipients=recipients))
            await wire.reached.wait()
            other.execute("BEGIN IMMEDIATE")
            before = sent_so_far(site)
            wire.gate.set()
            async with asyncio.timeout(30):
                while sent_so_far(site) == before:
                    await asyncio.sleep(0.001)
            relay.kill()
            await relay.process.wait()
            await asyncio.gather(sending, return_exceptions=True)
    wire.gate = None
    async with relay_process(site) as relay:
        assert (await submit(relay.addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    assert Counter(each for got in wire.got for each in got.recipients) == dict.fromkeys(recipients, 1)


def sent_so_far(site: Site) -> bytes:
    """What was written down at once of what has left."""
    return b"".join(path.read_bytes().rstrip(b"\0") for path in (site.directory / "sent.recent").glob("*"))


@pytest.mark.in_process
async def test_what_could_not_be_noted_when_it_has_left_does_not_leave(
    site: Site, wire: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    take_room = os.posix_fallocate

    def room(file: int, offset: int, octets: int) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        take_room(file, offset, octets)

    monkeypatch.setattr(os, "posix_fallocate", room)
    async with running(site) as relay:
        reply = await submit(relay, mails.plain(), recipients=RECIPIENTS[:1])
        assert (reply.code, reply.text[:5]) == (451, "4.3.1")
        assert wire.got == []
        full[0] = False
        assert (await submit(relay, mails.plain(), recipients=RECIPIENTS[:1])).code == 250
        assert len(wire.got) == 1


@pytest.mark.in_process
async def test_a_disk_that_fills_while_a_mail_is_sealed_keeps_it_and_another_try_spends_no_second_key(
    site: Site, wire: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, ready = [], SentRecords.ready

    def fills(sent: SentRecords) -> None:
        calls.append(sent)
        if len(calls) == 2:  # the last look before the mail leaves
            raise StoreUnavailable("disk full")
        ready(sent)

    monkeypatch.setattr(SentRecords, "ready", fills)
    async with running(site) as relay:
        assert (await submit(relay, mails.plain(), recipients=RECIPIENTS[:1])).code == 451
        [form] = forms(site)
        assert wire.got == []
        assert (await submit(relay, mails.plain(), recipients=RECIPIENTS[:1])).code == 250
    [got] = wire.got
    assert mails.untraced(got.message) == form
