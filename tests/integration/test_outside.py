"""What those outside may see: on the wire, in bounces and replies, in refusals, in logs and files. Never content, never keys.
Standard: RFC 3461 4.3 (RET), RFC 3464 (bounces), RFC 3834 (replies); secrets are looked for in every usual encoding.
"""

from __future__ import annotations

import base64
import binascii
import email
import functools
import json
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relay.config import DirectionSettings, TCPAddress
from relay.entry.budget import Budget
from relay.entry.listening import SocketServer, address_of, bound
from relay.entry.smtp.session import SMTPSession
from relay.errors import RelayError
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.mail import Mail, Outcomes
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.keys import MemoryKeys
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process, serving
from tests.testlib.submit import submit

SECRETS = {
    "subject": b"Zinnober-takeover",
    "body": b"Quetzalcoatl-figures",
    "field": b"Xylophone-project",
    "thread": b"earlier-marzipan",
    "boundary": b"=_boundary-krokodil",
    "file name": b"kassiber-harlekin.pdf",
    "attachment": b"Octopus-attachment",
    "reply address": b"whistle-zeppelin",
}
LEVELS = ["aes", "otp", "pqc", "rsa", "pqc+aes", "rsa+aes"]


def message(sender: str = "ann@alice.example", recipient: str = "ben@bob.example") -> bytes:
    """A message with a secret in every place where there can be one."""
    text = {name: secret.decode() for name, secret in SECRETS.items()}
    lines = [
        "Received: from desk by mail; Wed, 25 Nov 2026 10:00:00 +0000", f"From: Ann <{sender}>", f"To: Ben <{recipient}>",
        "Cc: Bea <bea@bob.example>", "Date: Wed, 25 Nov 2026 10:00:00 +0000", "Message-ID: <42@alice.example>",
        f"Subject: {text['subject']}", f"X-Project: {text['field']}", f"In-Reply-To: <{text['thread']}@alice.example>",
        f"References: <{text['thread']}@alice.example>", f"Reply-To: {text['reply address']}@alice.example",
        f"Comments: {text['field']}", "MIME-Version: 1.0", f'Content-Type: multipart/mixed; boundary="{text["boundary"]}"', "",
        f"--{text['boundary']}", "Content-Type: text/plain", "", text["body"], f"--{text['boundary']}",
        f'Content-Type: application/pdf; name="{text["file name"]}"', "Content-Transfer-Encoding: base64", "",
        base64.b64encode(SECRETS["attachment"] * 3).decode(), f"--{text['boundary']}--", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def forms_of(secret: bytes) -> list[bytes]:
    """What a secret looks like as it is, in hexadecimal, and in the middle of base64 at each of three places."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for before in range(3):
        whole = base64.b64encode(bytes(before) + secret)
        found.append(whole[(0, 4, 4)[before] : len(whole) - 4])
        found.append(binascii.b2a_base64(bytes(before) + secret)[4:-5].translate(bytes.maketrans(b"+/", b"-_")))
    return found


def secrets_in(octets: bytes, secrets: dict[str, bytes] = SECRETS) -> set[str]:
    """Which secrets somebody finds who has these octets: as they stand, in another case, or without line ends."""
    joined, lower = octets.translate(None, b"\r\n "), octets.lower()
    return {
        name
        for name, secret in secrets.items()
        if any(form in octets or form in joined for form in forms_of(secret)) or secret.lower() in lower
    }


def test_secrets_are_found_where_there_are_any() -> None:
    assert secrets_in(message()) == set(SECRETS)
    for change in (base64.encodebytes, binascii.hexlify, lambda octets: base64.b64encode(b"x" + octets)):
        assert secrets_in(change(message())) >= set(SECRETS) - {"attachment"}
    assert not secrets_in(mails.plain())


async def test_body_lines_are_not_shown_where_the_empty_line_before_them_is_missing(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    head = b"From: Ann <ann@alice.example>\r\nTo: ben@bob.example\r\nMessage-ID: <1@alice.example>\r\n"
    body = b"Dear Ben,\r\nTo: %(body)b\r\nFrom: %(field)b\r\n\t%(thread)b\r\nDate: %(attachment)b\r\n"
    secrets = {name.encode(): secret for name, secret in SECRETS.items()}
    alice = make_site(tmp_path, "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(alice) as addresses:
        for end in (b"", b"\r\nand more\r\n"):
            assert (await submit(addresses["outgoing"], head + body % secrets + end)).code == 250
    for got in wire.got:
        assert not secrets_in(got.message)
        assert head in got.message


# --- two sites that send to each other -----------------------------------------------------------------


@dataclass
class TwoWays:
    """Alice and Bob, each with both directions; what leaves waits in `network`, what was opened lies in `mailboxes`."""

    network: Sink
    mailboxes: Sink
    outgoing: dict[str, TCPAddress]
    incoming: dict[str, TCPAddress]
    sites: list[Site]

    async def carry(self, to: str) -> bytes:
        """Brings the last mail on the network to a site; gives what was opened there, without its mark."""
        got = self.network.got[-1]
        reply = await submit(self.incoming[to], got.message, sender=got.sender, recipients=got.recipients)
        assert reply.code == 250
        mark, _, opened = mails.untraced(self.mailboxes.got[-1].message).partition(b"\r\n")
        assert mark.startswith(b"X-QuMail-Protection: ")
        return opened


@asynccontextmanager
async def two_ways(
    directory: Path, kmes: DevelopmentKMEs, identities: Identities, level: str
) -> AsyncIterator[TwoWays]:
    """Both sites seal at this level and no other."""
    policy = f'levels = ["{level}"]\n'
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(Sink())
        mailboxes = await stack.enter_async_context(Sink())
        both = TwoWays(network, mailboxes, {}, {}, [])
        for name, url in zip(("alice", "bob"), kmes.urls, strict=True):
            site = make_site(
                directory / name, name, state=kmes.state_dir, kme_url=url, outgoing=network.address,
                incoming=mailboxes.address, policies={"default.toml": policy}, identities=identities,
            )  # fmt: skip
            addresses = await stack.enter_async_context(serving(site))
            both.outgoing[name], both.incoming[name] = addresses["outgoing"], addresses["incoming"]
            both.sites.append(site)
        yield both


@pytest.mark.parametrize("level", LEVELS)
async def test_mail_of_the_null_sender_and_all_other_mail_shows_the_visible_fields_and_nothing_else(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, level: str
) -> None:
    original = message()
    visible = [raw for name, raw in mime.fields(mime.split(original)[0]) if name in mime.VISIBLE_FIELDS]
    async with two_ways(tmp_path, kmes, identities, level) as sites:
        for sender in ("", "ann@alice.example"):
            assert (await submit(sites.outgoing["alice"], original, sender=sender)).code == 250
            got = sites.network.got[-1]
            assert got.sender == sender
            assert not secrets_in(got.message)
            assert not secrets_in(mime.sealed_content(got.message))
            names, raws = zip(*mime.fields(mime.split(got.message)[0]), strict=True)
            assert names == (
                b"received", b"x-qumail-sealed", b"received", b"from", b"to", b"cc", b"date", b"message-id", b"subject",
                b"mime-version", b"content-type", b"content-transfer-encoding", b"content-disposition",
            )  # fmt: skip
            assert list(raws[2:8]) == visible
            assert raws[8] == b"Subject: [...]\r\n"
            assert await sites.carry("bob") == original


def bounce_of(quoted: bytes) -> bytes:
    """What a mail server sends back that could not deliver a message (RFC 3464)."""
    before = """\
        From: MAILER-DAEMON@bob.example
        To: ann@alice.example
        Subject: Undelivered Mail Returned to Sender
        Auto-Submitted: auto-replied
        MIME-Version: 1.0
        Content-Type: multipart/report; report-type=delivery-status; boundary="b1"

        --b1

        It could not be delivered.
        --b1
        Content-Type: message/delivery-status

        Reporting-MTA: dns; bob.example

        Final-Recipient: rfc822; ben@bob.example
        Action: failed
        Status: 5.1.1

        --b1
        Content-Type: message/rfc822

        """
    return textwrap.dedent(before).replace("\n", "\r\n").encode() + quoted + b"\r\n--b1--\r\n"


def reply_to(seen: bytes) -> bytes:
    """What an absent person's program answers to the message that it sees (RFC 3834)."""
    outside = email.message_from_bytes(seen)
    return (
        f"From: ben@bob.example\r\nTo: {outside['From']}\r\nSubject: Auto: {outside['Subject']}\r\n"
        f"In-Reply-To: {outside['Message-ID']}\r\nAuto-Submitted: auto-replied\r\n\r\nI am away.\r\n\r\n> "
        + seen.decode().replace("\r\n", "\r\n> ")
        + "\r\n"
    ).encode()


@pytest.mark.parametrize(
    ("level", "answer"), [*((each, bounce_of) for each in LEVELS), ("aes", reply_to), ("otp", reply_to)]
)
async def test_bounces_of_and_replies_to_a_sealed_message_quote_only_its_outside_and_go_back_sealed(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, level: str, answer: Callable[[bytes], bytes]
) -> None:
    async with two_ways(tmp_path, kmes, identities, level) as sites:
        assert (await submit(sites.outgoing["alice"], message())).code == 250
        back = answer(sites.network.got[-1].message)
        assert not secrets_in(back)
        assert b"[...]" in back
        reply = await submit(sites.outgoing["bob"], back, sender="", recipients=["ann@alice.example"])
        assert reply.code == 250
        assert mime.is_sealed(sites.network.got[-1].message)
        assert await sites.carry("alice") == back


@dataclass
class Server:
    """A mail server with DSN that remembers each mail as the relay's own entry understands it."""

    got: list[Mail] = field(default_factory=list)

    def check_recipient(self, sender: str, recipient: str) -> None:
        """Everybody is known."""

    def not_taken(self, mail: Mail, errors: Mapping[str, RelayError]) -> None:
        """Their transaction is over."""

    async def process(self, mail: Mail) -> Outcomes:
        self.got.append(mail)
        return (None,) * len(mail.envelope.recipients)

    def client_answered(self, mail: Mail) -> None:
        """Nothing is forgotten here."""

    async def client_gone(self, mail: Mail, outcomes: Outcomes) -> None:
        """Nobody leaves early."""


async def test_what_was_opened_is_handed_on_so_that_its_bounce_has_the_header_only(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    server = Server()
    settings = DirectionSettings.model_validate({"next_hop": "127.0.0.1:9"})
    entry = SocketServer(settings, Budget(2**26))
    sockets = await bound("test", TCPAddress("127.0.0.1", 0))
    await entry.listen(sockets, lambda: SMTPSession(entry, "mail.bob.example", server))
    next_hop = address_of(sockets)
    try:
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address
        )
        bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=next_hop)
        async with serving(alice) as outgoing, serving(bob) as incoming:
            for _ in range(2):
                assert (await submit(outgoing["outgoing"], message())).code == 250
            first, second = (got.message for got in wire.got)
            for content, asked, expected in (
                (first, ["RET=FULL", "ENVID=4711"], "HDRS"),
                (second, [], "HDRS"),
                (mails.plain(), ["RET=FULL"], "FULL"),
                (mails.plain(), [], None),
            ):
                assert (await submit(incoming["incoming"], content, options=asked)).code == 250
                envelope = server.got[-1].envelope
                assert envelope.ret == expected
                assert envelope.envid == ("4711" if len(asked) == 2 else None)
    finally:
        await entry.stop()
    assert server.got[0].message.endswith(message())


# --- loops ---------------------------------------------------------------------------------------------


@pytest.mark.in_process
async def test_a_sealed_message_that_comes_back_is_not_sealed_again_and_its_loop_ends(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        settings="max_hops = 9", kme_settings="prefetch = false",
    )  # fmt: skip
    async with serving(site) as addresses:
        reply = await submit(addresses["outgoing"], message())
        issued = kmes.link.issued.total()
        while reply.code == 250:
            assert len(wire.got) < 20, "the loop does not end"
            reply = await submit(addresses["outgoing"], wire.got[-1].message)
        assert kmes.link.issued.total() == issued
    assert str(reply).startswith("554 5.4.6")
    assert len({mime.sealed_content(got.message) for got in wire.got}) == 1
    hops = [got.message.lower().count(b"received:") for got in wire.got]
    assert hops == [*range(2, 11)]


# --- refusals ------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[bytes], bytes]] = {
    "bare LF": lambda m: m.replace(b"\r\n\r\n", b"\n\r\n\r\n", 1),
    "bare CR": lambda m: m + b"\r" + SECRETS["body"] + b"\r\n",
    "long header": lambda m: b"X-Long: " + b"x" * 2_200_000 + b"\r\n" + m,
    "many lines": lambda m: b"".join(b"X-Many: %d\r\n" % number for number in range(21_000)) + m,
    "loop": lambda m: b"Received: by " + SECRETS["field"] + b"; now\r\n" + b"Received: by x; now\r\n" * 60 + m,
}
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "flipped": lambda m: m.replace(b"\r\n\r\n", b"\r\n\r\nAAAA", 1),
    "foreign encoding": lambda m: m.replace(b"Encoding: base64", b"Encoding: " + SECRETS["field"]),
    "footer": lambda m: m + b"--\r\n" + SECRETS["body"] + b"\r\n",
    "two types": lambda m: b"Content-Type: text/" + SECRETS["field"] + b"\r\n" + m,
    "long type": lambda m: b"Content-Type: x; " + SECRETS["field"] * 600 + b"\r\n" + m,
    "not CMS": lambda m: mime.sealed_message(m, SECRETS["body"] * 20),
}


async def test_no_refusal_and_no_log_line_about_it_quotes_the_message(
    tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, sink: Sink
) -> None:
    alice = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    for site in (alice, bob):
        _log_everything(site)
    async with relay_process(alice) as sending, relay_process(bob) as receiving:
        assert (await submit(sending.addresses["outgoing"], message())).code == 250
        sealed = wire.got[0].message
        replies = [await submit(sending.addresses["outgoing"], change(message())) for change in WRONG.values()]
        assert {reply.code for reply in replies} == {554}
        replies += [await submit(receiving.addresses["incoming"], change(sealed)) for change in BROKEN.values()]
        replies += [await submit(receiving.addresses["incoming"], change(sealed)) for change in WRONG.values()]
    assert not secrets_in(b"\n".join(str(reply).encode() for reply in replies))
    for log in (sending.log, receiving.log):
        assert len(log.splitlines()) > len(WRONG)
        assert not secrets_in(log.encode())


# --- logs and files ------------------------------------------------------------------------------------


def _log_everything(site: Site) -> None:
    text = site.config_file.read_text()
    assert 'format = "json"\n' in text
    site.config_file.write_text(text.replace('format = "json"\n', 'format = "json"\nlevel = "debug"\n'))


async def test_no_log_line_and_no_file_of_a_relay_has_content_or_keys_whatever_happens(
    tmp_path: Path, kmes: DevelopmentKMEs, identities: Identities, wire: Sink, sink: Sink
) -> None:
    """Each level, then everything that can go wrong on the way, each in processes that log all they can."""
    policies = {"default.toml": 'levels = ["aes"]\n', "open.example.toml": 'levels = ["plaintext"]\n'}
    for level in ("otp", "pqc", "rsa"):
        policies[f"bob.example/{level}.toml"] = f'levels = ["{level}"]\n'
    site = functools.partial(make_site, state=kmes.state_dir, identities=identities, kme_settings="lag_patience = 0")
    alice = site(tmp_path / "alice", "alice", kme_url=kmes.urls[0], outgoing=wire.address, policies=policies)
    bob = site(tmp_path / "bob", "bob", kme_url=kmes.urls[1], incoming=sink.address)
    for each in (alice, bob):
        _log_everything(each)
    async with relay_process(alice) as sending, relay_process(bob) as receiving:
        out, into = sending.addresses["outgoing"], receiving.addresses["incoming"]
        for name in ("ben", "otp", "pqc", "rsa"):
            assert (await submit(out, message(), recipients=[f"{name}@bob.example"])).code == 250
        sealed = list(wire.got)
        for number, got in enumerate(sealed):
            assert not secrets_in(got.message)
            sink.on_data = ["451 4.2.0 busy"] if number % 2 else []
            for _ in range(2):
                await submit(into, got.message, recipients=got.recipients)
        assert len(sink.got) >= 4
        assert all(got.message.endswith(message()) for got in sink.got)
        assert (await submit(out, message(), recipients=["press@open.example"])).code == 250
        wire.on_data = ["451 4.2.0 busy", "554 5.7.1 no"]
        for _ in range(2):
            assert (await submit(out, message() + b"again\r\n")).code in (451, 554)
        assert (await submit(out, message(), recipients=["x@nowhere.example"])).code == 550
        tampered = sealed[0].message.replace(b"\r\n\r\n", b"\r\n\r\nAAAA", 1)
        assert (await submit(into, tampered)).code in (250, 554)
        await kmes.stop()
        wire.on_data = ["451 4.2.0 busy"] * 5
        for number in range(3):
            await submit(out, message() + b"%d\r\n" % number)
        sending.kill()
        await sending.process.wait()
    events = {json.loads(line)["event"] for line in (sending.log + receiving.log).splitlines()}
    assert {"sealed_and_sent", "opened_and_sent", "sent_in_clear"} <= events
    keys_issued = {key_ID: issued.key.key for key_ID, issued in kmes.link.keys.items()}
    assert len(keys_issued) >= 4
    for each in (alice, bob):
        for path in each.directory.rglob("*"):
            if path.is_file() and not {"identity", "peers"} & set(path.parts):
                octets = path.read_bytes()
                assert not secrets_in(octets), path
                assert not secrets_in(octets, keys_issued), path


async def test_keys_would_be_found_in_a_log_if_there_were_any() -> None:
    key = (await MemoryKeys().take("bob")).key.key
    for line in (
        f'{{"key": "{base64.b64encode(key).decode()}"}}',
        f"key={key.hex()}",
        f"x{base64.b64encode(b'k' + key)!r}",
    ):
        assert secrets_in(line.encode(), {"key": key}) == {"key"}
