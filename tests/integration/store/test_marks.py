"""Mails that are under way, between workers that share a store: nobody is held by what is over.
Standard: a mail that no other worker has under way is begun.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relay.errors import DeliveryUnderWay
from relay.journey import deliveries
from relay.journey.deliveries import Deliveries
from relay.mail import Envelope, Mail, Recipient, name_as_it_came, recipient_name
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


async def test_when_tries_of_one_mail_are_over_other_workers_are_held_for_none_of_their_recipients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second try, for those alone who were held, comes while the first one's marks are still there."""
    monkeypatch.setattr(deliveries, "LINGER_S", 0.1)
    memory = shared_memory()
    mine, another = Neighbours(memory, 1), Neighbours(memory, 2)
    secret = SiteSecret.load_or_create(tmp_path / "site.secret")
    served, held = Recipient("ben@bob.example"), Recipient("bea@bob.example")
    mail = Mail(Envelope("ann@alice.example", (served, held)), b"Message-ID: <1@alice.example>\r\n\r\n")
    places = [recipient_name(name_as_it_came("outgoing", mail), each.mailbox) for each in (served, held)]
    async with await open_store(tmp_path / "relay.db", secret) as store:
        store.deliveries.share(mine, nothing)
        tries = Deliveries("outgoing", store.deliveries)
        for each in (mail, mail.to([held])):
            async with tries.of(each) as delivery:
                delivery.note_for_all(each.envelope.recipients, None)
            await asyncio.sleep(0.05)
        async with asyncio.timeout(10):
            while not begins(another, places):
                await asyncio.sleep(0.01)
    os.close(memory)


async def nothing() -> None:
    """No worker has ended."""


def begins(worker: Neighbours, places: list[bytes]) -> bool:
    try:
        worker.begin(places)
    except DeliveryUnderWay:
        return False
    return True
