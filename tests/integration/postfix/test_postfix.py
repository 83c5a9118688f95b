"""Two organisations with real Postfix, each with its relay as content filter: what users get, what the wire shows.
Standard: octet for octet what was sent, exactly once, and not an octet of it in clear between the sites.
"""

from __future__ import annotations

import asyncio
import base64
import fcntl
import hashlib
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiosmtplib
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.testlib import mails, postfix
from tests.testlib.identities import Identities
from tests.testlib.mail_site import MailSite, mail_site
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.wire import Wire

pytestmark = [requires_postfix, pytest.mark.asyncio(loop_scope="module")]

COMPLETE = b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n"
"""Fields without which Postfix would add its own."""
TRACE_FIELDS = {b"received", b"return-path", b"delivered-to", b"x-qumail-protection"}
IN_CLEAR = 'levels = ["plaintext"]\n'
SEALED = 'levels = ["aes"]\n'
LEVELS = {
    "otp": ('levels = ["otp"]\n', b"otp"),
    "pqc": ('levels = ["pqc"]\n', b"pqc"),
    "pqc-quantum": ('levels = ["pqc+aes"]\n', b"pqc+aes"),
    "rsa": ('levels = ["rsa"]\n', b"rsa"),
    "rsa-quantum": ('levels = ["rsa+aes"]\n', b"rsa+aes"),
}
ALIASES = "inline:{ {info@bob.example = first@bob.example, second@bob.example} }"
TOO_BIG = 1_100_000
"""Octets: more than Alice's relay takes, with the limit it has here."""


class Two:
    """Alice and Bob."""

    def __init__(self, alice: MailSite, bob: MailSite) -> None:
        self.alice, self.bob = alice, bob

    async def all_queues_empty(self) -> None:
        await self.alice.postfix.empty()
        await self.bob.postfix.empty()


@pytest_asyncio.fixture(loop_scope="module")
async def two(sites: Two) -> AsyncIterator[Two]:
    """Both sites, which are whole and have empty queues again after the test."""
    yield sites
    await sites.alice.make_whole()
    await sites.bob.make_whole()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sites(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> AsyncIterator[Two]:
    """Both sites and their KMEs."""
    directory = tmp_path_factory.mktemp("sites")
    link = LinkSettings(key_rate=1_000_000)
    alice_smtp, bob_smtp = free_addresses(2)
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        to_alice = await stack.enter_async_context(Wire(alice_smtp))
        to_bob = await stack.enter_async_context(Wire(bob_smtp))
        alice = await stack.enter_async_context(
            mail_site(
                directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0],
                smtp=alice_smtp, inbound=to_alice, peer_inbound=to_bob, settings='max_message_size = "1 MiB"',
                policies={
                    "bob.example.toml": SEALED, "alice.example.toml": IN_CLEAR, "clear.example.toml": IN_CLEAR
                } | {f"bob.example/{name}.toml": text for name, (text, _) in LEVELS.items()},
                identities=identities,
            )
        )  # fmt: skip
        bob = await stack.enter_async_context(
            mail_site(
                directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1],
                smtp=bob_smtp, inbound=to_bob, peer_inbound=to_alice,
                policies={"alice.example.toml": SEALED, "bob.example.toml": IN_CLEAR}, identities=identities,
                postfix_settings={"virtual_alias_maps": ALIASES},
            )
        )  # fmt: skip
        yield Two(alice, bob)


async def send(site: MailSite, message: bytes, recipient: str) -> None:
    """One mail from Ann into a site's Postfix, which takes it."""
    reply = await site.postfix.submit(message, recipients=[recipient])
    assert reply.code == 250, reply


def received_part(arrived: bytes, original: bytes) -> bytes:
    """What was delivered, without the trace fields that servers put on top."""
    trace = arrived[: len(arrived) - len(original)]
    fields = list(mime.fields(trace))
    assert b"".join(raw for _, raw in fields) == trace
    assert {name for name, _ in fields} <= TRACE_FIELDS
    return arrived[len(trace) :]


def assert_unchanged(arrived: bytes, original: bytes) -> None:
    """Octet for octet what was sent, under nothing but trace fields."""
    part = received_part(arrived, original)
    assert hashlib.sha256(part).hexdigest() == hashlib.sha256(original).hexdigest()


def assert_not_readable(octets: bytes, original: bytes) -> None:
    """No line of the body, and not the subject, stands in what passed, nor in base64 that passed."""
    header, body = mime.split(original)
    subjects = [raw[len(b"Subject:") :].strip() for name, raw in mime.fields(header) if name == b"subject"]
    lines = [line for line in body.split(b"\r\n") if len(line) > 8 and not line.startswith(b"Content-")]
    assert lines
    blocks = re.findall(rb"^(?:[A-Za-z0-9+/]{4,76}={0,2}\r\n)+", octets, re.MULTILINE)
    shown = b"\r\n".join([octets, *(base64.b64decode(block + b"==") for block in blocks)])
    assert [each for each in (*subjects, *lines) if each in shown] == []


LONG_LINES = mails.plain(subject="Long lines", body="".join(f"{n} " * 700 + "\r\n" for n in range(3, 6)))
KINDS = {
    "plain": mails.plain(),
    "random octets in base64": COMPLETE + mails.random_attachment(),
    "unencoded UTF-8": COMPLETE + mails.eight_bit(),
    "lines over 998 octets": LONG_LINES,
}


@pytest.mark.promise("Nothing of the original is on the wire")
@pytest.mark.parametrize("kind", KINDS)
async def test_what_bob_gets_is_what_alice_sent_and_the_wire_shows_none_of_it(two: Two, kind: str) -> None:
    original, recipient = KINDS[kind], f"{kind.replace(' ', '-').lower()}@bob.example"
    passed = len(two.bob.inbound.sent)
    await send(two.alice, original, recipient)
    got = await two.bob.delivered(recipient)
    assert_unchanged(got.message, original)
    assert got.sender == "ann@alice.example"
    on_the_wire = bytes(two.bob.inbound.sent[passed:])
    assert b"application/pkcs7-mime" in on_the_wire
    assert_not_readable(on_the_wire, original)


@pytest.mark.parametrize("name", LEVELS)
async def test_every_level_goes_through_both_postfixes(two: Two, name: str) -> None:
    message = KINDS["unencoded UTF-8"]
    await send(two.alice, message, f"{name}@bob.example")
    got = await two.bob.delivered(f"{name}@bob.example")
    assert_unchanged(got.message, message)
    assert b"X-QuMail-Protection: " + LEVELS[name][1] + b"; peer=alice; author=peer\r\n" in mails.unproven(got.message)


async def test_a_pgp_signature_still_verifies(two: Two, tmp_path: Path) -> None:
    part = b"Content-Type: text/plain; charset=utf-8\r\n\r\nSigned, and sealed: 7391.  \r\n"
    signature = await _pgp_signature(tmp_path, part)
    original = b"\r\n".join(
        [
            COMPLETE + b"From: Ann <ann@alice.example>",
            b"To: <pgp@bob.example>",
            b"Subject: PGP/MIME",
            b"MIME-Version: 1.0",
            b"Content-Type: multipart/signed; micalg=pgp-sha512;",
            b' protocol="application/pgp-signature"; boundary="s"',
            b"",
            b"--s",
            part,
            b"--s",
            b"Content-Type: application/pgp-signature",
            b"",
            signature + b"--s--",
            b"",
        ]
    )
    await send(two.alice, original, "pgp@bob.example")
    arrived = (await two.bob.delivered("pgp@bob.example")).message
    assert_unchanged(arrived, original)
    _, signed, rest = arrived.split(b"--s\r\n")
    _, _, signature = rest.removesuffix(b"--s--\r\n").partition(b"\r\n\r\n")
    await _pgp_verify(tmp_path, signed.removesuffix(b"\r\n"), signature)


async def test_a_dkim_signature_still_verifies(two: Two) -> None:
    dkim = pytest.importorskip("dkim")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)
    plain = mails.plain(subject="Signed by the domain")
    original: bytes = dkim.sign(plain, b"s1", b"alice.example", pem) + plain
    await send(two.alice, original, "dkim@bob.example")
    arrived = (await two.bob.delivered("dkim@bob.example")).message
    assert_unchanged(arrived, original)
    assert dkim.verify(arrived, dnsfunc=lambda name, timeout=5: record)


async def test_recipients_at_one_site_share_one_ciphertext(two: Two) -> None:
    recipients = [f"{name}@bob.example" for name in ("one", "two", "three")]
    passed = len(two.bob.inbound.sent)
    reply = await two.alice.postfix.submit(mails.plain(subject="To three"), recipients=recipients)
    assert reply.code == 250
    for recipient in recipients:
        assert_unchanged((await two.bob.delivered(recipient)).message, mails.plain(subject="To three"))
    assert two.bob.inbound.sent[passed:].count(b"application/pkcs7-mime") == 1


async def test_each_recipient_of_one_mail_gets_what_policy_says_and_one_without_policy_waits(two: Two) -> None:
    original = mails.plain(subject="To all sorts")
    recipients = ["mixed@bob.example", "mixed@clear.example", "mixed@nowhere.example"]
    passed = len(two.bob.inbound.sent)
    assert (await two.alice.postfix.submit(original, recipients=recipients)).code == 250
    assert_unchanged((await two.bob.delivered("mixed@bob.example")).message, original)
    assert_not_readable(bytes(two.bob.inbound.sent[passed:]), original)
    assert_unchanged((await two.alice.delivered("mixed@clear.example")).message, original)
    assert "451 4.7.1 Message held by policy" in await two.alice.postfix.deferred("mixed@nowhere.example")

    two.alice.site.write_policies({"nowhere.example.toml": IN_CLEAR})
    two.alice.relay.process.send_signal(signal.SIGHUP)
    await _until_logged(two.alice, '"event": "policies_loaded"')
    await two.alice.postfix.flush()
    assert_unchanged((await two.alice.delivered("mixed@nowhere.example")).message, original)
    await two.all_queues_empty()
    assert len(two.bob.all_delivered("mixed@bob.example")) == 1


async def test_the_null_sender_stays_null(two: Two) -> None:
    reply = await two.alice.postfix.submit(mails.plain(), sender="", recipients=["null@bob.example"])
    assert reply.code == 250
    got = await two.bob.delivered("null@bob.example")
    assert got.sender == ""
    assert_unchanged(got.message, mails.plain())


async def test_addresses_in_unicode_arrive(two: Two) -> None:
    original = mails.plain().replace(b"Ann <ann@", "Änn <änn@".encode())
    reply = await two.alice.postfix.submit(
        original, sender="änn@alice.example", recipients=["bén@bob.example"], options=["SMTPUTF8"]
    )
    assert reply.code == 250
    got = await two.bob.delivered("bén@bob.example")
    assert got.sender == "änn@alice.example"
    assert "SMTPUTF8" in got.mail_options
    assert_unchanged(got.message, original)


async def test_mail_for_an_alias_of_bobs_reaches_all_behind_it_each_once(two: Two) -> None:
    """The relay stands before aliases: the sealed envelope names the address that Ann wrote, and no other."""
    original = mails.plain(subject="To an alias")
    await send(two.alice, original, "info@bob.example")
    for recipient in ("first@bob.example", "second@bob.example"):
        assert_unchanged((await two.bob.delivered(recipient)).message, original)
        assert len(two.bob.all_delivered(recipient)) == 1


async def with_dsn(two: Two, sender: str, recipient: str) -> None:
    """Ann asks to be told of success and of failure."""
    async with aiosmtplib.SMTP(
        hostname=two.alice.postfix.smtp.host, port=two.alice.postfix.smtp.port,
        local_hostname="client.example", start_tls=False,
    ) as client:  # fmt: skip
        await client.sendmail(
            sender, [recipient], mails.plain(subject="Notify me"),
            mail_options=["RET=HDRS", "ENVID=envelope-4711"],
            rcpt_options=["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;original@bob.example"],
        )  # fmt: skip


async def test_a_notice_of_failure_that_was_asked_for_comes_back_and_is_sealed_too(two: Two) -> None:
    two.bob.mailboxes.on_rcpt["dsn@bob.example"] = "550 5.1.1 no such user"
    passed = len(two.alice.inbound.sent)
    await with_dsn(two, "dsn@alice.example", "dsn@bob.example")
    notification = (await two.alice.delivered("dsn@alice.example")).message
    assert b"Original-Envelope-Id: envelope-4711" in notification
    assert b"Original-Recipient: rfc822;original@bob.example" in notification
    assert_not_readable(bytes(two.alice.inbound.sent[passed:]), b"Subject: Notify me\r\n\r\nenvelope-4711")


async def test_a_notice_of_success_does_not_come_back_from_behind_the_relay_that_opens(two: Two) -> None:
    """The sender of a captured mail could ask for one, and would get the header of the original."""
    await with_dsn(two, "success@alice.example", "taken@bob.example")
    await two.bob.delivered("taken@bob.example")
    await two.bob.postfix.empty()
    await two.alice.postfix.empty()
    assert two.alice.all_delivered("success@alice.example") == []


async def test_a_bounce_from_bobs_postfix_does_not_tell_the_wire_what_it_is_about(two: Two) -> None:
    two.bob.mailboxes.on_rcpt["nobody@bob.example"] = "550 5.1.1 no such user"
    original = mails.plain(subject="To nobody", body="This text must not come back in clear.\r\n")
    passed = len(two.alice.inbound.sent)
    reply = await two.alice.postfix.submit(original, sender="bounced@alice.example", recipients=["nobody@bob.example"])
    assert reply.code == 250
    bounce = await two.alice.delivered("bounced@alice.example")
    assert bounce.sender == ""
    assert b"no such user" in bounce.message
    assert b"This text must not come back in clear." not in bounce.message
    assert_not_readable(bytes(two.alice.inbound.sent[passed:]), original)


async def test_a_program_that_sends_through_port_25_as_incoming_mail_does_cannot_send_in_clear(two: Two) -> None:
    original = mails.plain(subject="From a program")
    passed = len(two.alice.inbound.sent)
    reply = await two.bob.postfix.submit(original, sender="program@bob.example", recipients=["port25@alice.example"])
    assert reply.code == 250
    assert_unchanged((await two.alice.delivered("port25@alice.example")).message, original)
    assert_not_readable(bytes(two.alice.inbound.sent[passed:]), original)


async def test_mail_over_the_relays_limit_comes_back_to_its_sender(two: Two) -> None:
    original = COMPLETE + mails.random_attachment(TOO_BIG)
    reply = await two.alice.postfix.submit(original, sender="big@alice.example", recipients=["big@bob.example"])
    assert reply.code == 250
    bounce = (await two.alice.delivered("big@alice.example")).message
    assert b"Status: 5.3.4" in bounce
    await two.all_queues_empty()
    assert two.bob.all_delivered("big@bob.example") == []


async def test_bobs_relay_killed_after_taking_the_key_delivers_once_from_its_store(two: Two) -> None:
    original, recipient = mails.plain(subject="Killed at Bob's"), "bob-killed@bob.example"
    two.bob.opened.stop_after(0)
    await send(two.alice, original, recipient)
    await two.bob.opened.stopped()
    await two.bob.kill_relay()
    await two.bob.postfix.deferred(recipient)
    assert two.bob.all_delivered(recipient) == []

    await two.bob.kme.cut()
    await two.bob.opened.mend()
    await two.bob.restart_relay()
    await two.bob.postfix.flush()
    assert_unchanged((await two.bob.delivered(recipient)).message, original)
    await two.all_queues_empty()
    assert len(two.bob.all_delivered(recipient)) == 1


async def test_alices_relay_killed_in_the_middle_of_the_content_delivers_once(two: Two) -> None:
    original, recipient = COMPLETE + mails.random_attachment(), "alice-killed@bob.example"
    two.alice.sealed.stop_after(200_000)
    await send(two.alice, original, recipient)
    await two.alice.sealed.stopped()
    await two.alice.kill_relay()
    await two.alice.postfix.deferred(recipient)

    await two.alice.sealed.mend()
    await two.alice.restart_relay()
    await two.alice.postfix.flush()
    assert_unchanged((await two.bob.delivered(recipient)).message, original)
    await two.all_queues_empty()
    assert len(two.bob.all_delivered(recipient)) == 1


async def test_mail_waits_in_alices_queue_while_her_kme_is_away_and_nothing_leaves_in_clear(two: Two) -> None:
    recipient = "no-kme@bob.example"
    passed = len(two.bob.inbound.sent)
    await two.alice.kme.cut()
    await send(two.alice, mails.plain(), recipient)
    reason = await two.alice.postfix.deferred(recipient)
    assert "451 4.7.5 The message waits: no encryption key" in reason
    assert len(two.bob.inbound.sent) == passed

    await two.alice.kme.mend()
    await two.alice.postfix.flush()
    assert_unchanged((await two.bob.delivered(recipient)).message, mails.plain())
    await two.all_queues_empty()
    assert len(two.bob.all_delivered(recipient)) == 1


async def test_mail_waits_sealed_in_bobs_queue_while_the_kme_there_is_away(two: Two) -> None:
    recipient = "no-kme-there@bob.example"
    await two.bob.kme.cut()
    await send(two.alice, mails.plain(), recipient)
    assert "451 4.7.5" in await two.bob.postfix.deferred(recipient)
    assert two.bob.all_delivered(recipient) == []

    await two.bob.kme.mend()
    async with asyncio.timeout(60):  # the KME is not asked again before its breaker lets one call through
        while not two.bob.all_delivered(recipient):
            await two.bob.postfix.flush()
            await asyncio.sleep(0.5)
    [delivered] = two.bob.all_delivered(recipient)
    assert_unchanged(delivered.message, mails.plain())
    await two.all_queues_empty()
    assert len(two.bob.all_delivered(recipient)) == 1


async def test_mail_waits_in_alices_queue_while_the_relays_next_hop_is_away(two: Two) -> None:
    recipient = "no-next-hop@bob.example"
    await two.alice.sealed.cut()
    await send(two.alice, mails.plain(), recipient)
    assert "451 4.4.1" in await two.alice.postfix.deferred(recipient)

    await two.alice.sealed.mend()
    await two.alice.postfix.flush()
    assert_unchanged((await two.bob.delivered(recipient)).message, mails.plain())
    await two.all_queues_empty()
    assert len(two.bob.all_delivered(recipient)) == 1


async def test_mail_waits_in_alices_queue_while_her_relay_is_away(two: Two) -> None:
    recipient = "no-relay@bob.example"
    await two.alice.kill_relay()
    await send(two.alice, mails.plain(), recipient)
    await two.alice.postfix.deferred(recipient)

    await two.alice.restart_relay()
    await two.alice.postfix.flush()
    assert_unchanged((await two.bob.delivered(recipient)).message, mails.plain())
    await two.all_queues_empty()


async def test_a_postfix_with_the_relay_as_its_smarthost_sends_sealed_mail(two: Two) -> None:
    original, recipient = KINDS["lines over 998 octets"], "smarthost@bob.example"
    passed = len(two.bob.inbound.sent)
    [smtp] = free_addresses(1)
    async with postfix.running(
        smtp=smtp,
        fragments=("smarthost",),
        ports={15025: two.alice.relay.addresses["outgoing"]},
        settings={"myhostname": "programs.alice.example"},
    ) as programs:
        assert (await programs.submit(original, recipients=[recipient])).code == 250
        assert_unchanged((await two.bob.delivered(recipient)).message, original)
        await programs.empty()
    assert_not_readable(bytes(two.bob.inbound.sent[passed:]), original)


async def _until_logged(site: MailSite, text: str) -> None:
    async with asyncio.timeout(30):
        while text not in site.relay.log:
            await asyncio.sleep(0.02)


async def _pgp_signature(home: Path, part: bytes) -> bytes:
    """A detached signature by a key made for this; without gpg something in its place, to be compared only."""
    if shutil.which("gpg") is None:
        return b"-----BEGIN PGP SIGNATURE-----\r\n\r\nAAAA\r\n-----END PGP SIGNATURE-----\r\n"
    home.chmod(0o700)
    (home / "part").write_bytes(part)
    await _gpg(home, "--passphrase", "", "--quick-generate-key", "ann@alice.example", "ed25519", "sign")
    await _gpg(home, "--armor", "--output", "signature", "--detach-sign", "part")
    return (home / "signature").read_bytes().replace(b"\n", b"\r\n")


async def _pgp_verify(home: Path, part: bytes, signature: bytes) -> None:
    if shutil.which("gpg") is None:
        return
    (home / "part").write_bytes(part)
    (home / "signature").write_bytes(signature)
    try:
        await _gpg(home, "--verify", "signature", "part")
    finally:
        await postfix.run("gpgconf", "--homedir", str(home), "--kill", "all")


async def _gpg(home: Path, *words: str) -> None:
    options = ("--homedir", str(home), "--batch", "--quiet", "--pinentry-mode", "loopback")
    await postfix.run("gpg", *options, *words, directory=home)


async def test_a_mail_that_postfix_has_put_aside_while_its_file_was_in_use_is_tried_again(two: Two) -> None:
    recipient = "put-aside@bob.example"
    await two.alice.sealed.cut()
    await send(two.alice, mails.plain(), recipient)
    await two.alice.postfix.deferred(recipient)

    await two.alice.sealed.mend()
    [name] = [name for name, to in (await two.alice.postfix.queued_names()).items() if recipient in to]
    [file] = (two.alice.postfix.directory / "queue" / "deferred").glob(f"**/{name}")
    with file.open("rb") as in_use:
        fcntl.flock(in_use, fcntl.LOCK_EX)
        await two.alice.postfix.command("postqueue", "-f")
        async with asyncio.timeout(postfix.DEADLINE_S):
            while f"{name}: skipped, still being delivered" not in two.alice.postfix.log:
                await asyncio.sleep(postfix.POLL_S)
    await two.alice.postfix.flush()
    assert_unchanged((await two.bob.delivered(recipient)).message, mails.plain())
    await two.all_queues_empty()
    assert len(two.bob.all_delivered(recipient)) == 1
