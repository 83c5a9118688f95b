"""Crashes, full disks, locked databases, lost servers.
Standard: what was said to be stored is there afterwards; all trouble is StoreUnavailable, and passes.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from relay.errors import StoreUnavailable
from relay.store.database import Database
from relay.store.secret import SiteSecret
from relay.store.store import Store, open_store
from tests.integration.store.test_spool import no_room
from tests.testlib.databases import Backend, PostgreSQLServer, python
from tests.testlib.received import held, mark_used, state

KEY = bytes(range(32))

OPEN = """
import asyncio, resource, sys
from pathlib import Path
from typing import Any
from relay.errors import StoreUnavailable
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.testlib.received import mark_used

async def opened():
    return await open_store(sys.argv[1], SiteSecret.load(Path(sys.argv[2])))
"""

PUT_FOR_EVER = (
    OPEN
    + """
async def main():
    store = await opened()
    async def put(who):
        for number in range(1_000_000):
            await store.received.put("g", "alice", {f"{who}-{number}": b"%d" % number})
            print(f"{who}-{number}", flush=True)
    await asyncio.gather(*map(put, "abc"))
asyncio.run(main())
"""
)

PUT_AND_MARK = (
    OPEN
    + """
async def main():
    who = sys.argv[3]
    async with await opened() as store:
        for number in range(50):
            own, shared = f"{who}-{number}", f"shared-{number}"
            await store.received.put("g", "alice", {own: who.encode(), shared: b"x"})
            await mark_used(store, "g", "alice", [shared], 900)
asyncio.run(main())
"""
)

FILL_THE_DISK = (
    OPEN
    + """
async def main():
    async with await opened() as store:
        await store.received.put("g", "alice", {"before": b"key"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
        number = 0
        try:
            while True:
                await store.received.put("g", "alice", {f"k{number}": bytes(1000)})
                number += 1
        except StoreUnavailable as error:
            print(error, flush=True)
        keys = [f"k{n}" for n in range(number)]
        assert len((await store.received.look("g", "alice", keys))[0]) == number > 0
        assert await store.received.look("g", "alice", [f"k{number}"]) == ({}, frozenset())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await store.received.put("g", "alice", {"after": b"key"})
        assert len((await store.received.look("g", "alice", ["before", "after"]))[0]) == 2
    print("passed")
asyncio.run(main())
"""
)


async def test_what_was_stored_survives_a_kill(backend: Backend, secret_path: Path) -> None:
    """Killed while three tasks are putting keys: each key that was reported stored is found."""
    with python(PUT_FOR_EVER, backend.where, str(secret_path)) as child:
        assert child.stdout is not None
        reported = [child.stdout.readline().strip() for _ in range(100)]
        child.send_signal(signal.SIGKILL)
        reported += [line.strip() for line in child.stdout if line.endswith("\n")]
    assert child.returncode == -signal.SIGKILL
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        found = await held(store, "g", "alice", reported)
        assert found == {key_ID: key_ID.split("-")[1].encode() for key_ID in reported}
        await store.received.put("g", "alice", {"after": KEY})


async def test_processes_that_write_at_once_lose_nothing(backend: Backend, secret_path: Path) -> None:
    with ExitStack() as stack:
        writers = [python(PUT_AND_MARK, backend.where, str(secret_path), who) for who in "abc"]
        for child in [stack.enter_context(writer) for writer in writers]:
            assert child.wait(timeout=60) == 0
    async with await open_store(backend.where, SiteSecret.load(secret_path)) as store:
        [counts] = (await store.received.counts()).values()
        assert (counts.held, counts.used) == (200, 50)
        for who in "abc":
            keys = [f"{who}-{number}" for number in range(50)]
            assert await held(store, "g", "alice", keys) == dict.fromkeys(keys, who.encode())


async def test_a_store_that_is_locked_when_it_is_closed_is_waited_for_once(
    backend: Backend, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stopping relay has seconds; what could not be written is known beside the store (relay/store/sent.py)."""
    tries = []
    store = await open_store(backend.where, secret, busy_timeout=0.2)
    begun = await store.deliveries.begin("outgoing", bytes(32), ["ben@bob.example"], intent=True)
    writing = Database.writing

    async def counted(self: Database, work: Callable[[Connection], Any]) -> Any:
        tries.append(self)
        return await writing(self, work)

    async with backend.connection() as connection:
        lock = backend.lock if backend.name == "sqlite" else "LOCK TABLE deliveries, relays, claims"
        await connection.exec_driver_sql(lock)
        with pytest.raises(StoreUnavailable):
            await store.deliveries.settle(bytes(32), begun, ["ben@bob.example"], ["ben@bob.example"])
        monkeypatch.setattr(Database, "writing", counted)
        await store.close()
    assert len(tries) == 1
    assert not store.deliveries.settled


@pytest.mark.parametrize("stored", [False, True])
async def test_a_start_on_a_full_disk_says_what_is_full_and_how_much_is_needed(
    sqlite: Backend, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch, stored: bool
) -> None:
    if stored:
        async with await open_store(sqlite.where, secret) as store:
            await store.received.put("g", "alice", {"before": KEY})
    disk = list(os.statvfs(Path(sqlite.where).parents[1]))
    disk[4] = 8 * 1024 // disk[1]
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(disk))
    said = r"relay\.db: no space left on its disk: \d KiB are free, and a relay needs 16 MiB in /"
    with no_room(), pytest.raises(StoreUnavailable, match=said):
        await open_store(sqlite.where, secret)


def test_a_full_disk_loses_nothing_and_passes(sqlite: Backend, secret_path: Path) -> None:
    with python(FILL_THE_DISK, sqlite.where, str(secret_path)) as child:
        output, _ = child.communicate(timeout=60)
    error, passed = output.splitlines()
    assert error.startswith(sqlite.where)
    assert passed == "passed"
    assert child.returncode == 0


async def test_a_locked_database_is_waited_for_no_longer_than_asked(backend: Backend, secret: SiteSecret) -> None:
    async with await open_store(backend.where, secret, busy_timeout=0.05) as store:
        await store.received.put("g", "alice", {"k": KEY})
        async with backend.locked():
            outcomes = await asyncio.gather(
                store.received.put("g", "alice", {"l": KEY}),
                store.received.put("g", "alice", {"m": KEY}),
                mark_used(store, "g", "alice", ["k"], 900),
                return_exceptions=True,
            )
            assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
            assert await held(store, "g", "alice", ["k", "l"]) == {"k": KEY}, "reading needs no lock"
        await store.received.put("g", "alice", {"l": KEY})
        await mark_used(store, "g", "alice", ["k", "l"], 900)
        [counts] = (await store.received.counts()).values()
        assert counts.used == 2


async def test_a_lock_that_ends_in_time_is_not_noticed(backend: Backend, secret: SiteSecret) -> None:
    async with await open_store(backend.where, secret, busy_timeout=30) as store:
        async with backend.locked():
            put = asyncio.create_task(store.received.put("g", "alice", {"k": KEY}))
            await held(store, "g", "alice", ["k"])
            assert not put.done()
        await put
        assert await state(store, "g", "alice", "k") == "held"


async def test_a_damaged_file_is_reported(sqlite: Backend, secret: SiteSecret) -> None:
    async with await open_store(sqlite.where, secret) as store:
        await store.received.put("g", "alice", {f"k{number}": KEY for number in range(1000)})
    damage(Path(sqlite.where))
    with pytest.raises(StoreUnavailable, match=f"^{sqlite.where}: "):
        async with await open_store(sqlite.where, secret) as store:
            await held(store, "g", "alice", [f"k{number}" for number in range(1000)])


async def test_a_database_that_was_taken_away_is_reported(backend: Backend, store: Store) -> None:
    await backend.run("DROP TABLE received_keys")
    for work in (
        store.received.put("g", "alice", {"k": KEY}),
        held(store, "g", "alice", ["k"]),
        mark_used(store, "g", "alice", ["k"], 1),
        store.received.destroy_expired(),
        store.received.counts(),
        store.missing_secrets(),
        store.reseal(),
    ):
        with pytest.raises(StoreUnavailable, match="received_keys"):
            await work


async def test_lost_idle_connections_are_not_noticed(postgresql: Backend, secret: SiteSecret) -> None:
    async with await open_store(postgresql.where, secret) as store:
        await store.received.put("g", "alice", {"k": KEY})
        await postgresql.run(TERMINATE)
        assert await held(store, "g", "alice", ["k"]) == {"k": KEY}


async def test_a_connection_lost_in_the_middle_holds_the_mail(postgresql: Backend, secret: SiteSecret) -> None:
    async with await open_store(postgresql.where, secret, busy_timeout=30) as store:
        async with postgresql.locked():
            put = asyncio.create_task(store.received.put("g", "alice", {"k": KEY}))
            async with asyncio.timeout(30):
                while not await postgresql.run(f"{TERMINATE} AND wait_event_type = 'Lock'"):
                    continue
            with pytest.raises(StoreUnavailable):
                await put
        assert await state(store, "g", "alice", "k") == "unknown"
        await store.received.put("g", "alice", {"k": KEY})


async def test_a_server_that_went_away_holds_the_mail_until_it_is_back(
    postgresql_server: PostgreSQLServer, postgresql: Backend, secret: SiteSecret
) -> None:
    async with await open_store(postgresql.where, secret) as store:
        await store.received.put("g", "alice", {"k": KEY})
        async with stopped(postgresql_server):
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match=r"^postgresql://relay@/postgres: "):
                    await store.received.put("g", "alice", {"l": KEY})
                with pytest.raises(StoreUnavailable, match=r"^postgresql://relay@/postgres: "):
                    await held(store, "g", "alice", ["k"])
        await store.received.put("g", "alice", {"l": KEY})
        assert await held(store, "g", "alice", ["k", "l"]) == {"k": KEY, "l": KEY}


TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE application_name LIKE 'qumail-relay%' AND datname = current_database()"
)


def damage(path: Path) -> None:
    """All but the first two pages is rubbish."""
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))


@asynccontextmanager
async def stopped(server: PostgreSQLServer) -> AsyncIterator[None]:
    """The server is down within the block."""
    await asyncio.to_thread(server.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)
