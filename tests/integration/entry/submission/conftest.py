"""A relay that takes submissions: certificate, password file, a sink in place of its next hop, no sealing.
Standard: each is made for one test and gone after it; hashes are cheap ones, so that tests are quick.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trustme
from argon2 import PasswordHasher

from relay.config import TCPAddress, load_config
from relay.process import app
from tests.integration.entry.submission.program import MailProgram, connected
from tests.testlib.sink import Sink

RELAY_TOML = """\
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "2"
hostname = "relay.alice.example"

[outgoing]
next_hop = "{next_hop}"

[submission]
listen = "127.0.0.1:0"
listen_tls = "127.0.0.1:0"
certificate = "relay.pem"
key = "relay.key"
{users}
{settings}

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "site.secret"
"""


@dataclass(frozen=True)
class Server:
    """A running relay and where it listens."""

    directory: Path
    submission: TCPAddress
    submission_tls: TCPAddress
    trust: ssl.SSLContext
    ca: trustme.CA

    def program(self, *, tls: bool = False) -> AbstractAsyncContextManager[MailProgram]:
        """A mail program that has connected."""
        return connected(self.submission_tls if tls else self.submission, self.trust, tls=tls)

    @asynccontextmanager
    async def user(self, name: str = "ann", password: str = "correct horse") -> AsyncIterator[MailProgram]:
        """One that has logged in, over a connection that began with TLS."""
        async with self.program(tls=True) as program:
            await program.ask("EHLO program.example")
            assert await program.log_in(name, password) == "235 2.7.0 Authentication successful"
            yield program


Start = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    """Who signs the relay's certificates."""
    return trustme.CA()


quick_hasher = partial(PasswordHasher, time_cost=1, memory_cost=64, parallelism=1)
"""Each relay hashes a password of nobody when it starts, which takes a tenth of a second with usual parameters."""


@pytest.fixture(scope="session")
def correct_horse() -> str:
    """A hash of `correct horse` that is quickly checked."""
    return quick_hasher().hash("correct horse")


@pytest.fixture
def users(correct_horse: str) -> str:
    """The password file: Ann, a program that may send from everywhere, a person with a domain, one with nothing."""
    return (
        "# who may submit\n"
        f"ann:{correct_horse}:ann@alice.example,Ann.Archer@alice.example\n"
        f"printer:{correct_horse}:*\n"
        f"board@alice.example:{correct_horse}:@board.alice.example,<>\n"
        f"guest:{correct_horse}:\n"
    )


def write_certificate(directory: Path, ca: trustme.CA) -> None:
    """A new certificate for relay.alice.example at 127.0.0.1, and its key."""
    certificate = ca.issue_cert("relay.alice.example", "127.0.0.1")
    (directory / "relay.pem").write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    (directory / "relay.key").touch(mode=0o600)
    (directory / "relay.key").write_bytes(certificate.private_key_pem.bytes())


def write_users(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


@pytest.fixture
def start(tmp_path: Path, ca: trustme.CA, sink: Sink, users: str, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts a relay with further settings of [submission]."""

    @asynccontextmanager
    async def running(
        settings: str = "",
        *,
        users_setting: str = 'users = "users"',
        next_hop: TCPAddress | None = None,
        failure_delay: float = 0.0,
        hasher: Callable[[], PasswordHasher] = quick_hasher,
    ) -> AsyncIterator[Server]:
        directory = tmp_path / "relay"
        monkeypatch.setattr("relay.entry.smtp.users.PasswordHasher", hasher)
        monkeypatch.setattr("relay.entry.smtp.auth.FAILURE_DELAY_S", failure_delay)
        (directory / "policies").mkdir(parents=True)
        (directory / "policies" / "default.toml").write_text('levels = ["plaintext"]\n')
        write_users(directory / "users", users)
        write_certificate(directory, ca)
        text = RELAY_TOML.format(next_hop=next_hop or sink.address, users=users_setting, settings=settings)
        (directory / "relay.toml").write_text(text)
        trust = ssl.create_default_context(cadata=ca.cert_pem.bytes().decode())
        async with app.running(load_config(directory / "relay.toml")) as addresses:
            yield Server(directory, addresses["submission"], addresses["submission_tls"], trust, ca)

    return running


@pytest.fixture
async def server(start: Start) -> AsyncIterator[Server]:
    """A relay with the settings that deploy/relay.toml has."""
    async with start() as running:
        yield running
