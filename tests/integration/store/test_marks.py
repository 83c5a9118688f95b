"""Mails that are under way, between workers that share a store: nobody is held because two look at the same moment.
Standard: a mail that no other worker has under way is begun.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from relay.store.neighbours import Neighbours, shared_memory
from relay.store.secret import SiteSecret
from relay.store.store import open_store

MAIL, OTHER = bytes(32), bytes(range(32))

LOCKS_ALL = """
import fcntl, sys
fcntl.lockf({memory}, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


async def test_while_another_worker_looks_at_marks_of_one_that_has_ended_a_mail_waits(tmp_path: Path) -> None:
    memory = shared_memory()
    dead, mine = Neighbours(memory, 1), Neighbours(memory, 2)
    dead.lives(1)
    dead.begin([OTHER])
    dead.has_ended(1)
    secret = SiteSecret.load_or_create(tmp_path / "site.secret")
    looked = asyncio.Event()

    async def take_over() -> None:
        looked.set()

    code = LOCKS_ALL.format(memory=memory)
    with subprocess.Popen([sys.executable, "-c", code], pass_fds=[memory], stdin=-1, stdout=-1) as another:
        assert another.stdout is not None
        assert another.stdin is not None
        another.stdout.readline()
        async with await open_store(tmp_path / "relay.db", secret) as store:
            store.deliveries.share(mine, take_over)
            marking = asyncio.create_task(store.deliveries.mark(MAIL, ["ben@bob.example"]))
            await looked.wait()
            another.stdin.close()
            await marking
    assert not mine.ended()
    os.close(memory)
