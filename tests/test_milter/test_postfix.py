"""Two organisations whose Postfix have only the milter: what users get, what the wire shows.
Standard: octet for octet what was sent, exactly once, and not an octet of it in clear between the sites.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from relay import app, mime
from relay.config import Address
from relay.kme import DevelopmentKMEs, LinkSettings
from tests.testlib import mails, postfix
from tests.testlib.identities import Identities
from tests.testlib.postfix import Postfix, requires_postfix
from tests.testlib.sink import Got, Sink
from tests.testlib.sites import make_site
from tests.testlib.wire import Wire

pytestmark = [requires_postfix, pytest.mark.asyncio(loop_scope="module")]

IN_CLEAR = 'levels = ["plaintext"]\n'
COMPLETE = b"Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n"
TRACE_FIELDS = {b"received", b"return-path", b"delivered-to", b"x-qumail-protection"}


@dataclass
class Organisation:
    postfix: Postfix
    mailboxes: Sink

    async def delivered(self, recipient: str) -> Got:
        while not (found := [got for got in self.mailboxes.got if recipient in got.recipients]):
            await self.mailboxes.messages(len(self.mailboxes.got) + 1)
        return found[0]


@dataclass
class Two:
    alice: Organisation
    bob: Organisation
    wire: Wire


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory, identities: Identities) -> AsyncIterator[Two]:
    directory = tmp_path_factory.mktemp("milter")
    alice_smtp, bob_smtp = postfix.free_addresses(2)
    async with AsyncExitStack() as stack:
        kmes = await stack.enter_async_context(
            DevelopmentKMEs(
                state_dir=directory / "kme", host="127.0.0.1", ports=(0, 0), link=LinkSettings(key_rate=1e6)
            )
        )
        wire = await stack.enter_async_context(Wire(bob_smtp))

        async def organisation(name: str, smtp: Address, peer: str, there: Address) -> Organisation:
            mailboxes = await stack.enter_async_context(Sink())
            [again] = postfix.free_addresses(1)
            site = make_site(
                directory / name, name, state=kmes.state_dir, kme_url=kmes.urls[name == "bob"],
                outgoing=again, incoming=again, identities=identities, settings='milter = "127.0.0.1:0"',
                policies={
                    f"{peer}.example.toml": 'levels = ["aes"]\n',
                    f"{peer}.example/pqc.toml": 'levels = ["pqc"]\nquantum = "off"\n',
                    f"{name}.example.toml": IN_CLEAR,
                    "clear.example.toml": IN_CLEAR,
                },
            )  # fmt: skip
            relay = await stack.enter_async_context(app.running(site.config))
            here = f"mailboxes:[{mailboxes.address.host}]:{mailboxes.address.port}"
            running = await stack.enter_async_context(
                postfix.running(
                    smtp=smtp,
                    fragments=("milter",),
                    ports={10028: relay["outgoing_milter"], 10038: relay["incoming_milter"], 10026: again},
                    settings={
                        "myhostname": f"mail.{name}.example",
                        "relay_domains": f"{name}.example",
                        "default_transport": here,
                        "transport_maps": (
                            f"inline:{{ {name}.example={here}, {peer}.example=smtp:[{there.host}]:{there.port} }}"
                        ),
                    },
                )
            )
            return Organisation(running, mailboxes)

        bob = await organisation("bob", bob_smtp, "alice", alice_smtp)
        alice = await organisation("alice", alice_smtp, "bob", wire.address)
        yield Two(alice, bob, wire)


def original_part(arrived: bytes, original: bytes) -> bytes:
    """What was delivered, without the trace fields that servers put on top."""
    trace = arrived[: len(arrived) - len(original)]
    assert {name for name, _ in mime.fields(trace)} <= TRACE_FIELDS, trace
    return arrived[len(trace) :]


KINDS = {
    "plain": mails.plain(),
    "attachment": COMPLETE + mails.random_attachment(),
    "eight-bit": COMPLETE + mails.eight_bit(),
    "folded": mails.plain().replace(b"Subject: ", b"Subject:no blank\r\n\tfolded with tab\r\n  and two blanks \r\nX-A:  two\r\nX-A: one\r\nSubject2: "),
    "large": mails.plain(body="A line of a large mail\r\n" * 200_000),
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
    assert b"X-QuMail-Protection: " + user.encode() + b"; peer=alice\r\n" in got.message
    sent = bytes(two.wire.sent[passed:])
    assert b"application/pkcs7-mime" in sent
    assert b"Subject: [...]" in sent
    lines = {line for line in original.partition(b"\r\n\r\n")[2].split(b"\r\n")[:100] if len(line) > 8}
    assert not any(line in sent for line in lines if not line.startswith(b"Content-"))


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


async def test_mail_among_own_users_is_as_it_was(two: Two) -> None:
    original = mails.plain(subject="Inside")
    assert (await two.alice.postfix.submit(original, recipients=["al@alice.example"])).code == 250
    got = await two.alice.delivered("al@alice.example")
    assert original_part(got.message, original) == original
    assert b"X-QuMail-Protection" not in got.message


async def test_what_sendmail_submits_is_sealed_too(two: Two) -> None:
    two.bob.mailboxes.got.clear()
    passed = len(two.wire.sent)
    await postfix.run(
        "sh", "-c", 'printf "Subject: From a script\\n\\nThe figures are 42 and 43.\\n" | sendmail -f ann@alice.example s@bob.example',
        environment={"MAIL_CONFIG": str(two.alice.postfix.config)},
    )  # fmt: skip
    got = await two.bob.delivered("s@bob.example")
    assert got.message.endswith(b"\r\n\r\nThe figures are 42 and 43.\r\n")
    assert b"From a script" not in bytes(two.wire.sent[passed:])
