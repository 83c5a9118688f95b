"""Beside a scanner that a Postfix had before setup: a virus is refused in clear, sealed and opened, and when it leaves.
Standard: real Postfix and real relays in both doors; the scanner is a milter of the test's own with its own signature.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from relay import postfix as checked
from relay.config import Config, TCPAddress
from relay.kme import DevelopmentKMEs
from relay.setup.mail_server import apply, planned_change, reloaded
from tests.testlib import mails, postfix
from tests.testlib.postfix import requires_postfix
from tests.testlib.scanner import SIGNATURE, Scanner, ScanningFilter
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, serving
from tests.testlib.submit import submit

pytestmark = requires_postfix

POLICIES = {"bob.example.toml": 'levels = ["aes"]\n', "alice.example.toml": 'levels = ["plaintext"]\n'}
VIRUS = mails.plain("virus", SIGNATURE.decode() + "\r\n")
HARMLESS = mails.plain("harmless", "The vault opens at 06:30.\r\n")
KINDS = {"content-filter": "lmtp", "milter": "milter"}


def with_door(config: Config, kind: str, addresses: Mapping[str, TCPAddress]) -> Config:
    """The settings as a relay.toml of this door alone would have them, with the ports that the relay has taken."""
    sides = {}
    for name, direction in (("outgoing", config.outgoing), ("incoming", config.incoming)):
        assert direction is not None
        listens = {"listen": None, "lmtp": None, "milter": None} | {kind: addresses[f"{name}_{kind}"]}
        sides[name] = direction.model_copy(update=listens)
    return config.model_copy(update=sides)


@pytest.mark.parametrize("door", KINDS)
async def test_a_virus_is_refused_in_both_directions_sealed_or_not(
    tmp_path: Path, kmes: DevelopmentKMEs, door: str
) -> None:
    smtp, back, opened = postfix.free_addresses(3)
    async with AsyncExitStack() as stack:
        mailboxes, wire, of_bob = [await stack.enter_async_context(Sink()) for _ in range(3)]
        scanner = await stack.enter_async_context(Scanner())
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], policies=POLICIES,
            outgoing=back, incoming=opened, settings=f'{KINDS[door]} = "127.0.0.1:0"',
        )  # fmt: skip
        bob = make_site(
            tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], outgoing=of_bob.address,
            incoming=of_bob.address, policies={"alice.example.toml": 'levels = ["aes"]\n'},
        )  # fmt: skip
        addresses = await stack.enter_async_context(serving(alice))
        sealing = (await stack.enter_async_context(serving(bob)))["outgoing"]
        here, there = (f"mailboxes:[127.0.0.1]:{sink.address.port}" for sink in (mailboxes, wire))
        server = await stack.enter_async_context(
            postfix.running(
                smtp=smtp, fragments=(), ports={},
                settings={
                    "myhostname": "mail.alice.example",
                    "relay_domains": "alice.example",
                    "smtpd_milters": f"inet:{scanner.address}",
                    "transport_maps": f"inline:{{ alice.example={here}, bob.example={there} }}",
                },
            )
        )  # fmt: skip
        config = with_door(alice.config, KINDS[door], addresses)
        change = await planned_change(server.config, config, service=f"{smtp}/inet")
        assert [fault for fault in change.faults if fault.code != "unknown-recipients"] == []
        apply(change, tmp_path)
        await postfix.change(server.directory, "")
        assert await reloaded(server.config)
        assert await checked.faults(server.config, config) == list(change.faults)

        assert (await server.submit(VIRUS, sender="x@else.example", recipients=["ann@alice.example"])).code == 554
        assert (await server.submit(VIRUS)).code == 554, "what leaves is scanned before it is sealed"
        assert len(scanner.refused) == 2
        for message in (VIRUS, HARMLESS):
            reply = await submit(sealing, message, sender="ben@bob.example", recipients=["ann@alice.example"])
            assert reply.code == 250
        virus, harmless = await of_bob.messages(2)
        assert SIGNATURE not in virus.message
        reply = await server.submit(virus.message, sender="ben@bob.example", recipients=["ann@alice.example"])
        assert reply.code == (554 if door == "milter" else 250)
        async with asyncio.timeout(30):
            while len(scanner.refused) < 3:
                await asyncio.sleep(0.02)
        assert (
            await server.submit(harmless.message, sender="ben@bob.example", recipients=["ann@alice.example"])
        ).code == 250
        [got] = await mailboxes.messages(1)
        assert b"The vault opens at 06:30." in got.message
        assert any(b"The vault opens at 06:30." in each for each in scanner.seen), "it saw the opened mail"
        assert (await server.submit(HARMLESS)).code == 250
        async with asyncio.timeout(30):
            while not any(b"smime.p7m" in each.message and each.sender == "ann@alice.example" for each in wire.got):
                await asyncio.sleep(0.02)
        await server.empty()
        assert len(mailboxes.got) == 1
        assert not [each for each in (*wire.got, *mailboxes.got) if SIGNATURE in each.message]


async def test_a_content_filter_that_was_there_reads_what_leaves_and_what_was_opened(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    smtp, submission, sealed, opened, back = postfix.free_addresses(5)
    async with AsyncExitStack() as stack:
        mailboxes, wire, of_bob = [await stack.enter_async_context(Sink()) for _ in range(3)]
        scanner = await stack.enter_async_context(ScanningFilter(back))
        alice = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], policies=POLICIES,
            outgoing=sealed, incoming=opened, settings='lmtp = "127.0.0.1:0"',
        )  # fmt: skip
        bob = make_site(
            tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], outgoing=of_bob.address,
            incoming=of_bob.address, policies={"alice.example.toml": 'levels = ["aes"]\n'},
        )  # fmt: skip
        addresses = await stack.enter_async_context(serving(alice))
        sealing = (await stack.enter_async_context(serving(bob)))["outgoing"]
        here, there = (f"mailboxes:[127.0.0.1]:{sink.address.port}" for sink in (mailboxes, wire))
        server = await stack.enter_async_context(
            postfix.running(
                smtp=smtp, submission=submission, fragments=(), ports={},
                settings={
                    "myhostname": "mail.alice.example",
                    "relay_domains": "alice.example",
                    "content_filter": f"smtp-amavis:[127.0.0.1]:{scanner.address.port}",
                    "transport_maps": f"inline:{{ alice.example={here}, bob.example={there} }}",
                },
                changes=f"postconf -M 'smtp-amavis/unix=smtp-amavis unix - - n - 2 smtp' "
                f"'{back}/inet={back} inet n - n - - smtpd -o content_filter='",
            )
        )  # fmt: skip
        config = with_door(alice.config, "lmtp", addresses)
        apply(await planned_change(server.config, config, service=f"{smtp}/inet"), tmp_path)
        await postfix.change(server.directory, "")
        assert await reloaded(server.config)

        for message in (VIRUS, HARMLESS):
            assert (await submit(submission, message)).code == 250
            reply = await submit(sealing, message, sender="ben@bob.example", recipients=["ann@alice.example"])
            assert reply.code == 250
        for got in await of_bob.messages(2):
            reply = await server.submit(got.message, sender="ben@bob.example", recipients=["ann@alice.example"])
            assert reply.code == 250
        async with asyncio.timeout(30):
            while len(scanner.refused) < 2 or await server.queue():
                await asyncio.sleep(0.05)
        everything = [*wire.got, *mailboxes.got]
        assert not [each for each in everything if SIGNATURE in each.message]
        assert [each.sender for each in wire.got if b"smime.p7m" in each.message].count("ann@alice.example") == 1
        harmless = [each for each in mailboxes.got if each.sender == "ben@bob.example"]
        assert [b"The vault opens at 06:30." in each.message for each in harmless] == [True]
        assert len([each for each in scanner.got if b"The vault opens" in each.message]) == 2, "each once, and no loop"
