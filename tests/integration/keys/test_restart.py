"""How many keys a restart costs: those that were drawn ahead of need and are not used, which are never on a disk.
Standard: deploy/KEYS.md, which has these numbers; counted at the KME, which knows what it gave.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.databases import Backend
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, relay_process
from tests.testlib.submit import submit

QUIET, USED = 8, 60
"""One small batch, and what ten seconds of the use here need at most."""
TRIAL = 4
"""Two keys, which are counted for each of the two SAEs that may fetch them."""


@pytest.mark.parametrize(
    ("workers", "backend"), [(1, "sqlite"), (2, "sqlite"), (1, "postgresql")], indirect=["backend"]
)
async def test_a_restart_loses_what_is_ready_and_no_more(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, workers: int, backend: Backend
) -> None:
    """The first one draws nothing before it is used, and two more then to try the KME; what came of that is remembered."""
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    text = site.config_file.read_text().replace('"relay.db"', f'"{backend.where}"')
    site.config_file.write_text(f"{text}\n[limits]\nworkers = {workers}\n")

    async def lost(end: int, mails: int, ready: int) -> int:
        """How many keys were drawn and not used in the life of a relay that is ended once so many are `ready`."""
        before = kmes.link.issued["KM1"]
        async with relay_process(site) as relay:
            for number in range(mails):
                assert (await submit(relay.addresses["outgoing"], numbered(number, before))).code == 250
            async with asyncio.timeout(60):
                while kmes.link.issued["KM1"] < before + mails + ready:
                    await asyncio.sleep(0.01)
            relay.process.send_signal(end)
            await relay.process.wait()
        return kmes.link.issued["KM1"] - before - mails

    assert await lost(signal.SIGTERM, 0, 0) == 0
    assert TRIAL <= await lost(signal.SIGTERM, 1, TRIAL) <= QUIET + TRIAL
    for end in (signal.SIGTERM, signal.SIGKILL):
        assert await lost(end, 0, QUIET) == QUIET
        assert QUIET - 1 <= await lost(end, 12, QUIET - 1) <= USED


def numbered(number: int, worker_id: int) -> bytes:
    return mails.plain().replace(b"<1@alice.example>", b"<%d.%d@alice.example>" % (number, worker_id))
