"""One organisation's Postfix with the milter, when something else than all goes well, and addresses of all kinds.
Standard: DESIGN 7: mail is held, refused, kept or delivered once; never lost, never in clear by accident.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli import cli
from relay.config import TCPAddress
from relay.formats import cms
from relay.kme import DevelopmentKMEs, Misbehaviour
from tests.integration.entry.milter.organisations import MILTER, Organisation, original_part, policies, postfix_of
from tests.testlib import mails, postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process, serving
from tests.testlib.wire import Wire

pytestmark = requires_postfix

ALL = ["ben@bob.example", "press@clear.example"]
"""The first gets a sealed mail, the second a plain one."""


@dataclass
class Alone:
    """Alice's site and Postfix. What the relay hands on itself goes to `copies` where a test wants to see that."""

    site: Site
    organisation: Organisation
    milter: TCPAddress

    async def submit(self, message: bytes, *recipients: str, sender: str = "ann@alice.example") -> str:
        """The reply."""
        return str(await self.organisation.postfix.submit(message, sender=sender, recipients=recipients))

    @property
    def got(self) -> list[tuple[str, ...]]:
        return [each.recipients for each in self.organisation.mailboxes.got]


@asynccontextmanager
async def alone(
    directory: Path,
    kmes: DevelopmentKMEs,
    mailboxes: Sink,
    *,
    settings: str = MILTER,
    copies: Sink | None = None,
    wire: bool = False,
    relay: bool = True,
    postfix_settings: Mapping[str, str] | None = None,
    changes: str = "",
    files: Mapping[str, str] = {},
) -> AsyncIterator[tuple[Alone, Wire]]:
    """With `wire` the way from Postfix to the outgoing milter can be cut; without `relay` it does not run yet.

    `files` are further policy files.
    """
    smtp, again, outgoing, incoming = free_addresses(4)
    hop = copies.address if copies else again
    site = make_site(
        directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=hop,
        incoming=hop, settings=settings, policies={**policies("alice", "bob"), **files},
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        if relay:
            addresses = await stack.enter_async_context(serving(site))
            outgoing = addresses.get("outgoing_milter", outgoing)
            incoming = addresses.get("incoming_milter", incoming)
        cable = Wire(outgoing)
        if wire:
            await stack.enter_async_context(cable)
        organisation = await stack.enter_async_context(
            postfix_of(
                "alice", smtp=smtp, outgoing=cable.address if wire else outgoing, incoming=incoming, again=again,
                mailboxes=mailboxes, settings=postfix_settings, changes=changes,
            )
        )  # fmt: skip
        yield Alone(site, organisation, outgoing), cable


async def test_without_the_relay_postfix_takes_nothing_and_what_comes_again_then_goes_once(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with alone(tmp_path, kmes, sink, relay=False) as (alice, _):
        assert (await alice.submit(mails.plain(), "ben@bob.example")).startswith("451 4.7.1")
        [incoming] = free_addresses(1)
        listen = {"outgoing_milter": alice.milter, "incoming_milter": incoming}
        async with relay_process(alice.site, listen=listen):
            await postfix.change(
                alice.organisation.postfix.directory,
                f"postconf -e 'smtpd_milters = inet:{incoming}, inet:{alice.milter}'; postfix reload 2>/dev/null",
            )
            # A server process of before the reload may take one more mail.
            while (answer := await alice.submit(mails.plain(), "ben@bob.example")).startswith("451 4.7.1"):
                await asyncio.sleep(0.1)
            assert answer.startswith("250")
            await sink.messages(1)
            await alice.organisation.postfix.empty()
    assert alice.got == [("ben@bob.example",)]
    assert b"pkcs7-mime" in sink.got[0].message


async def test_a_relay_killed_while_it_reads_a_mail_has_the_client_try_again_and_the_mail_goes_once(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with alone(tmp_path, kmes, sink, relay=False, wire=True) as (alice, wire):
        [incoming] = free_addresses(1)
        listen = {"outgoing_milter": alice.milter, "incoming_milter": incoming}
        await postfix.change(alice.organisation.postfix.directory, f"postconf -e 'smtpd_milters = inet:{wire.address}'")
        message = mails.plain(body="A line of a mail that takes a while\r\n" * 50_000)
        async with relay_process(alice.site, listen=listen) as process:
            wire.stop_after(500_000)
            task = asyncio.create_task(alice.submit(message, *ALL))
            await wire.stopped()
            process.kill()
            await wire.cut()
            assert (await task).startswith("451 4.7.1")
        async with relay_process(alice.site, listen=listen):
            await wire.mend()
            assert (await alice.submit(message, *ALL)).startswith("250")
            await sink.messages(2)
            await alice.organisation.postfix.empty()
    assert sorted(alice.got) == [("ben@bob.example",), ("press@clear.example",)]


async def test_a_copy_that_left_before_the_answer_got_lost_does_not_leave_again(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink
) -> None:
    copies = wire
    copies.gate = asyncio.Event()
    async with alone(tmp_path, kmes, sink, copies=copies, wire=True) as (alice, cable):
        task = asyncio.create_task(alice.submit(mails.plain(), *ALL))
        await copies.reached.wait()
        await cable.cut()
        assert (await task).startswith("451 4.7.1")
        copies.gate.set()
        await copies.messages(1)
        await cable.mend()
        while not (reply := await alice.submit(mails.plain(), *ALL)).startswith("250"):
            assert reply.startswith("451 4.3.2"), reply
        await alice.organisation.postfix.empty()
        assert [each.recipients for each in copies.got] == [("press@clear.example",)]
        assert alice.got == [("ben@bob.example",)]


async def test_a_copy_that_the_next_hop_did_not_take_is_tried_again_and_not_taken_for_delivered(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink
) -> None:
    wire.on_rcpt["press@clear.example"] = "450 4.2.0 not now"
    async with alone(tmp_path, kmes, sink, copies=wire) as (alice, _):
        assert (await alice.submit(mails.plain(), *ALL)).startswith("451 4.2.0")  # as the next hop said
        wire.on_rcpt.clear()
        assert (await alice.submit(mails.plain(), *ALL)).startswith("250")
        await sink.messages(1)
        assert [each.recipients for each in wire.got] == [("ben@bob.example",)]  # who need not wait does not
        assert alice.got == [("press@clear.example",)]


async def test_the_sealed_form_stays_with_postfix_and_the_plain_one_goes_by_the_relay(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink
) -> None:
    async with alone(tmp_path, kmes, sink, copies=wire) as (alice, _):
        reply = await alice.submit(mails.plain(), "a@clear.example", "b@clear.example", "ben@bob.example")
        assert reply.startswith("250")
        [sealed] = await sink.messages(1)
        assert sealed.recipients == ("ben@bob.example",)
        assert b"pkcs7-mime" in sealed.message
        assert wire.got[0].recipients == ("a@clear.example", "b@clear.example")


@pytest.mark.parametrize("names", [True, False])
async def test_more_mails_of_the_same_octets_are_retries_only_if_they_have_a_message_id(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, names: bool
) -> None:
    message = b"From: ann@alice.example\r\nSubject: Listener open\r\n\r\nIt is.\r\n"
    if names:
        message = b"Message-ID: <1@alice.example>\r\n" + message
    remote = {"local_header_rewrite_clients": "", "always_add_missing_headers": "no"}
    async with alone(tmp_path, kmes, sink, copies=wire, postfix_settings=remote) as (alice, _):
        for number in (1, 2, 3):
            assert (await alice.submit(message, *ALL)).startswith("250")
            await sink.messages(number)
    assert len(wire.got) == (1 if names else 3)


async def test_without_splitting_a_mail_that_needs_two_forms_waits_whole(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with alone(tmp_path, kmes, sink) as (alice, _):
        pass
    text = alice.site.config_file.read_text().replace("[outgoing]", "[outgoing]\nmilter_split = false")
    alice.site.config_file.write_text(text)
    [again] = free_addresses(1)
    async with (
        serving(alice.site) as relay,
        postfix_of(
            "alice", smtp=alice.organisation.postfix.smtp, outgoing=relay["outgoing_milter"],
            incoming=relay["incoming_milter"], again=again, mailboxes=sink,
        ) as organisation,
    ):  # fmt: skip
        reply = await organisation.postfix.submit(mails.plain(), recipients=ALL)
        assert str(reply) == "451 4.3.0 Temporary failure, try again later"
        assert (await organisation.postfix.submit(mails.plain(), recipients=ALL[:1])).code == 250
        await sink.messages(1)
        assert [each.recipients for each in sink.got] == [("ben@bob.example",)]


async def test_what_the_kme_cannot_give_keys_for_is_held_at_the_end_of_data(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    kmes.km1.decide = lambda _: Misbehaviour("http", 503, '{"message": "no keys"}')
    async with alone(tmp_path, kmes, sink) as (alice, _):
        assert (await alice.submit(mails.plain(), "ben@bob.example")).startswith("451 4.7.5")
        assert await alice.organisation.postfix.queue() == []
    assert sink.got == []


async def test_what_cannot_be_opened_is_accepted_kept_and_listed_but_not_delivered(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    junk = (
        b"From: eve@bob.example\r\nTo: ann@alice.example\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.b64encode(b"Not CMS at all, but the name of a quantum key: " + cms.QUANTUM_KEY_NAMES[0])
        + b"\r\n"
    )
    async with alone(tmp_path, kmes, sink) as (alice, _):
        assert (await alice.submit(junk, "ann@alice.example", sender="eve@bob.example")).startswith("250")
        await alice.organisation.postfix.empty()
    command = ["quarantine", "list", "--config", str(alice.site.config_file), "--json"]
    listed = await asyncio.to_thread(CliRunner().invoke, cli, command)
    assert listed.exit_code == 0, listed.output
    assert "eve@bob.example" in listed.output
    assert json.loads(listed.output)
    assert sink.got == []


async def test_postfix_reaches_the_milters_over_unix_sockets_as_the_documents_say(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with alone(tmp_path, kmes, sink, relay=False) as (alice, _):
        directory = alice.organisation.postfix.directory / "queue" / "qumail-relay"
        await postfix.run("install", "-d", "-m", "2750", "-o", "root", "-g", "postfix", str(directory))
        text = alice.site.config_file.read_text()
        for name in ("outgoing", "incoming"):
            text = text.replace(MILTER, f'milter = "unix:{directory}/{name}"', 1)
        alice.site.config_file.write_text(text)
        sockets = "unix:qumail-relay/incoming, unix:qumail-relay/outgoing"
        await postfix.change(
            alice.organisation.postfix.directory,
            f"postconf -e 'smtpd_milters = {sockets}'; postconf -F '*/inet/chroot=y'; postfix reload 2>/dev/null",
        )
        async with serving(alice.site):
            assert {each.stat().st_mode & 0o7777 for each in directory.iterdir()} == {0o660}
            assert {each.group() for each in directory.iterdir()} == {"postfix"}
            assert (await alice.submit(mails.plain(), "ben@bob.example")).startswith("250")
            await sink.messages(1)
    assert b"pkcs7-mime" in sink.got[0].message


async def test_addresses_without_a_domain_get_that_of_postfix_from_smtp_and_from_sendmail(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with alone(tmp_path, kmes, sink) as (alice, _):
        original = mails.plain(subject="From cron")
        assert (await alice.submit(original, "root", "ben@bob.example", sender="root")).startswith("250")
        await alice.organisation.sendmail("Subject: From cron too\n\nDone.\n", "-f", "root", "operator")
        to_root = await alice.organisation.delivered("root@alice.example")
        assert original_part(to_root.message, original) == original
        assert b"pkcs7-mime" in (await alice.organisation.delivered("ben@bob.example")).message
        await alice.organisation.delivered("operator@alice.example")
        await alice.organisation.postfix.empty()
    assert sorted(alice.got) == [("ben@bob.example",), ("operator@alice.example",), ("root@alice.example",)]
    assert {each.sender for each in sink.got} == {"root@alice.example"}


async def test_an_alias_among_recipients_with_other_protection_gets_its_mail_once(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    aliases = {"virtual_alias_maps": "inline:{ info@alice.example=al@alice.example }"}
    async with alone(tmp_path, kmes, sink, postfix_settings=aliases) as (alice, _):
        original = mails.plain()
        assert (await alice.submit(original, "info@alice.example", "ben@bob.example")).startswith("250")
        assert original_part((await alice.organisation.delivered("al@alice.example")).message, original) == original
        await alice.organisation.delivered("ben@bob.example")
        await alice.organisation.postfix.empty()
    assert sorted(alice.got) == [("al@alice.example",), ("ben@bob.example",)]


@pytest.mark.parametrize("domains", [("BOB.example", "bob.example"), ("CLEAR.example", "clear.example")])
async def test_a_recipient_whose_domain_is_written_in_two_ways_gets_the_mail_once(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, domains: tuple[str, str]
) -> None:
    async with alone(tmp_path, kmes, sink) as (alice, _):
        reply = await alice.submit(mails.plain(), *(f"ben@{domain}" for domain in domains))
        assert reply.startswith("250")
        await sink.messages(1)
        await alice.organisation.postfix.empty()
    assert [[each.lower() for each in got] for got in alice.got] == [[f"ben@{domains[1]}"]]


async def test_utf8_addresses_are_sealed_from_smtp_and_from_sendmail(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    async with alone(tmp_path, kmes, sink, postfix_settings={"smtputf8_enable": "yes"}) as (alice, _):
        reply = await alice.organisation.postfix.submit(
            mails.plain(), sender="\u00e4nne@alice.example", recipients=["j\u00f6rg@bob.example"],
            options=["SMTPUTF8"],
        )  # fmt: skip
        assert reply.code == 250, reply
        await alice.organisation.sendmail(
            "Subject: Hello\n\nThe text.\n", "-f", "\u00e4nne@alice.example", "j\u00fcrgen@bob.example"
        )
        # sendmail(1) says nothing of UTF-8, and this sender does not either.
        await alice.organisation.sendmail(
            "Subject: Hello\n\nThe text.\n",
            "-f",
            "ann@alice.example",
            "j\u00fcrg@bob.example",
            "j\u00fcrg@clear.example",
        )
        await sink.messages(4)
    sealed = [("j\u00f6rg@bob.example",), ("j\u00fcrg@bob.example",), ("j\u00fcrgen@bob.example",)]
    assert sorted(alice.got) == sorted([*sealed, ("j\u00fcrg@clear.example",)])
    assert sum(b"pkcs7-mime" in each.message for each in sink.got) == 3
