"""A relay that starts: it listens before anything else, and serves when all of it is there.
Standard: a client that connects in between waits, or tries again; nobody is refused, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from relay.config import TCPAddress
from relay.entry.listening import GRACE_S, address_of, all_bound
from relay.errors import StoreUnavailable
from relay.forward import GOODBYE_S
from relay.key_receiver import receiver
from relay.keys import fetch
from relay.kme import DevelopmentKMEs
from relay.process import app, assembly
from relay.store.store import BUSY_TIMEOUT_S, Store, open_store
from tests.integration.entry.milter.mta import MTA, in_thread
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit

UNIT = Path(__file__).parents[3] / "deploy" / "qumail-relay.service"


@dataclass
class Start:
    """A start that goes no further than to its store until `go_on` is set, and then fails if `fault` is."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    at_store: asyncio.Event = field(default_factory=asyncio.Event)
    fault: Exception | None = None
    address: TCPAddress | None = None

    async def open_store(self, *arguments: Any, **options: Any) -> Store:
        self.at_store.set()
        await self.go_on.wait()
        if self.fault:
            raise self.fault
        return await open_store(*arguments, **options)

    async def all_bound(self, wanted: Any, passed: Sequence[int]) -> dict[str, Sequence[socket.socket]]:
        sockets = dict(await all_bound(wanted, passed))
        self.address = address_of(sockets["outgoing.listen"])
        return sockets


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    made = Start()
    monkeypatch.setattr(assembly, "open_store", made.open_store)
    monkeypatch.setattr(app, "all_bound", made.all_bound)
    return made


@pytest.fixture
def site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    settings = f'milter = "unix:{tmp_path}/milter.sock"'
    return make_site(
        tmp_path / "alice",
        "alice",
        state=kmes.state_dir,
        kme_url=kmes.urls[0],
        outgoing=sink.address,
        settings=settings,
    )


@asynccontextmanager
async def running(site: Site, over: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    async def serve() -> None:
        async with app.running(site.config):
            await over.wait()

    task = asyncio.create_task(serve())
    try:
        yield task
    finally:
        over.set()
        await asyncio.gather(task, return_exceptions=True)


async def test_who_connects_before_the_relay_is_ready_waits_and_is_served(
    site: Site, kmes: DevelopmentKMEs, sink: Sink, start: Start, tmp_path: Path
) -> None:
    async with running(site, asyncio.Event()):
        await start.at_store.wait()
        assert start.address is not None
        submitted = asyncio.create_task(submit(start.address, mails.plain(), recipients=["ben@bob.example"]))
        negotiated = asyncio.create_task(in_thread(lambda: MTA(tmp_path / "milter.sock").negotiate()))
        with socket.create_connection(start.address) as waiting:
            waiting.setblocking(False)
            with pytest.raises(BlockingIOError):
                waiting.recv(100)
        assert kmes.link.issued.total() == 0
        start.go_on.set()
        assert (await submitted).code == 250
        assert await negotiated
        MTA.close_all()
    assert len(sink.got) == 1


async def test_who_waits_at_a_relay_that_does_not_start_hears_nothing_and_its_port_is_free_again(
    site: Site, kmes: DevelopmentKMEs, start: Start
) -> None:
    start.fault = StoreUnavailable("no disk")
    async with running(site, asyncio.Event()) as task:
        await start.at_store.wait()
        assert start.address is not None
        reader, writer = await asyncio.open_connection(*start.address)
        start.go_on.set()
        with pytest.raises(StoreUnavailable):
            await task
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)
        writer.close()
        socket.create_server(start.address).close()
    assert kmes.link.issued.total() == 0


def test_systemd_lets_a_relay_end_that_stops_with_mail_in_flight_a_locked_store_and_kmes_that_hang() -> None:
    kmes = fetch.CLOSING_GRACE_S + receiver.CLOSING_S
    rates, not_kept_yet, take_over, under_way, last_words = [BUSY_TIMEOUT_S] * 5
    longest = GRACE_S + GOODBYE_S + kmes + rates + not_kept_yet + take_over + under_way + last_words
    [allowed] = re.findall(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert longest < int(allowed) - 5
