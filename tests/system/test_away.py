"""A KME that is away for a day: mail is held or takes its next level, little is said and asked, and it ends by itself.
Standard: the day is a driven clock's; KMEs, relays and connections are real.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import pytest
from structlog.testing import LogCapture

from relay.config import TCPAddress
from relay.keys.build import key_ring
from relay.keys.types import Timing
from relay.kme import DevelopmentKMEs
from relay.process import app, assembly, upkeep
from tests.testlib import mails
from tests.testlib.identities import Identities
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit, until_settled
from tests.testlib.wire import Wire

_T = TypeVar("_T")

DAY_S, STEP_S = 86_400.0, 300.0
BEN, SAFE = "ben@bob.example", "safe@bob.example"
LIFETIME_S = 5400.0
"""Longer than keys stay in a pool."""
POLICIES = {
    "default.toml": 'levels = ["aes"]\n',
    "bob.example/safe.toml": 'levels = ["otp", "pqc+aes", "pqc"]\n',
}


@dataclass
class DrivenTime:
    """A clock that moves when a test says so; sleepers wake as it passes."""

    now: float = 1000.0
    _sleepers: list[tuple[float, int, asyncio.Event]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    async def sleep(self, seconds: float) -> None:
        due = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), due))
        await due.wait()

    async def pass_by(self, seconds: float, step: float = 0.0) -> None:
        """Connections are real: at each step what has woken gets some real moments. Long times go by in long steps."""
        step = step or min(STEP_S, max(5.0, seconds / 60))
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            while self._sleepers and self._sleepers[0][0] <= self.now:
                heapq.heappop(self._sleepers)[2].set()
            await asyncio.sleep(0.002)
            while not self._quiet:
                await asyncio.sleep(0.002)

    @property
    def _quiet(self) -> bool:
        """Whether all who maintain and draw keys sleep until a later time, rather than wait for a connection."""
        names = [task.get_name() for task in asyncio.all_tasks()]
        return len(self._sleepers) >= names.count("maintain keys") + names.count("draw keys")

    async def during(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What this gives, while time passes."""
        doing = asyncio.create_task(work)
        while not doing.done():
            await self.pass_by(0.5, 0.1)
        return doing.result()

    @property
    def timing(self) -> Timing:
        return Timing(lambda: self.now, self.sleep, lambda: 1.0)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> DrivenTime:
    """The time of keys, for relays in this process."""
    driven = DrivenTime()
    monkeypatch.setattr(assembly, "key_ring", partial(key_ring, timing=driven.timing))
    monkeypatch.setattr(upkeep, "WRITE_DOWN_S", 0.02)
    return driven


@pytest.fixture
async def to_kmes(kmes: DevelopmentKMEs) -> AsyncIterator[Sequence[Wire]]:
    """Between each relay and its KME."""
    ports = [urlsplit(url).port or 443 for url in kmes.urls]
    async with Wire(TCPAddress("127.0.0.1", ports[0])) as first, Wire(TCPAddress("127.0.0.1", ports[1])) as second:
        yield first, second


def rows(site: Site, table: str) -> int:
    """How many there are in a table of its store."""
    with closing(sqlite3.connect(site.directory / "relay.db")) as database:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


@pytest.mark.promise("A KME that is away holds mail")
async def test_a_kme_that_is_away_for_a_day_holds_mail_until_it_is_back_and_costs_nothing_else(
    tmp_path: Path, kmes: DevelopmentKMEs, to_kmes: Sequence[Wire], identities: Identities, wire: Sink, sink: Sink,
    time: DrivenTime, log: LogCapture,
) -> None:  # fmt: skip
    alice, bob = (
        make_site(
            tmp_path / name, name, state=kmes.state_dir, kme_url=f"https://{to_kmes[at].address}", policies=POLICIES,
            outgoing=wire.address, incoming=sink.address, identities=identities,
        )
        for at, name in enumerate(("alice", "bob"))
    )  # fmt: skip
    async with app.running(alice.config) as sealing, app.running(bob.config) as opening:

        async def codes(*recipients: str) -> list[int]:
            """The replies to Alice's mail to these, and to the one that has come to Bob, sealed."""
            tries = [submit(sealing["outgoing"], mails.plain(), recipients=[each]) for each in recipients]
            tries.append(until_settled(opening["incoming"], sealed))
            return [(await time.during(each)).code for each in tries]

        await time.pass_by(60)
        assert (await time.during(submit(sealing["outgoing"], mails.plain()))).code == 250
        sealed = wire.got[0].message
        for each in to_kmes:
            await each.cut()
        await time.pass_by(LIFETIME_S)
        log.entries.clear()
        tasks = len(asyncio.all_tasks())
        for _ in range(4):
            assert await codes(BEN, SAFE) == [451, 250, 451]
            await time.pass_by(DAY_S / 4)
        assert len(asyncio.all_tasks()) <= tasks + 20
        said = Counter(each["event"] for each in log.entries if each["log_level"] != "debug")
        assert sum(number for event, number in said.items() if event.startswith("ke")) < 4 * 24 * 3, said
        assert rows(alice, "deliveries") == rows(bob, "waiting_for_keys") == rows(bob, "quarantine") == 0
        status, _, out = await run("keys", "status", "--json", "--config", alice.config_file)
        [pool] = json.loads(out)["pools"]
        assert (status, pool["pool_keys"], "Cannot connect" in pool["trouble"]) == (1, 0, True)
        status, _, out = await run("check", "--config", alice.config_file)
        assert (status, b"Cannot connect" in out) == (1, True)
        for each in to_kmes:
            await each.mend()
        for _ in range(40):  # a breaker opens for two minutes at most
            await time.pass_by(5)
            if (found := await codes(BEN)) == [250, 250]:
                break
        assert found == [250, 250]
        for _ in range(6):
            await time.pass_by(5)
            [pool] = json.loads((alice.directory / "keys.json").read_text())["pools"]
        assert (pool["pool_keys"] > 0, pool["trouble"]) == (True, ""), "a call that is well lets all others try"
    assert [got.message.endswith(mails.plain()) for got in sink.got] == [True]
