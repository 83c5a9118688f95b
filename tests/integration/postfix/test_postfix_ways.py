"""Every way of deploy/postfix from users to readers, with real Postfix: by LMTP, before the queue, by login.
Standard: each recipient gets the mail once, octet for octet, whatever becomes of the others; nothing leaves in clear.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import trustme

from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.integration.postfix.test_postfix import ALIASES, IN_CLEAR, SEALED, assert_not_readable, assert_unchanged
from tests.testlib import mails, postfix
from tests.testlib.mail_site import MailSite, mail_site
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.relay_command import run
from tests.testlib.submit import submit
from tests.testlib.wire import Wire

pytestmark = [requires_postfix, pytest.mark.asyncio(loop_scope="module")]

PASSWORD = "correct horse battery"
SUBMISSION = """
[submission]
listen = "127.0.0.1:0"
certificate = "{directory}/certificate.pem"
key = "{directory}/key.pem"
users = "{directory}/users"
"""
POLICIES = {
    "bob.example.toml": SEALED,
    "alice.example.toml": IN_CLEAR,
    "clear.example.toml": IN_CLEAR,
    "refused.example.toml": 'peer = "bob"\nlevels = ["rsa+aes", "rsa"]\notherwise = "refuse"\n',
}
"""No identity is set up, so level rsa cannot be had; nowhere.example has no policy at all."""


@dataclass
class Two:
    """Alice and Bob, whose Postfix speaks LMTP to the relays; at `submission` Alice's relay is a proxy."""

    alice: MailSite
    bob: MailSite
    kmes: DevelopmentKMEs
    submission: TCPAddress
    ca: Path

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
async def sites(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    """Both sites and their KMEs."""
    directory = tmp_path_factory.mktemp("sites")
    link = LinkSettings(key_rate=1_000_000)
    alice_smtp, bob_smtp, submission = free_addresses(3)
    ca = await submission_files(directory)
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=link)
        )
        to_alice = await stack.enter_async_context(Wire(alice_smtp))
        to_bob = await stack.enter_async_context(Wire(bob_smtp))
        alice = await stack.enter_async_context(
            mail_site(
                directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], smtp=alice_smtp,
                inbound=to_alice, peer_inbound=to_bob, policies=POLICIES, over="lmtp", submission=submission,
                tables=SUBMISSION.format(directory=directory / "login"),
            )
        )  # fmt: skip
        bob = await stack.enter_async_context(
            mail_site(
                directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], smtp=bob_smtp,
                inbound=to_bob, peer_inbound=to_alice, over="lmtp",
                policies={"alice.example.toml": SEALED, "bob.example.toml": IN_CLEAR},
                postfix_settings={"virtual_alias_maps": ALIASES},
            )
        )  # fmt: skip
        yield Two(alice, bob, kmes, submission, ca)


async def test_mail_for_an_alias_of_bobs_reaches_all_behind_it_each_once(two: Two) -> None:
    original = mails.plain(subject="To an alias")
    assert (await two.alice.postfix.submit(original, recipients=["info@bob.example"])).code == 250
    for recipient in ("first@bob.example", "second@bob.example"):
        assert_unchanged((await two.bob.delivered(recipient)).message, original)
        assert len(two.bob.all_delivered(recipient)) == 1


async def submission_files(directory: Path) -> Path:
    """A certificate for the relay, and a password file with Ann and with a program's Postfix; gives the CA's file."""
    login = directory / "login"
    login.mkdir(mode=0o700)
    ca = trustme.CA()
    certificate = ca.issue_cert("relay.alice.example", "127.0.0.1")
    certificate.private_key_pem.write_to_path(str(login / "key.pem"))
    (login / "key.pem").chmod(0o600)
    for number, part in enumerate(certificate.cert_chain_pems):
        part.write_to_path(str(login / "certificate.pem"), append=number > 0)
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    for name, *rights in (("ann", "ann@alice.example"), ("programs", "@alice.example", "<>")):
        status, err, _ = await run(
            "users", "add", "--file", login / "users", "--stdin", name, *rights, stdin=f"{PASSWORD}\n".encode()
        )
        assert status == 0, err
    return directory / "ca.pem"


async def send(site: MailSite, message: bytes, *recipients: str, sender: str = "ann@alice.example") -> None:
    """One mail into a site's Postfix, which takes it."""
    reply = await site.postfix.submit(message, sender=sender, recipients=recipients)
    assert reply.code == 250, reply


async def test_what_bob_gets_by_lmtp_is_what_alice_sent_and_the_wire_shows_none_of_it(two: Two) -> None:
    original = b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n" + mails.random_attachment()
    passed = len(two.bob.inbound.sent)
    await send(two.alice, original, "attachment@bob.example")
    got = await two.bob.delivered("attachment@bob.example")
    assert_unchanged(got.message, original)
    assert got.sender == "ann@alice.example"
    assert_not_readable(bytes(two.bob.inbound.sent[passed:]), original)


async def test_of_many_recipients_each_has_an_outcome_of_their_own(two: Two) -> None:
    original = mails.plain(subject="To all sorts")
    issued = two.kmes.link.issued.total()
    reached = ["one@bob.example", "two@bob.example", "sorts@clear.example"]
    await send(two.alice, original, *reached, "sorts@nowhere.example", "sorts@refused.example")
    for recipient in reached:
        site = two.bob if recipient.endswith("@bob.example") else two.alice
        assert_unchanged((await site.delivered(recipient)).message, original)
    assert "451 4.7.1 Message held by policy" in await two.alice.postfix.deferred("sorts@nowhere.example")
    bounce = (await two.alice.delivered("ann@alice.example")).message
    assert b"Final-Recipient: rfc822; sorts@refused.example" in bounce
    assert b"nowhere.example" not in bounce
    assert [queued.recipient for queued in await two.alice.postfix.queue()] == ["sorts@nowhere.example"]

    logged = len(two.alice.relay.log)
    two.alice.site.write_policies({"nowhere.example.toml": IN_CLEAR})
    two.alice.relay.process.send_signal(signal.SIGHUP)
    await two.alice.logged('"event": "policies_loaded"', logged)
    await two.alice.postfix.flush()
    assert_unchanged((await two.alice.delivered("sorts@nowhere.example")).message, original)
    await two.all_queues_empty()
    assert [len(two.bob.all_delivered(recipient)) for recipient in reached[:2]] == [1, 1]
    assert len(two.alice.all_delivered("sorts@clear.example")) == 1
    assert two.kmes.link.issued.total() == issued + 1


async def test_while_no_key_can_be_had_only_those_wait_who_need_one(two: Two) -> None:
    original = mails.plain(subject="One waits, one does not")
    await two.alice.kme.cut()
    await send(two.alice, original, "keyless@bob.example", "keyless@clear.example")
    assert_unchanged((await two.alice.delivered("keyless@clear.example")).message, original)
    assert "451 4.7" in await two.alice.postfix.deferred("keyless@bob.example")
    assert [queued.recipient for queued in await two.alice.postfix.queue()] == ["keyless@bob.example"]

    await two.alice.kme.mend()
    await two.alice.postfix.flush()
    assert_unchanged((await two.bob.delivered("keyless@bob.example")).message, original)
    await two.all_queues_empty()
    assert len(two.bob.all_delivered("keyless@bob.example")) == 1
    assert len(two.alice.all_delivered("keyless@clear.example")) == 1


async def test_new_mail_goes_out_as_soon_as_the_relay_is_back_also_after_many_that_could_not(two: Two) -> None:
    await two.alice.kill_relay()
    waiting = [f"waits{number}@bob.example" for number in range(40)]
    await asyncio.gather(*(send(two.alice, mails.plain(), recipient) for recipient in waiting))
    for recipient in waiting:
        assert re.match(r"connect to \S+: Connection refused", await two.alice.postfix.deferred(recipient))

    await two.alice.restart_relay()
    await send(two.alice, mails.plain(subject="New"), "new@bob.example")
    assert_unchanged((await two.bob.delivered("new@bob.example")).message, mails.plain(subject="New"))
    await two.alice.postfix.flush()
    await two.all_queues_empty()
    assert [len(two.bob.all_delivered(recipient)) for recipient in waiting] == [1] * len(waiting)


async def test_at_bobs_only_the_recipient_whom_postfix_refuses_is_bounced(two: Two) -> None:
    original = mails.plain(subject="To somebody and nobody", body="This text must not come back.\r\n")
    two.bob.mailboxes.on_rcpt["nobody@bob.example"] = "550 5.1.1 no such user"
    passed = len(two.alice.inbound.sent)
    await send(two.alice, original, "somebody@bob.example", "nobody@bob.example", sender="bounced@alice.example")
    assert_unchanged((await two.bob.delivered("somebody@bob.example")).message, original)
    bounce = await two.alice.delivered("bounced@alice.example")
    assert bounce.sender == ""
    assert b"Final-Recipient: rfc822; nobody@bob.example" in bounce.message
    assert b"This text must not come back." not in bounce.message
    assert_not_readable(bytes(two.alice.inbound.sent[passed:]), original)
    await two.all_queues_empty()
    assert len(two.bob.all_delivered("somebody@bob.example")) == 1


async def test_the_relays_log_names_the_queue_id_of_postfix_and_the_client_before_it(two: Two) -> None:
    logged = len(two.alice.relay.log)
    await send(two.alice, mails.plain(), "log@bob.example")
    await two.bob.delivered("log@bob.example")
    line = json.loads(await two.alice.logged('"event": "sealed_and_sent"', logged))
    assert line["client"] == "127.0.0.1"
    assert f"{line['queue_id']}: from=<ann@alice.example>" in two.alice.postfix.log


@pytest.mark.skipif(shutil.which("vacation") is None, reason="vacation is not installed")
@pytest.mark.parametrize("what", ["sealed", "opened"])
async def test_an_automatic_reply_shows_the_outside_nothing(two: Two, tmp_path: Path, what: str) -> None:
    original = mails.plain(subject="The secret subject").replace(b"ben@bob.example", f"{what}@bob.example".encode())
    passed = len(two.bob.inbound.sent)
    await send(two.alice, original, f"{what}@bob.example")
    opened = (await two.bob.delivered(f"{what}@bob.example")).message
    on_the_wire = bytes(two.bob.inbound.sent[passed:])
    [sealed] = re.findall(rb"DATA\r\n(.*?)\r\n\.\r\n", on_the_wire, re.DOTALL)
    assert mime.is_sealed(sealed)
    back = len(two.alice.inbound.sent)
    await vacation(two.bob, tmp_path, f"{what}@bob.example", sealed if what == "sealed" else opened)
    reply = (await two.alice.delivered(f"back-{what}@alice.example")).message
    assert b"X-QuMail-Protection: aes; peer=bob" in reply
    assert (b"You wrote about: [...]" if what == "sealed" else b"You wrote about: The secret subject") in reply
    assert_not_readable(bytes(two.alice.inbound.sent[back:]), original)
    assert b"You wrote about" not in two.alice.inbound.sent[back:]


async def vacation(site: MailSite, directory: Path, user: str, message: bytes) -> None:
    """What vacation(1) does with a message to `user`: it replies by the site's sendmail(1)."""
    (directory / "reply").write_text(f"From: <{user}>\nSubject: Away: $SUBJECT\n\nYou wrote about: $SUBJECT\n")
    name = user.partition("@")[0]
    (directory / "mail").write_bytes(
        f"From back-{name}@alice.example Wed Nov 25 10:00:00 2026\n".encode() + message.replace(b"\r\n", b"\n")
    )
    await postfix.run(
        "sh", "-c", f'vacation -d -z -f "$PWD/db" -m "$PWD/reply" -a {name} root <mail', directory=directory,
        environment={"MAIL_CONFIG": str(site.postfix.config)},
    )  # fmt: skip


async def test_what_is_submitted_through_the_proxy_arrives_opened(two: Two) -> None:
    original = mails.plain(subject="Through the proxy")
    passed = len(two.bob.inbound.sent)
    reply = await submit(two.submission, original, recipients=["proxy@bob.example", "proxy@clear.example"])
    assert reply.code == 250, reply
    assert_unchanged((await two.bob.delivered("proxy@bob.example")).message, original)
    assert_unchanged((await two.alice.delivered("proxy@clear.example")).message, original)
    assert_not_readable(bytes(two.bob.inbound.sent[passed:]), original)


async def test_who_submits_through_the_proxy_hears_at_once_that_a_mail_is_refused_or_must_wait(two: Two) -> None:
    reply = await submit(two.submission, mails.plain(), recipients=["proxy@refused.example"])
    assert str(reply).startswith("550 5.7.1 ")
    await two.alice.kme.cut()
    reply = await submit(two.submission, mails.plain(), recipients=["proxy-later@bob.example"])
    assert reply.code == 451, reply
    assert await two.alice.postfix.queue() == []
    assert two.bob.all_delivered("proxy-later@bob.example") == []


@pytest.mark.skipif(shutil.which("swaks") is None, reason="swaks is not installed")
async def test_what_swaks_submits_with_starttls_and_login_arrives_opened(two: Two, tmp_path: Path) -> None:
    original = mails.plain(subject="From a mail program")
    passed = len(two.bob.inbound.sent)
    (tmp_path / "message").write_bytes(original.replace(b"\r\n", b"\n").removesuffix(b"\n"))  # swaks adds one
    said = await swaks(two, "swaks@bob.example", PASSWORD, tmp_path / "message")
    assert "=== TLS started" in said
    assert_unchanged((await two.bob.delivered("swaks@bob.example")).message, original)
    assert_not_readable(bytes(two.bob.inbound.sent[passed:]), original)


async def swaks(two: Two, recipient: str, password: str, message: Path) -> str:
    """What swaks(1) says while it submits a file as a mail program does, checking the relay's certificate."""
    relay = two.alice.relay.addresses["submission"]
    return await postfix.run(
        "swaks", "--server", relay.host, "--port", str(relay.port), "--tls", "--tls-verify",
        "--tls-ca-path", str(two.ca), "--auth", "PLAIN", "--auth-user", "ann", "--auth-password", password,
        "--from", "ann@alice.example", "--to", recipient, "--data", f"@{message}", "--helo", "program.example",
    )  # fmt: skip


async def test_a_postfix_that_logs_in_at_the_relay_as_its_smarthost_sends_sealed_mail(two: Two) -> None:
    original = mails.plain(subject="From another host")
    passed = len(two.bob.inbound.sent)
    [smtp] = free_addresses(1)
    relay = two.alice.relay.addresses["submission"]
    changes = f"""\
        umask 077
        echo '[{relay.host}]:{relay.port} programs:{PASSWORD}' > password
        postconf -e "smtp_sasl_password_maps = texthash:$PWD/password" 'relayhost = [{relay.host}]:{relay.port}' \\
            smtp_tls_secure_cert_match=relay.alice.example smtp_tls_CAfile={two.ca}
    """
    async with postfix.running(
        smtp=smtp, fragments=("smarthost-login",), ports={}, changes=changes,
        settings={"myhostname": "programs.alice.example"},
    ) as programs:  # fmt: skip
        reply = await programs.submit(original, sender="cron@alice.example", recipients=["login@bob.example"])
        assert reply.code == 250
        assert_unchanged((await two.bob.delivered("login@bob.example")).message, original)
        await programs.empty()
        for route in ("{}%bob.example@alice.example", "bob.example!{}@alice.example", '"{}@bob.example"@alice.example'):
            reply = await programs.submit(original, sender="cron@alice.example", recipients=[route.format("route")])
            assert reply.code == 250
            assert "451 4.7.1 Message held by policy" in await programs.deferred(route.format("route"))
    assert two.bob.all_delivered("route@bob.example") == []
    assert_not_readable(bytes(two.bob.inbound.sent[passed:]), original)
