"""From Ann's mail program to Ben: submitted over TLS with a password, sealed at Alice's, opened at Bob's.
Standard: RFC 6409; octet for octet what she sent, apart from the fields that were missing.
"""

from __future__ import annotations

import signal
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiosmtplib
import pytest
import trustme

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from tests.integration.entry.submission.conftest import write_certificate, write_users
from tests.integration.entry.submission.program import connected
from tests.testlib import mails, sites
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, make_site, relay_process, serving
from tests.testlib.wire import Wire

SUBMISSION = """
[submission]
listen = "127.0.0.1:0"
listen_tls = "127.0.0.1:0"
certificate = "relay.pem"
key = "relay.key"
users = "users"
"""


@pytest.fixture
async def network(kmes: DevelopmentKMEs, tmp_path: Path, sink: Sink) -> AsyncIterator[Wire]:
    """What is between Alice's relay and Bob's, who opens what comes and hands it to the sink."""
    bob = make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    async with serving(bob) as addresses, Wire(addresses["incoming"]) as wire:
        yield wire


@pytest.fixture
async def alice(
    kmes: DevelopmentKMEs, tmp_path: Path, network: Wire, ca: trustme.CA, users: str
) -> AsyncIterator[RelayProcess]:
    """Her relay as a process of its own, as it is run."""
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=network.address)
    text = site.config_file.read_text().replace('[outgoing]\nlisten = "127.0.0.1:0"\n', "[outgoing]\n")
    site.config_file.write_text(text + SUBMISSION)
    write_certificate(site.directory, ca)
    write_users(site.directory / "users", users)
    async with relay_process(site) as process:
        yield process


@pytest.fixture
def trust(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context


@pytest.mark.parametrize("port", ["submission", "submission_tls"])
async def test_what_ann_submits_reaches_ben_as_she_wrote_it(
    alice: RelayProcess, network: Wire, sink: Sink, trust: ssl.SSLContext, port: str
) -> None:
    message = mails.random_attachment(400_000)
    await _submit(alice.addresses[port], trust, message, tls=port == "submission_tls")
    [got] = await sink.messages(1)
    added, _, rest = got.message.partition(message)
    assert rest == b""
    names = [line.partition(b":")[0] for line in added.split(b"\r\n") if line[:1] not in (b"\t", b" ", b"")]
    assert set(names) - {b"Received"} == {b"X-QuMail-Protection", b"Date", b"Message-ID"}
    assert b"X-QuMail-Protection: aes; peer=alice" in added
    assert b"secret.bin" in got.message
    assert b"secret.bin" not in network.sent
    assert b"with ESMTPSA id" in network.sent
    assert "correct horse" not in alice.log
    assert '"user": "ann"' in alice.log


async def test_a_certificate_is_renewed_while_the_relay_serves(
    alice: RelayProcess, trust: ssl.SSLContext, ca: trustme.CA
) -> None:
    address = alice.addresses["submission_tls"]
    async with connected(address, trust, tls=True) as program:
        before = program.certificate
        write_certificate(alice.log_file.parent, ca)
        alice.process.send_signal(signal.SIGHUP)
        while alice.log.count('"certificate_reloaded"') < sites.WORKERS:  # each takes it up for itself
            assert await program.ask("NOOP") == "250 2.0.0 Ok"
        async with connected(address, trust, tls=True) as another:
            assert another.certificate != before
        async with connected(alice.addresses["submission"], trust) as another:
            await another.secure()
            assert another.certificate != before


async def test_injected_commands_are_discarded_also_by_the_event_loop_that_serves(
    alice: RelayProcess, trust: ssl.SSLContext
) -> None:
    async with connected(alice.addresses["submission"], trust) as program:
        await program.ask("EHLO program.example")
        await program.send(b"STARTTLS\r\nEHLO attacker.example\r\n" + b"NOOP\r\n" * 1000)
        assert await program.reply() == "220 2.0.0 Ready to start TLS"
        await program.start_tls()
        assert await program.ask("VRFY somebody") == "252 2.0.0 Send some mail, and see"
        assert await program.ask("MAIL FROM:<ann@alice.example>") == "503 5.5.1 Send EHLO first"
        assert (await program.ask("EHLO program.example")).endswith("AUTH PLAIN LOGIN")


async def _submit(address: TCPAddress, trust: ssl.SSLContext, message: bytes, *, tls: bool) -> None:
    """As another maker's client does it."""
    client = aiosmtplib.SMTP(
        hostname="127.0.0.1", port=address.port, use_tls=tls, start_tls=not tls, tls_context=trust,
        username="ann", password="correct horse",
    )  # fmt: skip
    async with client:
        await client.sendmail("ann@alice.example", ["ben@bob.example"], message)
