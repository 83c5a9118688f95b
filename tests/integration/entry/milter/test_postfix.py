"""Two organisations whose Postfix have only the milter: what users get, what the wire shows.
Standard: octet for octet what was sent, exactly once, and not an octet of it in clear between the sites.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.integration.entry.milter.organisations import MILTER, Organisation, original_part, policies, postfix_of
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit
from tests.testlib.wire import Wire

pytestmark = [requires_postfix, pytest.mark.asyncio(loop_scope="module")]

COMPLETE = b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n"


@dataclass
class Two:
    """`wire` has what goes from Alice to Bob, `back` what comes back; `sealing` is where Alice's relay takes SMTP."""

    alice: Organisation
    bob: Organisation
    wire: Wire
    back: Wire
    sealing: TCPAddress


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> AsyncIterator[Two]:
    directory = tmp_path_factory.mktemp("milter")
    alice_smtp, bob_smtp = free_addresses(2)
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(
                state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=LinkSettings(key_rate=1e6)
            )
        )
        wire = await stack.enter_async_context(Wire(bob_smtp))
        back = await stack.enter_async_context(Wire(alice_smtp))

        async def organisation(
            name: str, smtp: TCPAddress, peer: str, there: TCPAddress
        ) -> tuple[Organisation, TCPAddress]:
            mailboxes = await stack.enter_async_context(Sink())
            again, opened = free_addresses(2)
            site = make_site(
                directory / name, name, state=kmes.state_dir, kme_url=kmes.urls[name == "bob"],
                outgoing=again, incoming=opened, identities=identities, settings=MILTER,
                policies=policies(name, peer) | {f"{peer}.example/pqc.toml": 'levels = ["pqc"]\n'},
            )  # fmt: skip
            relay = await stack.enter_async_context(serving(site))
            running = await stack.enter_async_context(
                postfix_of(
                    name, smtp=smtp, outgoing=relay["outgoing_milter"], incoming=relay["incoming_milter"],
                    again=again, opened=opened, mailboxes=mailboxes, elsewhere={f"{peer}.example": there},
                )
            )  # fmt: skip
            return running, relay["outgoing"]

        bob, _ = await organisation("bob", bob_smtp, "alice", back.address)
        alice, sealing = await organisation("alice", alice_smtp, "bob", wire.address)
        yield Two(alice, bob, wire, back, sealing)


KINDS = {
    "plain": mails.plain(),
    "attachment": COMPLETE + mails.random_attachment(),
    "eight-bit": COMPLETE + mails.eight_bit(),
    "folded": mails.plain().replace(b"Subject: ", b"Subject:no blank\r\n\tfolded with tab\r\n  and two blanks \r\nX-A:  two\r\nX-A: one\r\nSubject2: "),
    "large": mails.plain(body="A line of a large mail\r\n" * 200_000),
    "long-lines": mails.plain(body="A line that does not end " * 10_000 + "\r\nand one more\r\n").replace(b"To: ", b"X-Long: " + b"word " * 10_000 + b"\r\nTo: "),
    "nul": mails.plain(body="A body with a NUL \0 in it\r\n"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("user", ["aes", "pqc"])
async def test_what_bob_gets_is_what_alice_sent_and_the_wire_shows_none_of_it(two: Two, kind: str, user: str) -> None:
    original, recipient = KINDS[kind].replace(b"<1@", f"<{kind}@".encode()), f"{user}@bob.example"
    two.bob.mailboxes.got.clear()
    passed = len(two.wire.sent)
    assert (await two.alice.postfix.submit(original, recipients=[recipient])).code == 250
    got = await two.bob.delivered(recipient)
    assert original_part(got.message, original) == original
    assert b"X-QuMail-Protection: " + user.encode() + b"; peer=alice; author=peer\r\n" in mails.unproven(got.message)
    sent = bytes(two.wire.sent[passed:])
    assert b"application/pkcs7-mime" in sent
    assert b"Subject: [...]" in sent
    lines = {line for line in original.partition(b"\r\n\r\n")[2].split(b"\r\n")[:100] if len(line) > 8}
    assert not any(line in sent for line in lines if not line.startswith(b"Content-"))


async def test_the_way_that_a_mail_took_before_it_was_sealed_is_told_once(two: Two) -> None:
    way = [b"Received: from a%d by b%d;\r\n\tWed, 25 Nov 2026 10:00:00 +0000\r\n" % (n, n) for n in range(30)]
    original = b"".join(way) + mails.plain(subject="A long way")
    two.bob.mailboxes.got.clear()
    assert (await two.alice.postfix.submit(original, recipients=["way@bob.example"])).code == 250
    got = await two.bob.delivered("way@bob.example")
    assert original_part(got.message, original) == original
    fields = [raw for name, raw in mime.fields(mime.header_of(got.message)) if name == b"received"]
    assert fields[-len(way) :] == way
    assert 0 < len(fields) - len(way) <= 3


async def test_recipients_with_other_protection_get_copies_and_everybody_gets_one(two: Two) -> None:
    original = mails.plain(subject="To many")
    recipients = ["a@bob.example", "b@bob.example", "pqc@bob.example", "press@clear.example"]
    two.bob.mailboxes.got.clear()
    two.alice.mailboxes.got.clear()
    assert (await two.alice.postfix.submit(original, recipients=recipients)).code == 250
    for recipient in recipients[:3]:
        assert original_part((await two.bob.delivered(recipient)).message, original) == original
    assert original_part((await two.alice.delivered("press@clear.example")).message, original) == original
    await two.alice.postfix.empty()
    await two.bob.postfix.empty()
    everybody = [each for got in two.bob.mailboxes.got + two.alice.mailboxes.got for each in got.recipients]
    assert sorted(everybody) == sorted(recipients)


async def test_a_sealed_mail_that_is_sent_to_bobs_postfix_again_is_delivered_once(two: Two) -> None:
    """Postfix goes on talking to the milter once it has its answer, and so the mail counts as delivered."""
    original, recipient = mails.plain(subject="Once"), "once@bob.example"
    assert (await two.alice.postfix.submit(original, recipients=[recipient])).code == 250
    await two.bob.delivered(recipient)
    captured = bytes(two.wire.sent).rpartition(b"DATA\r\n")[2].partition(b"\r\n.\r\n")[0] + b"\r\n"
    assert b"Subject: [...]" in captured
    for sender in ("ann@alice.example", "outsider@stranger.example"):
        reply = await two.bob.postfix.submit(captured, sender=sender, recipients=[recipient])
        while reply.code == 451:  # it is noted a moment later
            reply = await two.bob.postfix.submit(captured, sender=sender, recipients=[recipient])
        assert reply.code == 250
    await two.bob.postfix.empty()
    assert len([got for got in two.bob.mailboxes.got if recipient in got.recipients]) == 1


async def test_mail_among_own_users_is_as_it_was(two: Two) -> None:
    original = mails.plain(subject="Inside")
    assert (await two.alice.postfix.submit(original, recipients=["al@alice.example"])).code == 250
    got = await two.alice.delivered("al@alice.example")
    assert original_part(got.message, original) == original
    assert b"X-QuMail-Protection" not in got.message


async def test_what_sendmail_submits_is_sealed_too(two: Two) -> None:
    two.bob.mailboxes.got.clear()
    passed = len(two.wire.sent)
    await two.alice.sendmail(
        "Subject: From a script\n\nThe figures are 42 and 43.\n", "-f", "ann@alice.example", "s@bob.example"
    )
    got = await two.bob.delivered("s@bob.example")
    assert got.message.endswith(b"\r\n\r\nThe figures are 42 and 43.\r\n")
    assert b"From a script" not in bytes(two.wire.sent[passed:])


@pytest.mark.parametrize("lines", [1, 700])
async def test_a_header_field_that_postfix_would_cut_is_refused_and_none_is_lost(two: Two, lines: int) -> None:
    long = b"X-Long:" + (b" " + b"x" * (70_000 // lines) + b"\r\n") * lines
    reply = await two.alice.postfix.submit(long + mails.plain(), recipients=["long@bob.example"])
    assert str(reply) == "554 5.6.0 Malformed message: a header field is too long to reach a milter whole"


async def test_a_bounce_of_opened_mail_quotes_no_content_and_is_sealed_on_its_way_back(two: Two) -> None:
    original = mails.plain(subject="Will bounce", body="The content that nobody else may see\r\n")
    two.bob.mailboxes.on_rcpt["gone@bob.example"] = "550 5.1.1 no such user"
    two.alice.mailboxes.got.clear()
    passed = len(two.back.sent)
    assert (await two.alice.postfix.submit(original, recipients=["gone@bob.example"])).code == 250
    got = await two.alice.delivered("ann@alice.example")
    assert got.sender == ""
    assert b"X-QuMail-Protection: aes; peer=bob; author=peer\r\n" in mails.unproven(got.message)
    assert b"Will bounce" in got.message
    assert b"nobody else may see" not in got.message
    sent = bytes(two.back.sent[passed:])
    assert b"Subject: [...]" in sent
    assert b"Will bounce" not in sent


async def test_an_original_that_a_milter_cannot_give_a_mail_server_arrives_by_the_next_hop_and_once(two: Two) -> None:
    original = mails.plain(subject="A header and no empty line").partition(b"\r\n\r\n")[0] + b"\r\n"
    two.bob.mailboxes.got.clear()
    assert (await submit(two.sealing, original, recipients=["blank@bob.example"])).code == 250
    got = await two.bob.delivered("blank@bob.example")
    assert original_part(got.message, original) == original
    assert b"X-QuMail-Protection: aes; peer=alice; author=peer\r\n" in mails.unproven(got.message)
    await two.bob.postfix.empty()
    assert len(two.bob.mailboxes.got) == 1


FORGED = [
    b"X-QuMail-Protection: otp; peer=alice\r\n",
    b"x-qumail-protection:aes; peer=alice\r\n",
    b"X-QuMail-Protection : otp; peer=alice\r\n",
    b"X-QuMail-Protection\t:\r\n otp;\r\n\tpeer=alice\r\n",
    b"X-QUMAIL-PROTECTION: otp; peer=alice\r\n\tX-QuMail-Protection: otp\r\n",
]


async def test_no_forged_mark_reaches_a_user_wherever_it_stands_and_however_it_is_written(two: Two) -> None:
    head, _, body = mails.plain(subject="Forged").partition(b"\r\n\r\n")
    original = head.replace(b"<1@", b"<forged@")
    lines = original.split(b"\r\n")
    between = b"".join(line + b"\r\n" + forged for line, forged in zip(lines, FORGED, strict=False))
    rest = b"".join(line + b"\r\n" for line in lines[len(FORGED) :])
    message = b"".join(FORGED) + between + rest + b"".join(FORGED) + b"\r\n" + body
    two.bob.mailboxes.got.clear()
    assert (await two.bob.postfix.submit(message, sender="eve@eve.example", recipients=["f@bob.example"])).code == 250
    got = await two.bob.delivered("f@bob.example")
    assert b"qumail" not in got.message.lower()
    assert original_part(got.message, original + b"\r\n\r\n" + body) == original + b"\r\n\r\n" + body
