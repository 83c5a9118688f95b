"""Mail that is sealed for a site and comes to its outgoing listener: it goes the way in, or is held and said.
Standard: relay/FORMAT.md, the receiver's order: where a message comes in changes nothing about who gets it.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.audit.reading import records
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import app, assembly
from relay.quarantine.release import Releaser
from tests.integration.entry.milter.mta import MTA, Answer, in_thread
from tests.testlib import mails
from tests.testlib.alarms import until_written
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.smime import certified, make_smime_site
from tests.testlib.submit import submit, submit_lmtp

pytestmark = pytest.mark.in_process

BEN, EVE, CARL = "ben@bob.example", "eve@bob.example", "carl@carol.example"
INSIDE = {
    "bob.example.toml": 'levels = ["plaintext"]\n',
    "carol.example.toml": 'levels = ["plaintext"]\n',
    "default.toml": 'levels = ["aes"]\n',
}
Seal = Callable[..., Awaitable[bytes]]
LISTENERS = 'lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"'


@pytest.fixture
async def left() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        yield sink


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, left: Sink, identities: Identities) -> Site:
    return make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], outgoing=left.address,
        incoming=sink.address, policies=INSIDE, settings=LISTENERS, identities=identities,
    )  # fmt: skip


@pytest.fixture
def seal(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities) -> Seal:
    """Seals a mail of Ann's for Ben at a level."""
    alice = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": 'levels = ["aes"]\n'}, identities=identities,
    )  # fmt: skip

    async def sealed(level: str = "aes", message: bytes = mails.plain()) -> bytes:
        alice.write_policies({"default.toml": f'levels = ["{level}"]\n'})
        async with assembly.parts(alice.config, prefetch=False) as parts:
            mail = Mail(Envelope("ann@alice.example", (Recipient(BEN),)), message)
            return (await parts.sealer.seal(mail)).copies[0].message

    return sealed


@pytest.fixture
async def wire() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        yield sink


@pytest.fixture
def alices_relay(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, identities: Identities) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        identities=identities,
    )  # fmt: skip


def events(log: LogCapture, *names: str) -> list[tuple[str, str]]:
    """Those of these names, with their levels."""
    return [(each["event"], each["log_level"]) for each in log.entries if each["event"] in names]


@pytest.mark.promise("Marks are ours")
async def test_a_mark_that_the_relay_wrote_stays_on_that_mail_and_on_no_other(
    bob: Site, seal: Seal, sink: Sink, left: Sink
) -> None:
    """A scanner may hand opened mail to the outgoing listener; a user may copy the mark that they see."""
    message = await seal()
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["incoming"], message)).code == 250
        opened = sink.got[0].message
        opened = opened[opened.index(b"X-QuMail-Protection") :]
        mark, _, rest = opened.partition(b"\r\n")
        assert mark.startswith(b"X-QuMail-Protection: aes")
        for each in (
            b"X-Scanned: yes\r\n" + opened,
            mark + b"\r\n" + rest + b"And more\r\n",
            mark + b"\r\n" + rest.replace(b"Subject: ", b"Subject: Not "),
            mark.replace(b"aes", b"otp") + b"\r\n" + rest,
            mark + b"\r\n" + opened,
        ):
            assert (await submit(addresses["outgoing"], each, recipients=[BEN])).code == 250
    assert [got.message.count(mark) for got in left.got] == [1, 0, 0, 0, 0]
    assert all(b"X-QuMail" not in got.message for got in left.got[1:])


@pytest.mark.promise("Nothing sealed is handed to users unopened")
@pytest.mark.parametrize("level", ["aes", "otp", "pqc", "rsa"])
async def test_it_is_opened_as_if_it_had_come_at_the_incoming_listener(
    bob: Site, seal: Seal, sink: Sink, left: Sink, log: LogCapture, level: str
) -> None:
    """And a second arrival is a copy, at whichever listener."""
    message = await seal(level)
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["outgoing"], message)).code == 250
        assert (await submit(addresses["incoming"], message)).code == 250
        assert [each.code for each in await submit_lmtp(addresses["outgoing_lmtp"], message)] == [250]
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]
    assert left.got == []
    assert events(log, "came_by_the_way_out", "came_again") == [
        ("came_by_the_way_out", "warning"), ("came_again", "warning"),
        ("came_by_the_way_out", "warning"), ("came_again", "warning"),
    ]  # fmt: skip


async def test_the_milter_of_mail_that_leaves_opens_it_in_place(bob: Site, seal: Seal) -> None:
    message = await seal()
    header, body = mime.split(message)
    fields = [
        (name.decode(), value.decode().removesuffix("\r\n").replace("\r\n", "\n"))
        for name, _, value in (raw.partition(b":") for _, raw in mime.fields(header))
    ]
    async with app.running(bob.config) as addresses:

        def whole() -> Answer:
            mta = MTA(addresses["outgoing_milter"])
            mta.negotiate()
            answer = mta.mail(fields, body.decode(), sender="<ann@alice.example>", recipients=(f"<{BEN}>",))
            mta.abort()
            mta.close()
            return answer

        answer = await in_thread(whole)
    assert answer.applied(fields, body.decode()).endswith(mails.plain())


@pytest.mark.promise("Nothing sealed is handed to users unopened")
async def test_what_does_not_open_or_names_others_is_put_aside_and_nobody_gets_it_sealed(
    bob: Site, seal: Seal, sink: Sink, left: Sink
) -> None:
    message, other = await seal(), await seal()
    header, body = mime.split(message)
    der = bytearray(base64.b64decode(body))
    der[-1] ^= 1
    spoilt = header + b"\r\n" + base64.encodebytes(bytes(der)).replace(b"\n", b"\r\n")
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["outgoing"], spoilt)).code == 250
        assert (await submit(addresses["outgoing"], other, recipients=[EVE])).code == 250
        assert (await submit(addresses["outgoing"], other, recipients=[CARL])).code == 250
    assert (sink.got, left.got) == ([], [])
    async with assembly.parts(bob.config, prefetch=False) as parts:
        assert sorted(each.reason for each in await parts.store.quarantine.all()) == ["redirected", "tampered"]


@pytest.mark.promise("Nothing sealed is handed to users unopened")
async def test_a_relay_that_opens_no_mail_holds_it_and_says_so(
    bob: Site, seal: Seal, left: Sink, log: LogCapture
) -> None:
    message = await seal()
    text = bob.config_file.read_text()
    before, _, rest = text.partition("\n[incoming]")
    bob.config_file.write_text(before + "\n[policies]" + rest.partition("\n[policies]")[2])
    async with app.running(bob.config) as addresses:
        assert str(await submit(addresses["outgoing"], message)).startswith("451 4.7.5")
        await until_written(bob, "sealed_mail_unopened")
        _, _, said = await run("check", "--config", bob.config_file)
        assert b"WRONG  alarm sealed_mail_unopened" in said
    held = [each for each in records(bob.directory / "audit") if each.get("outcome") == "held"]
    assert [each["direction"] for each in held] == ["outgoing"]
    assert left.got == []
    assert events(log, "sealed_mail_held") == [("sealed_mail_held", "warning")]


async def test_what_we_have_sealed_for_a_peer_and_what_people_seal_for_each_other_leaves_as_before(
    bob: Site, kmes: DevelopmentKMEs, sink: Sink, left: Sink, log: LogCapture
) -> None:
    people = (
        b"From: ben@bob.example\r\nTo: eve@bob.example\r\nMessage-ID: <p@bob.example>\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data; name="smime.p7m"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(b"0\x03\x02\x01\x05").replace(b"\n", b"\r\n")
    )
    async with app.running(bob.config) as addresses:
        for to, message in (("ann@alice.example", mails.plain()), (EVE, people)):
            assert (await submit(addresses["outgoing"], message, sender=BEN, recipients=[to])).code == 250
        [ours] = [got.message for got in left.got if got.recipients == ("ann@alice.example",)]
        reply = await submit(addresses["outgoing"], ours, sender=BEN, recipients=["ann@alice.example"])
        assert reply.code == 250
        # To somebody of ours, too: that is neither on its way in nor on its way out.
        mixed = await submit(addresses["outgoing"], ours, sender=BEN, recipients=["ann@alice.example", EVE])
        assert str(mixed).startswith("451 4.7.5")
    assert sink.got == []
    assert [got.message.endswith(people) for got in left.got if got.recipients == (EVE,)] == [True]
    assert events(log, "came_by_the_way_out") == []


def users_own(tmp_path: Path, *options: str) -> bytes:
    """What Ann's mail program seals for Ben's, with OpenSSL: the relay has no key of it."""
    key, certificate, text = tmp_path / "ben.key", tmp_path / "ben.pem", tmp_path / "text"
    text.write_bytes(b"Content-Type: text/plain\r\n\r\nbetween us\r\n")
    commands: tuple[tuple[str | Path, ...], ...] = (
        ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=Ben", "-keyout", key, "-out", certificate),
        ("cms", "-encrypt", "-binary", "-outform", "DER", "-out", tmp_path / "der",
         "-in", text, "-recip", certificate, *options),
    )  # fmt: skip
    for command in commands:
        subprocess.run(["openssl", *command], check=True, capture_output=True)
    body = base64.encodebytes((tmp_path / "der").read_bytes()).replace(b"\n", b"\r\n")
    return (
        b"From: ann@alice.example\r\nTo: ben@bob.example\r\nMessage-ID: <o@alice.example>\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data; name="smime.p7m"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n" + body
    )


@pytest.mark.parametrize(
    "options",
    [
        ("-aes-256-gcm",), ("-aes-128-gcm", "-stream"), ("-aes-256-gcm", "-keyid"),
        ("-aes-256-gcm", "-keyopt", "rsa_padding_mode:oaep"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("footer", [b"", b"-- \r\nread by the list\r\n"])
async def test_what_a_peers_user_has_sealed_for_ours_reaches_them_sealed_or_not_on_its_way(
    tmp_path: Path, bob: Site, seal: Seal, sink: Sink, left: Sink, options: tuple[str, ...], footer: bytes
) -> None:
    """Once opened it passes the filter for outgoing mail on its way to the mailbox."""
    theirs = users_own(tmp_path, *options) + footer
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["incoming"], await seal("aes", theirs))).code == 250
        assert (await submit(addresses["outgoing"], sink.got[0].message)).code == 250
        assert (await submit(addresses["incoming"], theirs)).code == 250
    assert [got.message.endswith(theirs) for got in (*sink.got, *left.got)] == [True] * 3
    async with assembly.parts(bob.config, prefetch=False) as parts:
        assert await parts.store.quarantine.all() == []


@pytest.mark.parametrize("level", ["pqc", "rsa"])
async def test_what_a_relay_sealed_for_an_identity_that_is_gone_is_put_aside_and_opens_once_it_is_back(
    bob: Site, wire: Sink, alices_relay: Site, sink: Sink, left: Sink, identities: Identities, level: str
) -> None:
    """Users cannot read it: it was made for no mail program of theirs."""
    alices_relay.write_policies({"default.toml": f'levels = ["{level}"]\n'})
    async with app.running(alices_relay.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    [sealed] = [each.message for each in wire.got]
    shutil.rmtree(bob.directory / "identity")
    shutil.copytree(identities.eve.directory, bob.directory / "identity")
    async with app.running(bob.config) as addresses:
        for listener in ("incoming", "outgoing"):
            assert (await submit(addresses[listener], sealed, sender="ann@alice.example")).code == 250
        # For a site whose mail this server only passes on (a backup MX) it may be right.
        assert (await submit(addresses["incoming"], sealed, recipients=[CARL])).code == 250
    assert [each.recipients for each in sink.got] == [(CARL,)]
    assert left.got == []
    async with assembly.parts(bob.config, prefetch=False) as parts:
        [kept] = await parts.store.quarantine.all()
        assert (kept.reason, kept.named, kept.arrivals) == ("wrong-site", "alice", 2)
    shutil.rmtree(bob.directory / "identity")
    shutil.copytree(identities.bob.directory, bob.directory / "identity")
    async with assembly.parts(bob.config, prefetch=False) as parts:
        release = Releaser(parts.store.quarantine, parts.originals, parts.next_hops["incoming"], parts.audit, 50, "me")
        assert (await release.release(kept, kept.envelope.recipients)).over
        assert sink.got[-1].message.endswith(mails.plain())


@pytest.mark.parametrize("kind", ["rsa", "p384"])
async def test_what_a_relay_sealed_for_a_person_reaches_them_sealed(
    tmp_path: Path, bob: Site, wire: Sink, sink: Sink, left: Sink, kind: str
) -> None:
    """Level smime: it has the mark of a relay as well, and a mail program opens it."""
    site = make_smime_site(
        tmp_path / "alice", outgoing=wire.address, policies={"default.toml": 'levels = ["smime"]\n'},
        certificates={BEN: certified(BEN, kind=kind)},
    )  # fmt: skip
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    [sealed] = [each.message for each in wire.got]
    assert b"X-QuMail-Sealed" in sealed
    async with app.running(bob.config) as addresses:
        for listener in ("incoming", "outgoing"):
            assert (await submit(addresses[listener], sealed, sender="ann@alice.example")).code == 250
    assert [got.message.endswith(sealed) for got in (*sink.got, *left.got)] == [True] * 2


async def test_what_a_person_has_released_unopened_is_not_put_aside_once_more(
    bob: Site, seal: Seal, sink: Sink, left: Sink
) -> None:
    """Postfix shows it to the outgoing relay on its way from there to the mailbox."""
    message = await seal()
    text = bob.config_file.read_text()
    bob.config_file.write_text(text.replace("[peers.alice]", '[peers.alice]\naccept = ["pqc"]'))
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["incoming"], message)).code == 250
    async with assembly.parts(bob.config, prefetch=False) as parts:
        [kept] = await parts.store.quarantine.all()
        release = Releaser(parts.store.quarantine, parts.originals, parts.next_hops["incoming"], parts.audit, 50, "me")
        assert (await release.release(kept, kept.envelope.recipients, unopened=True)).over
    [released] = sink.got
    assert mime.is_sealed(released.message)
    async with app.running(bob.config) as addresses:
        for to in (BEN, EVE):
            reply = await submit(addresses["outgoing"], released.message, sender=released.sender, recipients=[to])
            assert reply.code == 250
    assert [got.recipients for got in left.got] == [(BEN,)]
    async with assembly.parts(bob.config, prefetch=False) as parts:
        assert [each.envelope.addresses for each in await parts.store.quarantine.all()] == [(EVE,)]


async def test_what_was_sealed_twice_is_opened_layer_by_layer_and_never_goes_round(
    bob: Site, seal: Seal, sink: Sink, left: Sink
) -> None:
    """What is opened goes through the outgoing relay on its way to the mailbox."""
    message = await seal("aes", await seal("aes", mails.plain()))
    way = ["incoming", "outgoing", "outgoing"]
    async with app.running(bob.config) as addresses:
        for listener in way:
            assert (await submit(addresses[listener], message)).code == 250
            message = (sink.got + left.got)[-1].message
    assert ([len(sink.got), len(left.got)], message.endswith(mails.plain())) == ([2, 1], True)


FORGED = b"From: Ann <ann@alice.example>\r\nTo: ben@bob.example\r\nMessage-ID: <f@x.example>\r\n\r\npay now\r\n"
MARK = b"X-QuMail-Protection: none; required=sealed; site="


def requiring(bob: Site, unprotected: str, **more: str) -> None:
    required = f'levels = ["aes"]\nrequire = "sealed"\nunprotected = "{unprotected}"\n'
    bob.write_policies({**INSIDE, "alice.example.toml": required, **more})


@pytest.mark.promise("Forged mail in a peer's name is marked from the day that the peer is taken in")
async def test_unsealed_mail_in_a_peers_name_is_marked_and_counted_once_however_often_it_comes_by(
    bob: Site, sink: Sink, left: Sink, log: LogCapture
) -> None:
    """It goes on by the way out, so that even a scanner that changes it each time cannot send it round."""
    requiring(bob, "mark")
    async with app.running(bob.config) as addresses:
        for message in (
            FORGED,
            b"X-QuMail-Protection: aes; peer=alice; author=peer; site=" + b"0" * 32 + b"\r\n" + FORGED,
        ):
            assert (await submit(addresses["outgoing"], message)).code == 250
        assert events(log, "came_unsealed_in_a_peers_name") == [("came_unsealed_in_a_peers_name", "warning")] * 2
        for again in (left.got[0].message, b"X-Scanned: yes\r\n" + left.got[1].message):
            assert (await submit(addresses["outgoing"], again)).code == 250
        assert len(events(log, "arrived_unprotected", "came_unsealed_in_a_peers_name")) == 4
        assert (await submit(addresses["incoming"], FORGED)).code == 250
        assert (await submit(addresses["outgoing"], sink.got[0].message)).code == 250
        assert len(events(log, "arrived_unprotected", "came_unsealed_in_a_peers_name")) == 6
        assert (await submit(addresses["outgoing"], left.got[0].message + b"-- \r\nscanned\r\n")).code == 250
    assert len(sink.got) == 1
    assert [(got.message.count(MARK), got.message.count(b"X-QuMail")) for got in left.got] == [(1, 1)] * 6
    assert events(log, "came_by_the_way_out") == []


@pytest.mark.promise("Forged mail in a peer's name is marked from the day that the peer is taken in")
async def test_what_was_opened_here_passes_by_the_way_out_as_it_is(
    bob: Site, seal: Seal, sink: Sink, left: Sink, log: LogCapture
) -> None:
    requiring(bob, "refuse")
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["incoming"], await seal())).code == 250
        assert (await submit(addresses["outgoing"], b"X-Scanned: yes\r\n" + sink.got[0].message)).code == 250
    [got] = left.got
    assert got.message.endswith(mails.untraced(sink.got[0].message).partition(b"\r\n")[2])
    assert got.message.count(b"X-QuMail-Protection: aes; peer=alice") == 1
    assert events(log, "arrived_unprotected", "came_unsealed_in_a_peers_name", "came_by_the_way_out") == []


async def test_without_a_requirement_of_that_peer_it_passes_as_it_is(bob: Site, left: Sink, log: LogCapture) -> None:
    """What default.toml requires of everybody concerns no mail of our own users."""
    more = {"default.toml": 'levels = ["aes"]\nrequire = "sealed"\nunprotected = "refuse"\n'}
    bob.write_policies({**INSIDE, **more, "alice.example.toml": 'levels = ["aes"]\nrequire = "none"\n'})
    own = FORGED.replace(b"ann@alice.example", b"eve@bob.example")
    async with app.running(bob.config) as addresses:
        for message, sender in ((FORGED, "ann@alice.example"), (own, EVE)):
            assert (await submit(addresses["outgoing"], message, sender=sender)).code == 250
    assert all(b"X-QuMail" not in got.message for got in left.got)
    assert events(log, "arrived_unprotected") == []


async def test_a_mixture_of_recipients_is_marked_and_is_held_where_ours_may_not_get_it(
    bob: Site, sink: Sink, left: Sink, log: LogCapture
) -> None:
    both = [BEN, CARL]
    requiring(bob, "mark")
    async with app.running(bob.config) as addresses:
        assert (await submit(addresses["outgoing"], FORGED, recipients=both)).code == 250
        assert (await submit(addresses["outgoing"], FORGED, recipients=[CARL])).code == 250
    assert [got.message.count(MARK) for got in left.got if BEN in got.recipients] == [1]
    assert [got.message.count(b"X-QuMail") for got in left.got if got.recipients == (CARL,)][-1] == 0
    left.got.clear()
    for unprotected in ("quarantine", "refuse"):
        requiring(bob, unprotected)
        async with app.running(bob.config) as addresses:
            assert (await submit(addresses["outgoing"], FORGED, recipients=both)).code == 451
    assert (sink.got, left.got) == ([], [])
    assert events(log, "unprotected_mail_held") == [("unprotected_mail_held", "warning")] * 2
    held = [each for each in records(bob.directory / "audit") if each.get("outcome") == "held"]
    assert [each["direction"] for each in held] == ["outgoing"] * 2
