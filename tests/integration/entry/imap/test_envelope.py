"""What the sealed envelope does to mail in a mailbox: whose it is, that it is opened once, and not too late.
Standard: relay/FORMAT.md; what does not fit stays sealed, flagged, and the log says why.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
from structlog.testing import LogCapture

from relay.entry.imap.marks import OriginalMarks
from relay.formats import mime
from relay.journey import opening
from relay.journey.opening import WINDOW
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from tests.integration.entry.imap.conftest import Alice, bob_site, imap_table, opened, original, visit
from tests.testlib.dovecot import Dovecot, requires_dovecot
from tests.testlib.sites import Site, serving

pytestmark = requires_dovecot


def again(sealed: bytes, number: int = 2) -> bytes:
    """The same CMS under another header, as an outsider sends it."""
    header = f"From: Boss <boss@alice.example>\r\nMessage-ID: <again-{number}@x>\r\n\r\n".encode()
    return mime.sealed_message(header, mime.sealed_content(sealed))


def kinds(log: LogCapture) -> list[str]:
    """Why messages were left."""
    return sorted(each["kind"] for each in log.entries if each["event"] == "imap_not_opened")


async def test_mail_for_each_of_the_addresses_is_opened_and_mail_for_others_stays_sealed(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs, log: LogCapture
) -> None:
    table = imap_table(server.tls, server.ca).replace('"ben@bob.example"', '"ben@Bob.example", "sales@bob.example"')
    bob = bob_site(tmp_path / "bob", kmes, table)
    for recipient in ("ben@bob.example", "sales@bob.example", "eve@bob.example"):
        await asyncio.to_thread(server.deliver, await alice.seal(original(recipient), recipient))
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened) == (2, 1)
    assert opened(server.messages()) == [original("ben@bob.example"), original("sales@bob.example")]
    assert kinds(log) == ["NotNamed"]
    await server.flagged("$QuMailUnopened")


async def test_a_mail_that_names_both_addresses_of_a_mailbox_is_opened_once(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    table = imap_table(server.tls, server.ca).replace('"ben@bob.example"', '"ben@bob.example", "sales@bob.example"')
    bob = bob_site(tmp_path / "bob", kmes, table)
    both = tuple(map(Recipient, ("ben@bob.example", "sales@bob.example")))
    mail = Mail(Envelope("ann@alice.example", both), original("both"))
    sealed = (await alice.parts.sealer.seal(mail)).copies[0].message
    await asyncio.to_thread(server.deliver, sealed, again(sealed))
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened) == (1, 1)
    assert opened(server.messages()) == [original("both")]


@pytest.mark.parametrize("copies", [1, 10])
async def test_of_copies_in_a_mailbox_one_is_opened_also_when_all_are_opened_at_once(
    alice: Alice, bob: Site, server: Dovecot, log: LogCapture, copies: int
) -> None:
    sealed = await alice.seal(original("one"))
    await asyncio.to_thread(server.deliver, sealed, *(again(sealed, number) for number in range(copies)))
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened) == (1, copies)
    assert opened(server.messages()) == [original("one")]
    assert set(kinds(log)) <= {"DeliveryUnderWay", "Replayed"}


async def test_a_copy_in_another_folder_is_not_opened_either(
    alice: Alice, server: Dovecot, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    table = imap_table(server.tls, server.ca, 'folders = ["INBOX", "Other"]')
    bob = bob_site(tmp_path / "bob", kmes, table)
    with server.client() as client:
        client.create("Other")
    async with serving(bob):
        for number in range(5):
            sealed = await alice.seal(original(str(number)))
            with server.client() as client:
                for folder, message in (("Other", again(sealed)), ("INBOX", sealed)):
                    client.append(folder, "", "", message)
            await server.until(number + 1, "Sealed")
    assert opened(server.messages() + server.messages("Other")) == [original(str(number)) for number in range(5)]


async def test_a_copy_that_comes_later_stays_sealed_also_where_the_original_was_deleted(
    alice: Alice, bob: Site, server: Dovecot, log: LogCapture
) -> None:
    sealed = await alice.seal(original("one"))
    await asyncio.to_thread(server.deliver, sealed)
    await visit(bob)
    with server.client() as client:
        client.store("1", "+FLAGS", r"(\Deleted)")
        client.expunge()
    await asyncio.to_thread(server.deliver, again(sealed))
    [visited] = await visit(bob)
    assert (visited.opened, visited.unopened, kinds(log)) == (0, 1, ["Replayed"])
    assert len(server.messages()) == 1


async def test_where_something_fails_before_the_original_is_there_the_next_look_opens_it(
    alice: Alice, bob: Site, server: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = await alice.seal(original("one"))
    await asyncio.to_thread(server.deliver, sealed)

    def fails(*_: object) -> bytes:
        raise RuntimeError("a fault of ours")

    with monkeypatch.context() as patched:
        patched.setattr(mime, "marked", fails)
        [visited] = await visit(bob)
        assert (visited.opened, visited.unopened) == (0, 1)
    async with assembly.parts(bob.config, prefetch=False) as parts:
        found = await parts.originals.opener.open(sealed, mailboxes=["ben@bob.example"])
        assert found is not None
        assert found.due == ("ben@bob.example",), "nobody is claimed any more"
        await parts.originals.opener.give_up(found)
    assert (await visit(bob))[0].opened == 1


@pytest.mark.in_process
async def test_where_the_last_step_before_the_original_is_there_fails_the_same_watcher_opens_it_later(
    alice: Alice, bob: Site, server: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = OriginalMarks.proven
    failed: list[bytes] = []

    def fails_once(proofs: OriginalMarks, message: bytes) -> bytes:
        if not failed:
            failed.append(message)
            raise RuntimeError("a fault of ours")
        return works(proofs, message)

    monkeypatch.setattr(OriginalMarks, "proven", fails_once)
    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    async with serving(bob):
        await server.until(1, "Sealed")
    assert failed
    assert opened(server.messages()) == [original("one")]


async def test_a_sender_of_a_domain_that_is_not_the_peers_leaves_it_sealed(
    alice: Alice, bob: Site, server: Dovecot, log: LogCapture
) -> None:
    envelope = Envelope("ceo@stranger.example", (Recipient("ben@bob.example"),))
    sealed = await alice.parts.sealer.seal(Mail(envelope, original("one")))
    await asyncio.to_thread(server.deliver, sealed.copies[0].message)
    [visited] = await visit(bob)
    assert (visited.unopened, kinds(log)) == (1, ["NotNamed"])


async def test_what_is_opened_too_late_stays_sealed(
    alice: Alice, bob: Site, server: Dovecot, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Later:
            return cls.fromtimestamp((datetime.now(tz) + WINDOW + timedelta(minutes=1)).timestamp(), tz)

    await asyncio.to_thread(server.deliver, await alice.seal(original("one")))
    monkeypatch.setattr(opening, "datetime", Later)
    [visited] = await visit(bob)
    assert (visited.unopened, kinds(log)) == (1, ["OutsideWindow"])


async def test_results_in_an_original_that_claim_to_be_ours_are_removed(
    alice: Alice, bob: Site, server: Dovecot
) -> None:
    """RFC 8601 5: only what we have found ourselves may stand under our name, in a mailbox as in mail by SMTP."""
    with bob.config_file.open("a") as file:
        file.write('[dkim]\nauthserv_id = "relay.bob.example"\n')
    forged = b"Authentication-Results: relay.bob.example; spf=pass\r\n"
    await asyncio.to_thread(server.deliver, await alice.seal(forged + original("one")))
    assert (await visit(bob))[0].opened == 1
    assert opened(server.messages()) == [original("one")]
