"""A relay that is told to stop ends, whatever hangs in it, and says what that was.
Standard: a service manager need not kill it; nothing is lost, as with any kill.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site, relay_process

SOON = """
import asyncio, time
from relay.runtime import stopping
from relay.store.store import Store
stopping.LOG_WAITING_S, stopping.ENDS_S = 2.0, 6.0  # a busy machine has come to what hangs by then
"""
WAITS = """
async def hangs(self):
    await asyncio.Event().wait()
Store.close = hangs
"""
BLOCKS = """
async def hangs(self):
    time.sleep(600)
Store.close = hangs
"""
IN_A_THREAD = """
async def hangs(self):
    await asyncio.to_thread(time.sleep, 600)
Store.close = hangs
"""


@pytest.mark.parametrize(
    ("hangs", "said"),
    [
        (WAITS, ("relay_does_not_end", "hangs (<string>:", "Timeout (0:00:06)!")),
        (BLOCKS, ("Timeout (0:00:06)!", "in hangs\n")),
        (IN_A_THREAD, ("relay_does_not_end", "hangs (<string>:", "to_thread (threads.py:", "Timeout (0:00:06)!")),
    ],
)
async def test_a_relay_in_which_something_hangs_ends_as_failed_and_says_what(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, hangs: str, said: tuple[str, ...]
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with relay_process(site, before=SOON + hangs) as relay:
        relay.process.terminate()
        async with asyncio.timeout(30):
            assert await relay.process.wait() == 1
        for each in said:
            assert each in relay.log
