"""Beside a scanner that a Postfix had before setup: a virus is refused in clear, sealed and opened, and when it leaves.
Standard: real Postfix and real relays in both integrations; scanners of the tests' own, and those of Debian where they are installed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay import postfix as checked
from relay.config import Config, TCPAddress
from relay.kme import DevelopmentKMEs
from relay.setup.mail_server import apply, planned_change
from relay.setup.restart import restarted
from tests.testlib import mails, postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import Postfix, requires_postfix
from tests.testlib.real_scanners import amavisd, clamav, requires_amavisd, requires_clamav, requires_rspamd, rspamd
from tests.testlib.scanner import SIGNATURE, Scanner, ScanningFilter
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import SMTPReply, submit

pytestmark = requires_postfix

POLICIES = {"bob.example.toml": 'levels = ["aes"]\n', "alice.example.toml": 'levels = ["plaintext"]\n'}
VIRUS = mails.plain("virus", SIGNATURE.decode() + "\r\n")
SECRET = b"The vault opens at 06:30."
HARMLESS = mails.plain("harmless", SECRET.decode() + "\r\n")
KINDS = {"content-filter": "lmtp", "milter": "milter"}


@dataclass(frozen=True)
class Alices:
    """Her Postfix beside a relay, her users' mailboxes, and what has left for Bob's site; what Bob's relay makes of mail."""

    postfix: Postfix
    mailboxes: Sink
    wire: Sink
    sealing: TCPAddress
    of_bob: Sink

    async def from_bob(self, message: bytes) -> SMTPReply:
        """The reply to a mail of Ben's, as it arrives: sealed by Bob's relay."""
        reply = await submit(self.sealing, message, sender="ben@bob.example", recipients=["ann@alice.example"])
        assert reply.code == 250
        sealed = self.of_bob.got.pop().message
        assert SIGNATURE not in sealed
        return await self.postfix.submit(sealed, sender="ben@bob.example", recipients=["ann@alice.example"])

    async def settled(self) -> None:
        """Waits until nothing is in the queue, and says that nobody has got a virus."""
        await self.postfix.empty()
        assert not [each for each in (*self.wire.got, *self.mailboxes.got) if SIGNATURE in each.message]

    @property
    def left_sealed(self) -> int:
        """How many sealed mails of Ann's have left for Bob's site."""
        return [each.sender for each in self.wire.got if b"smime.p7m" in each.message].count("ann@alice.example")

    @property
    def harmless(self) -> int:
        """How often Ann has got what Ben wrote."""
        return [SECRET in each.message for each in self.mailboxes.got if each.sender == "ben@bob.example"].count(True)


@asynccontextmanager
async def alices(
    directory: Path, kmes: DevelopmentKMEs, integration: str, settings: Mapping[str, str], *,
    submission: TCPAddress | None = None, changes: str = "",
) -> AsyncIterator[Alices]:  # fmt: skip
    """A site whose Postfix had `settings` and `changes` before `setup` was applied to it."""
    smtp, back, opened = free_addresses(3)
    async with AsyncExitStack() as stack:
        mailboxes, wire, of_bob = [await stack.enter_async_context(Sink()) for _ in range(3)]
        alice = make_site(
            directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], policies=POLICIES,
            outgoing=back, incoming=opened, settings=f'{KINDS[integration]} = "127.0.0.1:0"',
        )  # fmt: skip
        bob = make_site(
            directory / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], outgoing=of_bob.address,
            incoming=of_bob.address, policies={"alice.example.toml": 'levels = ["aes"]\n'},
        )  # fmt: skip
        addresses = await stack.enter_async_context(serving(alice))
        sealing = (await stack.enter_async_context(serving(bob)))["outgoing"]
        here, there = (f"mailboxes:[127.0.0.1]:{sink.address.port}" for sink in (mailboxes, wire))
        usual = {
            "myhostname": "mail.alice.example",
            "relay_domains": "alice.example",
            "transport_maps": f"inline:{{ alice.example={here}, bob.example={there} }}",
        }
        running = postfix.running(
            smtp=smtp, submission=submission, fragments=(), ports={}, settings={**usual, **settings}, changes=changes
        )
        server = await stack.enter_async_context(running)
        config = with_integration(alice.config, KINDS[integration], addresses)
        change = await planned_change(server.config, config, service=f"{smtp}/inet")
        assert [fault for fault in change.faults if fault.code != "unknown-recipients"] == []
        apply(change, directory)
        await postfix.change(server.directory, "")
        assert await restarted(server.config)
        assert (await checked.judge_all(server.config, config)).faults == change.faults
        yield Alices(server, mailboxes, wire, sealing, of_bob)


def with_integration(config: Config, kind: str, addresses: Mapping[str, TCPAddress]) -> Config:
    """The settings as a relay.toml of this integration alone would have them, with the ports that the relay has taken."""
    sides = {}
    for name, direction in (("outgoing", config.outgoing), ("incoming", config.incoming)):
        assert direction is not None
        listens = {"listen": None, "lmtp": None, "milter": None} | {kind: addresses[f"{name}_{kind}"]}
        sides[name] = direction.model_copy(update=listens)
    return config.model_copy(update=sides)


async def everything_is_scanned(site: Alices, integration: str, refused: int) -> None:
    """A milter refuses a virus with `refused` in each direction, sealed or not, and everything else goes its way once."""
    outside = await site.postfix.submit(VIRUS, sender="x@else.example", recipients=["ann@alice.example"])
    leaving = await site.postfix.submit(VIRUS)
    assert (outside.code, leaving.code) == (refused, refused)
    virus = await site.from_bob(VIRUS)
    assert virus.code == (refused if integration == "milter" else 250)
    assert (await site.from_bob(HARMLESS)).code == 250
    assert (await site.postfix.submit(HARMLESS)).code == 250
    await site.mailboxes.messages(1)
    async with asyncio.timeout(30):
        while not (site.left_sealed and site.postfix.log.count("milter-reject: END-OF-MESSAGE") == 3):
            await asyncio.sleep(0.02)
    await site.settled()
    assert (site.harmless, site.left_sealed) == (1, 1)


@pytest.mark.parametrize("integration", KINDS)
async def test_a_milter_that_was_there_reads_what_leaves_and_what_was_opened(
    tmp_path: Path, kmes: DevelopmentKMEs, integration: str
) -> None:
    async with Scanner() as scanner:
        async with alices(tmp_path, kmes, integration, {"smtpd_milters": f"inet:{scanner.address}"}) as site:
            await everything_is_scanned(site, integration, 554)
        assert len(scanner.refused) == 3
        assert any(SECRET in each for each in scanner.seen)


@requires_clamav
async def test_clamavs_milter_refuses_a_virus_that_a_peer_has_sealed(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    async with clamav(tmp_path) as address:
        await refused_in_both_integrations(tmp_path, kmes, address, 550)


@requires_rspamd
async def test_rspamd_refuses_a_virus_that_a_peer_has_sealed(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    async with rspamd(tmp_path) as address:
        await refused_in_both_integrations(tmp_path, kmes, address, 554)


async def refused_in_both_integrations(
    directory: Path, kmes: DevelopmentKMEs, scanner: TCPAddress, refused: int
) -> None:
    """The scanner takes seconds to start: one does for both."""
    for integration in KINDS:
        (beside := directory / integration).mkdir()
        async with alices(beside, kmes, integration, {"smtpd_milters": f"inet:{scanner}"}) as site:
            await everything_is_scanned(site, integration, refused)


async def test_a_content_filter_that_was_there_reads_what_leaves_and_what_was_opened(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    [back] = free_addresses(1)
    async with ScanningFilter(back) as scanner:
        await everything_is_filtered(tmp_path, kmes, scanner.address, back)
        assert len(scanner.refused) == 2
        assert len([each for each in scanner.got if SECRET in each.message]) == 2, "each once, and no loop"


@requires_amavisd
async def test_amavisd_refuses_a_virus_that_a_peer_has_sealed(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    [back] = free_addresses(1)
    async with amavisd(back) as address:
        await everything_is_filtered(tmp_path, kmes, address, back)


async def everything_is_filtered(directory: Path, kmes: DevelopmentKMEs, scanner: TCPAddress, back: TCPAddress) -> None:
    """A content filter refuses a virus that leaves and one that was opened, and everything else goes its way once."""
    [submission] = free_addresses(1)
    services = (
        "'smtp-amavis/unix=smtp-amavis unix - - n - 2 smtp'",
        f"'{back}/inet={back} inet n - n - - smtpd -o content_filter='",
    )
    before = {"content_filter": f"smtp-amavis:[127.0.0.1]:{scanner.port}"}
    changes = f"postconf -M {' '.join(services)}"
    async with alices(directory, kmes, "content-filter", before, submission=submission, changes=changes) as site:
        for message in (VIRUS, HARMLESS):
            assert (await submit(submission, message)).code == 250
            assert (await site.from_bob(message)).code == 250
        async with asyncio.timeout(30):
            while site.postfix.log.count("said: 554") < 2 or not (site.harmless and site.left_sealed):
                await asyncio.sleep(0.05)
        await site.settled()
        assert (site.harmless, site.left_sealed) == (1, 1)
