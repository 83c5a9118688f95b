"""What goes wrong in a crash test: processes killed and frozen, wires cut and stalled, the store locked, mailboxes busy.
Standard: which fault comes when is chosen by the seed; each is undone after a while, and all are at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.testlib.databases import PostgreSQLServer
from tests.testlib.mail_site import MailSite
from tests.testlib.relay_command import workers_of
from tests.testlib.wire import Wire

REPLACED_S = 20.0
"""How long a worker's place is watched, in seconds."""
Fault = Callable[[MailSite, random.Random], Awaitable[None]]


async def relay_killed(site: MailSite, chance: random.Random) -> None:
    """SIGKILL, and a new process after a while."""
    which = chance.randrange(len(site.relays))
    await site.kill_relay(which)
    await asyncio.sleep(chance.uniform(0, 1))
    await site.restart_relay(which)


async def relay_frozen(site: MailSite, chance: random.Random) -> None:
    """SIGSTOP, sometimes for longer than its neighbours wait."""
    relay = chance.choice(site.relays)
    relay.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(chance.choice((0.3, 1, 6)))
    relay.process.send_signal(signal.SIGCONT)


async def relay_stopped(site: MailSite, chance: random.Random) -> None:
    """SIGTERM: what is in flight is to be finished."""
    which = chance.randrange(len(site.relays))
    site.relays[which].process.terminate()
    await site.relays[which].process.wait()
    await site.restart_relay(which)


async def worker_killed(site: MailSite, chance: random.Random) -> None:
    """One of several processes that serve as one relay; over when another one has taken its place by itself."""
    relay = chance.choice(site.relays).process.pid
    if before := workers_of(relay):
        killed = chance.choice(before)
        with suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
        await _until(lambda: killed not in (now := workers_of(relay)) and len(now) >= len(before))


async def worker_frozen(site: MailSite, chance: random.Random) -> None:
    """One of them, while the others go on."""
    if found := workers_of(chance.choice(site.relays).process.pid):
        frozen = chance.choice(found)
        with suppress(ProcessLookupError):
            os.kill(frozen, signal.SIGSTOP)
            await asyncio.sleep(chance.choice((0.3, 1, 6)))
            os.kill(frozen, signal.SIGCONT)


async def workers_started_anew(site: MailSite, chance: random.Random) -> None:
    """Each in turn, while the others serve; over when none of those before is there any more."""
    relay = chance.choice(site.relays).process
    before = set(workers_of(relay.pid))
    relay.send_signal(signal.SIGUSR1)
    await _until(lambda: before.isdisjoint(now := workers_of(relay.pid)) and len(now) >= len(before))


async def _until(happened: Callable[[], bool]) -> None:
    """Returns when it has, or has not for long: a worker that cannot start is tried again while mail goes on."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REPLACED_S):
            while not happened():
                await asyncio.sleep(0.05)


async def mail_server_killed(site: MailSite, chance: random.Random) -> None:
    """All of Postfix at once, in the middle of whatever it does, and a new one."""
    async with site.postfix_works:
        await site.postfix.abort()
        await asyncio.sleep(chance.uniform(0, 0.5))
        for command in ("start", "status") * 3:  # on a busy machine it gives up before its master has begun
            with suppress(AssertionError):
                await site.postfix.command("postfix", command)
                return
        await site.postfix.command("postfix", "start")


async def store_locked(site: MailSite, chance: random.Random) -> None:
    """Somebody else writes the database for so long that the relay waits, or gives up."""
    await asyncio.to_thread(_hold, site.site.directory / "relay.db", chance.choice((0.5, 7)))


def _hold(database: Path, seconds: float) -> None:
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")


def restarted(server: PostgreSQLServer) -> Fault:
    """The database server falls over, for both sites, and is back after a while."""

    async def database_restarted(site: MailSite, chance: random.Random) -> None:
        async with _restarting:
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(chance.uniform(0, 2))
            await asyncio.to_thread(server.start)

    return database_restarted


_restarting = asyncio.Lock()


async def mailboxes_busy(site: MailSite, chance: random.Random) -> None:
    """The last server of all has no time for the next mails."""
    site.mailboxes.on_data += ["451 4.3.2 busy"] * chance.randint(1, 5)


def cut(name: str) -> Fault:
    """A connection breaks, and cannot be made for a while."""

    async def fault(site: MailSite, chance: random.Random) -> None:
        wire: Wire = getattr(site, name)
        await wire.cut()
        await asyncio.sleep(chance.uniform(0, 1.5))
        await wire.mend()

    fault.__name__ = f"{name}_cut"
    return fault


def stalled(name: str) -> Fault:
    """Each connection stops after some octets and then stays as it is, for a while."""

    async def fault(site: MailSite, chance: random.Random) -> None:
        wire: Wire = getattr(site, name)
        wire.stop_after(int(10 ** chance.uniform(1, 6)))
        await asyncio.sleep(chance.uniform(0.5, 7))
        await wire.mend()

    fault.__name__ = f"{name}_stalled"
    return fault


_PROCESSES: dict[Fault, int] = {
    relay_killed: 6,
    relay_frozen: 3,
    relay_stopped: 2,
    mail_server_killed: 2,
}
_WIRES = {"alice": ("sealed", "kme"), "bob": ("inbound", "opened", "kme")}
GENTLE = ("frozen", "stopped", "locked", "database", "busy", "kme")
"""Words of those faults that no answer gets lost by: with these alone, nothing may arrive twice."""


def faults(name: str, postgresql: PostgreSQLServer | None, workers: int = 1) -> dict[Fault, int]:
    """Those that Alice's mail to Bob can meet at a site, with how often each is chosen against the others."""
    wires = _WIRES[name]
    return (
        (_PROCESSES if workers == 1 else _PROCESSES | {worker_killed: 6, worker_frozen: 3, workers_started_anew: 1})
        | {store_locked if postgresql is None else restarted(postgresql): 2}
        | {cut(wire): 2 for wire in wires}
        | {stalled(wire): 1 for wire in wires}
        | ({mailboxes_busy: 2} if name == "bob" else {})
    )


@dataclass
class Chaos:
    """Faults at one site, one after the other, until told to stop; `happened` counts them by name.

    `times` has each with its beginning and end, in seconds of time.monotonic().

    With `only`, they are those whose names have one of these words.
    """

    site: MailSite
    seed: int
    pause: float
    only: Sequence[str]
    faults: Mapping[Fault, int]
    happened: Counter[str] = field(default_factory=Counter)
    times: list[tuple[str, float, float]] = field(default_factory=list)
    over: bool = False

    async def run(self) -> None:
        """Until `stop` was called and the fault that was under way is over."""
        faults = {
            fault: weight
            for fault, weight in self.faults.items()
            if not self.only or any(word in fault.__name__ for word in self.only)
        }
        chance = random.Random(f"{self.site.name}/{self.seed}")
        while not self.over:
            await asyncio.sleep(chance.expovariate(1 / self.pause))
            [fault] = chance.choices(list(faults), list(faults.values()))
            self.happened[f"{self.site.name}.{fault.__name__}"] += 1
            began = time.monotonic()
            await fault(self.site, chance)
            self.times.append((fault.__name__, began, time.monotonic()))

    def stop(self) -> None:
        """The fault that is under way is the last."""
        self.over = True
