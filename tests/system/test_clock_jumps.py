"""A relay whose host's clock jumps by a day or years, by libfaketime: each jump is told, and nothing is deleted or lost.
Standard: deploy/THREATS.md says what a wrong clock costs meanwhile. Clocks of single mails: test_clocks.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.testlib import mails
from tests.testlib.alarms import standing
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, read_when_ready
from tests.testlib.submit import submit

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
JUMPS = {"+1d": "set on by 86400 s", "-1d": "set back by 86400 s", "-1y": "set back by 31536000 s", "+3y": "set on by"}
BEN, ANN, CLIENT = "ben@bob.example", "ann@alice.example", "client@clients.example"
PROGRAM = """
import sys
from relay.process import upkeep
from relay.status import alarms
from relay.__main__ import main
upkeep.SWEEP_S = alarms.LOOK_S = 0.2
sys.argv = ["qumail-relay", "serve", *sys.argv[1:]]
main()
"""


@pytest.fixture
async def wire() -> AsyncIterator[Sink]:
    async with Sink() as sink:
        yield sink


@asynccontextmanager
async def under(clock: Path, site: Site) -> AsyncIterator[dict[str, TCPAddress]]:
    """A relay whose clock is off by what the file says; what counts seconds alone goes on as ever."""
    ready, log = site.directory / "ready", site.directory / "relay.log"
    environment = {
        **os.environ, "LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, "--config", site.config_file, "--ready-file", ready,
            env=environment, stderr=file,
        )  # fmt: skip
    try:
        yield await read_when_ready(process, ready, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def set_by(clock: Path, by: str) -> None:
    """Sets it; the library gives up at a file that is empty for a moment."""
    (new := clock.with_suffix(".new")).write_text(f"{by}\n")
    new.rename(clock)


async def until_told(site: Site, *expected: tuple[str, str]) -> None:
    """Waits until these alarms stand, each with these words in its cause."""
    async with asyncio.timeout(60):
        while not all(
            any(each["alarm"] == name and words in each["cause"] for each in standing(site)) for name, words in expected
        ):
            await asyncio.sleep(0.1)


@pytest.mark.skipif(LIBRARY is None, reason="no faketime")
async def test_each_jump_is_told_and_nothing_is_deleted_or_lost(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, wire: Sink, identities: Identities
) -> None:
    alice, bob = (
        make_site(
            tmp_path / name, name, state=kmes.state_dir, kme_url=url, identities=identities, outgoing=wire.address,
            incoming=sink.address,
        )
        for name, url in zip(("alice", "bob"), kmes.urls, strict=True)
    )  # fmt: skip
    until = f'levels = ["plaintext"]\nuntil = {datetime.now(UTC):%Y-%m-%d}\n'
    bob.write_policies({"default.toml": 'levels = ["aes"]\n', "clients.example.toml": until})
    with bob.config_file.open("a") as file:
        file.write("\n[audit]\nkeep_days = 1\n")
    async with app.running(alice.config) as addresses:
        for _ in range(len(JUMPS) + 1):
            assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    sealed = [got.message for got in wire.got]
    clock = tmp_path / "clock"
    set_by(clock, "+0")
    async with under(clock, bob) as relay:
        assert (await submit(relay["incoming"], sealed[0])).code == 250
        for message, (jump, told) in zip(sealed[1:], JUMPS.items(), strict=True):
            set_by(clock, jump)
            await until_told(bob, ("clock_jumped", told), ("clock_differs", "KME kme"))
            assert (await submit(relay["incoming"], message)).code == 250
            in_clear = await submit(relay["outgoing"], mails.plain(), sender=BEN, recipients=[CLIENT])
            assert in_clear.code == (250 if jump.startswith("-") else 550), "its permission ends at midnight"
        await until_told(bob, ("certificate_ended", "certificate of site"), ("certificate_ended", "of peer alice"))
        set_by(clock, "+0")
        async with asyncio.timeout(60):
            while {"clock_jumped", "clock_differs"} & {each["alarm"] for each in standing(bob)}:
                await asyncio.sleep(0.1)
        assert (await submit(relay["outgoing"], mails.plain(), sender=BEN, recipients=[ANN])).code == 250
    _, _, listed = await run("quarantine", "list", "--json", "--config", bob.config_file)
    assert [each["reason"] for each in json.loads(listed)] == ["outside-window"] * 3
    assert (await run("quarantine", "release", "--all", "--config", bob.config_file))[0] == 0
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True] * len(sealed)
    status, _, said = await run("audit", "verify", "--config", bob.config_file)
    assert (status, b", whole; " in said, b": 1 records" in said) == (0, True, False)
    numbers = [path.name.partition("-")[0] for path in sorted((bob.config.audit_directory).glob("0*"))]
    assert int(numbers[0]) == 1, "the oldest file has not been removed"
