"""A disk that is full and a database that is locked hold mail at the SMTP boundary; when it has passed, all arrives.
Standard: RFC 3463 4.3.1; nothing is lost, sent twice or sent in clear meanwhile.
"""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.integration.entry.smtp.test_lmtp import POLICIES, with_lmtp
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import SOON_LOCKED_OUT, RelayProcess, Site, make_site, relay_process, serving
from tests.testlib.submit import submit, submit_lmtp

BOTH = ["ben@bob.example", "press@open.example"]
BUSY = "bea@bob.example"


@pytest.fixture
async def sealed(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> bytes:
    """A mail that Alice has sealed for Bob."""
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address)
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    return wire.got.pop().message


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> Site:
    return with_lmtp(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
            policies=POLICIES,
        )
    )  # fmt: skip


@pytest.fixture
def bob(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return make_site(tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)


@pytest.fixture
async def bobs_relay(bob: Site) -> AsyncIterator[RelayProcess]:
    async with relay_process(bob, before=SOON_LOCKED_OUT) as relay:
        yield relay


@contextmanager
def full_disk(relay: RelayProcess) -> Iterator[None]:
    """No file of this relay can grow, its log neither."""
    before = resource.prlimit(relay.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(relay.process.pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(relay.process.pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def locked(site: Site) -> Iterator[None]:
    """Another process keeps the write lock of the database."""
    other = sqlite3.connect(site.directory / "relay.db", isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")
    finally:
        other.close()


@pytest.mark.in_process
async def test_a_key_that_cannot_be_stored_holds_the_mail_which_is_opened_when_there_is_room_again(
    bobs_relay: RelayProcess, sealed: bytes, sink: Sink
) -> None:
    address = bobs_relay.addresses["incoming"]
    with full_disk(bobs_relay):
        for _ in range(2):
            assert str(await submit(address, sealed)).startswith("451 4.3.1")
    assert not sink.got
    assert (await submit(address, sealed)).code == 250
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]


async def test_a_locked_database_holds_the_mail_likewise(
    bobs_relay: RelayProcess, bob: Site, sealed: bytes, sink: Sink
) -> None:
    address = bobs_relay.addresses["incoming"]
    with locked(bob):
        assert str(await submit(address, sealed)).startswith("451 4.3.1")
    assert not sink.got
    assert (await submit(address, sealed)).code == 250
    assert len(sink.got) == 1


@pytest.mark.parametrize("trouble", ["full", "locked"])
async def test_what_goes_out_is_answered_by_what_the_next_hop_says_and_never_in_clear(
    alice: Site, wire: Sink, trouble: str
) -> None:
    """The mail in clear would have to be written into the ledger first, so it waits; the sealed one need not."""
    async with relay_process(alice, before=SOON_LOCKED_OUT) as relay:
        with full_disk(relay) if trouble == "full" else locked(alice):
            replies = await submit_lmtp(relay.addresses["outgoing_lmtp"], mails.plain(), recipients=BOTH)
        assert replies[0].code in (250, 451)
        first = [reply.code == 250 for reply in replies]
        assert sorted(got.recipients[0] for got in wire.got) == [
            recipient for recipient, accepted in zip(BOTH, first, strict=True) if accepted
        ]
        waiting = [recipient for recipient, accepted in zip(BOTH, first, strict=True) if not accepted]
        # A KME whose keys could not be remembered is asked again only after a moment.
        async with asyncio.timeout(60):
            while waiting:
                replies = await submit_lmtp(relay.addresses["outgoing_lmtp"], mails.plain(), recipients=waiting)
                assert {reply.code for reply in replies} <= {250, 451}
                waiting = [each for each, reply in zip(waiting, replies, strict=True) if reply.code == 451]
    assert sorted(got.recipients[0] for got in wire.got) == BOTH
    assert [b"figures" in got.message for got in sorted(wire.got, key=lambda got: got.recipients)] == [False, True]


async def test_a_journal_that_cannot_be_written_costs_no_mail(alice: Site, wire: Sink) -> None:
    async with relay_process(alice) as relay:
        address = relay.addresses["outgoing_lmtp"]
        [reply] = await submit_lmtp(address, mails.eight_bit(), recipients=BOTH[:1])  # from here on there are keys
        assert reply.code == 250
        wire.on_data = ["451 4.2.0 busy"]
        with full_disk(relay):
            [reply] = await submit_lmtp(address, mails.plain(), recipients=BOTH[:1])
            assert reply.code == 451
        # A KME whose keys could not be remembered is asked again only after a moment.
        async with asyncio.timeout(60):
            while (await submit_lmtp(address, mails.plain(), recipients=BOTH[:1]))[0].code == 451:
                pass
    assert [got.recipients for got in wire.got] == [("ben@bob.example",)] * 2


@pytest.mark.in_process
async def test_a_mail_for_several_with_one_answer_is_held_whole_while_it_cannot_be_written_who_gets_it(
    alice: Site, wire: Sink
) -> None:
    """Else the others would get it with each retry for the one who has to wait."""
    recipients = [*BOTH, BUSY]
    async with relay_process(alice) as relay:
        address = relay.addresses["outgoing"]
        assert (await submit(address, mails.plain(), recipients=BOTH[:1])).code == 250  # so there are keys at hand
        wire.got.clear()
        wire.on_rcpt = {BUSY: "451 4.2.0 busy"}
        with full_disk(relay):
            for _ in range(3):
                assert str(await submit(address, mails.plain(), recipients=recipients)).startswith("451 4.3.1")
        assert not wire.got
        wire.on_rcpt = {}
        assert (await submit(address, mails.plain(), recipients=recipients)).code == 250
    assert Counter(each for got in wire.got for each in got.recipients) == dict.fromkeys(recipients, 1)


@pytest.mark.in_process
async def test_a_disk_that_fills_up_between_two_forms_keeps_the_second_back_and_repeats_nothing(
    alice: Site, wire: Sink
) -> None:
    wire.gate = asyncio.Event()
    async with relay_process(alice) as relay:
        address = relay.addresses["outgoing"]
        sending = asyncio.create_task(submit(address, mails.plain(), recipients=BOTH))
        await wire.reached.wait()
        with full_disk(relay):
            wire.gate.set()
            assert (await sending).code == 451
            assert (await submit(address, mails.plain(), recipients=BOTH)).code == 451
            assert len(wire.got) == 1
        async with asyncio.timeout(60):
            while (await submit(address, mails.plain(), recipients=BOTH)).code == 451:
                pass
    assert Counter(each for got in wire.got for each in got.recipients) == dict.fromkeys(BOTH, 1)
