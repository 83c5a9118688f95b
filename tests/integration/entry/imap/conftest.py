"""Alice, who seals, and Bob's relay with a mailbox at a provider that it reaches only by IMAP.
Standard: sealed messages are made by Alice's own parts, and opened with keys of the development KMEs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from relay.config import TCPAddress
from relay.entry.budget import Budget
from relay.entry.imap.watch import Visited, mailboxes as all_mailboxes
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.process import assembly
from tests.testlib import mails
from tests.testlib.dovecot import PASSWORD, Dovecot, dovecot
from tests.testlib.identities import Identities
from tests.testlib.imap_double import IMAPDouble
from tests.testlib.sites import ANY_SENDER, Site, make_site

NOWHERE = TCPAddress("127.0.0.1", 1)


def original(subject: str, body: str = "The figures are 42 and 43.\r\n") -> bytes:
    """A message that is known by its subject."""
    return mails.plain(subject, body).replace(b"<1@alice.example>", f"<{subject}@alice.example>".encode())


@dataclass
class Alice:
    """Seals as Alice's relay does."""

    parts: assembly.Parts

    async def seal(self, message: bytes, recipient: str = "ben@bob.example") -> bytes:
        """The sealed form of a message, as it would leave."""
        sealed = await self.parts.sealer.seal(Mail(Envelope("ann@alice.example", (Recipient(recipient),)), message))
        assert not sealed.failures
        return sealed.copies[0].message


@pytest.fixture(autouse=True)
def _tried_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.entry.imap.folder.RETRY_S", 0.2)


@pytest.fixture
async def alice(tmp_path: Path, kmes: DevelopmentKMEs) -> AsyncIterator[Alice]:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=NOWHERE,
        peer_settings=ANY_SENDER,
    )  # fmt: skip
    async with assembly.parts(site.config) as parts:
        yield Alice(parts)


@pytest.fixture
async def server() -> AsyncIterator[Dovecot]:
    """Ben's provider."""
    async with dovecot() as running:
        yield running


def imap_table(address: TCPAddress, ca: Path, more: str = "") -> str:
    """[imap.ben] for a server; the password lies beside relay.toml."""
    return (
        f'\n[imap.ben]\nhost = "localhost"\nport = {address.port}\nca = "{ca}"\nuser = "ben"\n'
        f'addresses = ["ben@bob.example"]\npassword_file = "ben.password"\ntimeout = 10\n{more}\n'
    )


def bob_site(
    directory: Path, kmes: DevelopmentKMEs, table: str, kme_url: str = "", identities: Identities | None = None
) -> Site:
    """Bob's site, which only watches mailboxes."""
    site = make_site(
        directory, "bob", state=kmes.state_dir, kme_url=kme_url or kmes.urls[1], kme_settings="lag_patience = 0.2",
        identities=identities,
    )  # fmt: skip
    with site.config_file.open("a") as file:
        file.write(table)
    password = directory / "ben.password"
    password.touch(mode=0o600)
    password.write_text(f"{PASSWORD}\n")
    return site


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, server: Dovecot) -> Site:
    return bob_site(tmp_path / "bob", kmes, imap_table(server.tls, server.ca))


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
async def provider(authority: trustme.CA) -> AsyncIterator[IMAPDouble]:
    async with IMAPDouble(authority) as server:
        yield server


def bob_at(provider: IMAPDouble, directory: Path, kmes: DevelopmentKMEs, more: str = "") -> Site:
    ca = directory / "ca.pem"
    provider.authority.cert_pem.write_to_path(ca)
    return bob_site(
        directory / "bob", kmes, imap_table(provider.address, ca, more).replace("timeout = 10", "timeout = 1")
    )


async def visit(site: Site) -> list[Visited]:
    """Opens what is in Ben's mailbox now, as `imap once` does."""
    async with assembly.parts(site.config, prefetch=False) as built:
        tally = assembly.tally(built, "incoming")
        mailboxes = all_mailboxes(built.config, built.originals, Budget(100 * 2**20), tally, built.board)
        return await mailboxes.once("ben", lambda *_: None)


def opened(messages: list[bytes]) -> list[bytes]:
    """The originals among messages of a mailbox, without the mark, in order."""
    marked = [
        each for each in messages if each.startswith(b"X-QuMail-Protection: aes; peer=alice; author=peer; sealed=")
    ]
    return sorted(each.partition(b"\r\n")[2] for each in marked)


@asynccontextmanager
async def watching(site: Site) -> AsyncIterator[None]:
    """A watcher beside a relay; that there are two relays at once needs PostgreSQL, and makes no difference here."""
    async with assembly.parts(site.config, prefetch=False) as built:
        tally = assembly.tally(built, "incoming")
        mailboxes = all_mailboxes(built.config, built.originals, Budget(100 * 2**20), tally, built.board)
        task = asyncio.create_task(mailboxes.watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
