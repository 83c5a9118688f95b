"""The whole journey of a message through two relays, seen from outside: a mail in, a mail out.
Standard: what comes out is octet for octet what went in; what is on the wire says nothing of it.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from relay.errors import StoreUnavailable
from relay.formats import cms, mime
from relay.journey.delivery import Delivery
from relay.journey.opening import MailOpener, Opened
from relay.journey.sealing import SealedCopy
from relay.kme import DevelopmentKMEs
from relay.mail import Mail
from relay.outcome.tally import Tally
from relay.store.delivery_records import DeliveryRecords
from tests.conftest import Pair
from tests.testlib import mails
from tests.testlib.payloads import payload
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit, until_settled

AES_MARK = b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n"
OTHER_MARK = AES_MARK.replace(b"author=peer", b"author=other")
"""That of mail whose author is not one of Alice's people, or cannot be told."""

OLD_SYNTAX = (
    b"Received : by old.alice.example;\r\n \r\n\tlong ago\r\n"
    b"From : ann@alice.example\r\nTo\t:ben@bob.example\r\nDate\t : 1 Jan 97 10:00 EST\r\nSubject : old\r\n\r\nx\r\n"
)
"""RFC 5322, 4: blanks before the colon, a line of blanks within a field, a year of two digits, a zone by name."""


async def test_what_bob_gets_is_octet_for_octet_what_alice_sent(pair: Pair, sink: Sink) -> None:
    for message in (
        mails.plain(),
        mails.eight_bit(),
        mails.random_attachment(),
        b"\r\n",
        b"no header\r\n",
        b"",
        OLD_SYNTAX,
    ):
        reply = await submit(pair.outgoing, message)
        assert reply.code == 250
        mark = AES_MARK if b"ann@alice.example" in message else OTHER_MARK
        assert mails.untraced(sink.got[-1].message) == mark + message


lines = st.binary(max_size=90).map(lambda line: line.replace(b"\r", b"").replace(b"\n", b"") + b"\r\n")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.lists(lines | st.sampled_from([b".\r\n", b"..\r\n", b"\r\n"]), max_size=20).map(b"".join))
def test_any_lines_come_out_as_they_went_in(message: bytes) -> None:
    """The part without sockets: hidden fields aside, what is wrapped, sealed and opened is the same."""
    without = mime.without_hidden_fields(message)
    assert mime.unwrap(payload(without))[:2] == ("message", without)
    mime.check_carriable(mime.sealed_message(without, without), max_hops=50)


async def test_several_recipients_at_one_peer_share_one_ciphertext(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'},
    )  # fmt: skip
    async with serving(site) as addresses:
        reply = await submit(
            addresses["outgoing"],
            mails.plain(),
            recipients=["ben@bob.example", "press@open.example", "bea@bob.example"],
        )
    assert reply.code == 250
    sealed, clear = sorted(wire.got, key=lambda got: mime.is_sealed(got.message), reverse=True)
    assert sealed.recipients == ("ben@bob.example", "bea@bob.example")
    assert b"figures" not in sealed.message
    assert clear.recipients == ("press@open.example",)
    assert clear.message.endswith(mails.plain())


async def test_recipients_without_a_level_do_not_stop_the_others_and_get_theirs_with_the_retry(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies={"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'},
    )  # fmt: skip
    gone = kmes.urls[0]
    await kmes.stop()
    recipients = ["press@open.example", "ben@bob.example"]
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 451
    assert [got.recipients for got in wire.got] == [("press@open.example",)]
    await kmes.start()
    site.config_file.write_text(site.config_file.read_text().replace(gone, kmes.urls[0]))
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    assert [got.recipients for got in wire.got] == [("press@open.example",), ("ben@bob.example",)]
    assert mime.is_sealed(wire.got[1].message)


@pytest.mark.parametrize("sender", ["", "ann@alice.example"])
async def test_the_sender_passes_through_the_null_one_too(pair: Pair, sink: Sink, sender: str) -> None:
    assert (await submit(pair.outgoing, mails.plain(), sender=sender)).code == 250
    assert sink.got[0].sender == sender


async def test_smtputf8_and_8bitmime_pass_through(pair: Pair, sink: Sink) -> None:
    reply = await submit(
        pair.outgoing, mails.eight_bit(), sender="änne@alice.example", recipients=["bén@bob.example"],
        options=["SMTPUTF8", "BODY=8BITMIME"],
    )  # fmt: skip
    assert reply.code == 250
    assert (sink.got[0].sender, sink.got[0].recipients) == ("änne@alice.example", ("bén@bob.example",))
    assert "SMTPUTF8" in sink.got[0].mail_options


async def test_a_bcc_recipient_is_not_to_be_found_by_the_others(pair: Pair, sink: Sink) -> None:
    message = mails.plain().replace(b"Subject:", b"Bcc: secretary@bob.example\r\nSubject:")
    recipients = ["ben@bob.example", "secretary@bob.example"]
    assert (await submit(pair.outgoing, message, recipients=recipients)).code == 250
    assert sink.got[0].recipients == tuple(recipients)
    assert b"secretary" not in sink.got[0].message


@pytest.mark.in_process
async def test_what_is_sealed_already_is_not_sealed_again(
    tmp_path: Path, kmes: DevelopmentKMEs, pair: Pair, sink: Sink, wire: Sink
) -> None:
    site = make_site(tmp_path / "alice2", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(site) as addresses:
        await submit(addresses["outgoing"], mails.plain())
        await submit(addresses["outgoing"], wire.got[0].message)
    assert mime.sealed_content(wire.got[1].message) == mime.sealed_content(wire.got[0].message)
    assert (await submit(pair.incoming, wire.got[1].message)).code == 250
    assert mails.untraced(sink.got[0].message) == AES_MARK + mails.plain()


async def test_plaintext_dressed_up_as_sealed_by_us_is_sealed_like_any_other_mail(
    tmp_path: Path, kmes: DevelopmentKMEs, pair: Pair, sink: Sink, wire: Sink
) -> None:
    """Anyone who knows the format can write our label around readable octets, even with a key_ID of ours."""
    site = make_site(tmp_path / "alice2", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(site) as addresses:
        await submit(addresses["outgoing"], mails.plain())
        genuine = cms.decode_enveloped(mime.sealed_content(wire.got[0].message))
        dressed = mime.sealed_message(b"", cms.encode_enveloped(replace(genuine, ciphertext=b"The figures are 42")))
        assert (await submit(addresses["outgoing"], dressed)).code == 250
    assert b"The figures are 42" not in mime.sealed_content(wire.got[1].message)
    assert (await submit(pair.incoming, wire.got[1].message)).code == 250
    assert mails.untraced(sink.got[-1].message) == OTHER_MARK + dressed


@pytest.mark.in_process
async def test_a_store_that_fails_after_delivery_does_not_have_the_mail_sent_again(
    pair: Pair, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(*_: object, **__: object) -> None:
        raise StoreUnavailable("disk full")

    monkeypatch.setattr(DeliveryRecords, "settle_opened", unavailable)
    assert (await submit(pair.outgoing, mails.plain())).code == 250
    assert len(sink.got) == 1


@pytest.mark.in_process
async def test_what_is_noted_after_delivery_holds_no_message_in_memory(
    pair: Pair, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: asyncio.Queue[Opened] = asyncio.Queue()

    async def settle(_: MailOpener, opened: Opened, *__: object) -> None:
        await noted.put(opened)

    monkeypatch.setattr(MailOpener, "settle", settle)
    assert (await submit(pair.outgoing, mails.plain())).code == 250
    assert len(sink.got) == 1
    opened = await noted.get()
    assert (opened.original, len(opened.keys)) == (b"", 1)


async def test_the_same_sealed_message_is_delivered_once_however_often_it_comes(
    tmp_path: Path, kmes: DevelopmentKMEs, pair: Pair, sink: Sink, wire: Sink
) -> None:
    site = make_site(tmp_path / "alice2", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(site) as addresses:
        await submit(addresses["outgoing"], mails.plain())
    for _ in range(3):
        assert (await until_settled(pair.incoming, wire.got[0].message)).code == 250
    assert [mails.untraced(got.message) for got in sink.got] == [AES_MARK + mails.plain()]


async def test_a_hundred_mails_at_once_all_arrive_each_under_its_own_key(pair: Pair, sink: Sink) -> None:
    bodies = [mails.plain(body=f"number {number}\r\n") for number in range(100)]
    replies = await asyncio.gather(*(submit(pair.outgoing, body) for body in bodies))
    assert {reply.code for reply in replies} == {250}
    assert sorted(mails.untraced(got.message).removeprefix(AES_MARK) for got in sink.got) == sorted(bodies)


@pytest.mark.in_process
async def test_a_mail_that_has_arrived_is_kept_in_memory_by_nothing(pair: Pair, sink: Sink) -> None:
    """Not even until the next search for cycles, which an idle relay does not make for hours."""
    gc.collect()
    gc.disable()
    try:
        assert (await submit(pair.outgoing, mails.plain())).code == 250
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [each for each in gc.garbage if isinstance(each, Mail | Delivery | SealedCopy)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert sink.got
    assert not kept


@pytest.mark.in_process
async def test_a_fault_in_counting_has_no_mail_sent_again(
    pair: Pair, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("counting is broken")

    monkeypatch.setattr(Tally, "count", broken)
    assert (await submit(pair.outgoing, mails.plain())).code == 250
    assert len(sink.got) == 1
