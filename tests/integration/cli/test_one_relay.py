"""One embedded database, one relay that serves: a second one would deliver what the first one has in hand.
Standard: flock(2): the kernel ends a lock with the process that has it, so a killed relay stands in nobody's way.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.integration.test_key_receiver import key_receiver, runs
from tests.testlib import mails, relay_command
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, make_site, relay_process
from tests.testlib.submit import submit

SHORT_WAIT = """
from relay.store import sqlite
sqlite.WAIT_S = 0.5
"""


MOST = 256
READY = MOST // 32
"""How many keys a relay draws when it begins to serve."""


@pytest.fixture
def alice(tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        kme_settings=f"cache_high = {MOST}\none_batch_at_a_time = false\n",
    )  # fmt: skip


async def sent(relay: RelayProcess) -> int:
    return (await submit(relay.addresses["outgoing"], mails.plain(), recipients=["ben@bob.example"])).code


async def refused(config: Path, database: Path, by: RelayProcess) -> None:
    """A second relay gives up, and says why."""
    with tempfile.TemporaryFile() as said:
        second = await relay_command.start("serve", "--config", config, stderr=said, before=SHORT_WAIT)
        try:
            async with asyncio.timeout(20):
                assert await second.wait() == 1
        finally:
            second.kill()
        said.seek(0)
        last = said.read().decode().splitlines()[-1]
    assert last.startswith(f"{database}: another relay (process {by.process.pid}) serves from this database"), last


@pytest.mark.promise("Two relays do not serve from one embedded database")
async def test_a_second_relay_at_a_database_ends_before_it_draws_a_key_and_commands_go_on_beside_the_first(
    alice: Site, kmes: DevelopmentKMEs, tmp_path: Path
) -> None:
    async with relay_process(alice) as relay:
        assert await sent(relay) == 250
        async with asyncio.timeout(30):
            while (before := kmes.link.issued.total()) < READY:
                await asyncio.sleep(0.05)
        database = alice.directory / "relay.db"
        for lock in alice.directory.glob("*.lock"):  # tidying up there must not let a second one in
            lock.unlink()
        await refused(alice.config_file, database, relay)
        for way in ("symlink_to", "hardlink_to"):
            other = tmp_path / way
            shutil.copytree(alice.directory, other)
            (other / "relay.db").unlink()
            getattr(other / "relay.db", way)(database)
            at = database if way == "symlink_to" else other / "relay.db"
            await refused(other / "relay.toml", at, relay)
        for command in ("reseal", "status"):
            status, said, _ = await relay_command.run("keys", command, "--config", alice.config_file)
            assert (status, said) == (0, "")
        assert await sent(relay) == 250
    assert kmes.link.issued.total() < before + READY


async def test_a_killed_relay_stands_in_nobodys_way_though_its_second_process_lives_on(alice: Site) -> None:
    async with relay_process(alice) as relay:
        receiver = key_receiver(relay)
        os.kill(receiver, signal.SIGSTOP)
        try:
            relay.kill()
            await relay.process.wait()
            async with relay_process(alice, before=SHORT_WAIT) as again:
                assert runs(receiver)
                assert await sent(again) == 250
                assert "relay_waits" not in again.log
        finally:
            os.kill(receiver, signal.SIGCONT)


@pytest.mark.promise("Two relays do not serve from one embedded database")
async def test_a_relay_that_starts_while_another_one_ends_waits_for_it(alice: Site, wire: Sink) -> None:
    wire.gate = asyncio.Event()
    async with relay_process(alice) as relay:
        sending = asyncio.create_task(sent(relay))
        await wire.reached.wait()
        relay.process.terminate()
        starting = relay_process(alice)
        start = asyncio.create_task(starting.__aenter__())
        async with asyncio.timeout(20):
            while "relay_waits" not in relay.log:
                await asyncio.sleep(0.02)
        wire.gate.set()
        assert await sending == 250
        again = await start
        try:
            assert await sent(again) == 250
        finally:
            await starting.__aexit__(None, None, None)
    assert len(wire.got) == 2
