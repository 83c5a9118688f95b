"""Today's relay takes over the stores that earlier releases have left behind, killed with mail under way.
Standard: tests/data/stores, which tests/testlib/old_stores.py has made with those releases; both back ends.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import LogCapture

from relay.errors import ConfigError, StoreUnavailable
from relay.journey.sealing import Sealer
from relay.kme import DevelopmentKMEs
from relay.process import app, assembly
from relay.store.database import SCHEMA_VERSION, connect, metadata
from relay.store.migrations import migrate
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.integration.opening.conftest import Clock, clock as clock  # a fixture
from tests.testlib.databases import Backend, sqlite_file
from tests.testlib.old_stores import BEA, BEN, BOBS_POLICIES, EVE, POLICIES, OldStores, all_stores
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import until_settled

OLD = all_stores()
FIRST = [each for each in OLD if each.commit == "f09085e7"]


@pytest.fixture(params=OLD, ids=[each.name for each in OLD])
def old(request: pytest.FixtureRequest) -> OldStores:
    """One after the other."""
    store: OldStores = request.param
    return store


@pytest.fixture
def backend(old: OldStores, request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """The database into which it goes."""
    if old.backend == "postgresql":
        backend: Backend = request.getfixturevalue("postgresql")
        return backend
    return sqlite_file(tmp_path / "relay.db")


@pytest.fixture
def times(old: OldStores, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A minute after the old relay was killed: what it had under way is not too old."""
    clock.ahead = old.made_at + 60 - time.time()
    monkeypatch.setattr(assembly, "Sealer", partial(Sealer, clock=clock))
    return clock


@pytest.fixture
async def alice(
    old: OldStores, backend: Backend, times: Clock, tmp_path: Path, kmes: DevelopmentKMEs, wire: Sink, impatient: None
) -> Site:
    """Alice's site, with what the old relay has left there."""
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=wire.address,
        policies=POLICIES, kme_settings="prefetch = false\nkey_lifetime = 3600\n",
    )  # fmt: skip
    return await _with_old(site, old, backend)


@pytest.fixture
async def bob(
    old: OldStores, backend: Backend, times: Clock, tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, impatient: None
) -> Site:
    """Bob's site, likewise."""
    site = make_site(
        tmp_path / "bob", "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address,
        policies=BOBS_POLICIES, kme_settings="lag_patience = 0\n",
    )  # fmt: skip
    return await _with_old(site, old, backend)


async def _with_old(site: Site, old: OldStores, backend: Backend) -> Site:
    name = site.directory.name
    old.put(name, site.directory)
    if old.backend == "postgresql":
        await _load(old, name, backend)
        text = site.config_file.read_text()
        site.config_file.write_text(text.replace('database = "relay.db"', f'database = "{backend.where}"'))
    else:  # times since a boot of another machine, where the process of that number has ended
        await sqlite_file(site.directory / "relay.db").end_leases()
    return site


async def _load(old: OldStores, name: str, backend: Backend) -> None:
    connection = await asyncpg.connect(backend.where)
    try:
        await connection.execute(old.dump(name))
    finally:
        await connection.close()


def said(log: LogCapture, event: str) -> list[Any]:
    return [each for each in log.entries if each["event"] == event]


@pytest.mark.promise("An upgrade loses no mail and repeats none")
async def test_mail_out_that_was_under_way_completes_and_nothing_leaves_twice(
    alice: Site, old: OldStores, kmes: DevelopmentKMEs, wire: Sink, log: LogCapture
) -> None:
    async with app.running(alice.config) as relay:
        for name, recipients, left in (
            ("sent-in-part", [BEN, EVE], [(EVE,)]),
            ("waits", [BEA], [(BEA,)]),
            ("just-sent", [BEN], []),
        ):
            wire.got.clear()
            answer = await until_settled(relay["outgoing"], old.mail(name), recipients=recipients)
            assert answer.code == 250, (name, answer)
            assert [got.recipients for got in wire.got] == left, name
    assert kmes.link.issued.total() == 0, "what waited is sent as it was sealed"
    assert said(log, "store_restored") == []
    [migrated] = said(log, "store_migrated") or [None]
    assert (migrated is not None) == (old.schema < SCHEMA_VERSION)


@pytest.mark.promise("An upgrade loses no mail and repeats none")
async def test_mail_in_that_was_under_way_opens_with_the_keys_that_were_received_and_nothing_arrives_twice(
    bob: Site, old: OldStores, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    async with app.running(bob.config) as relay:
        for name, recipients, arrives in (
            ("opened", [BEN], []),
            ("just-opened", [BEN], []),
            ("opened-in-part", [BEN, EVE], [(EVE,)]),
            ("keys-here", [BEA], [(BEA,)]),
            ("keys-on-their-way", [BEA], [(BEA,)]),
        ):
            for again in (False, True):
                sink.got.clear()
                answer = await until_settled(relay["incoming"], old.mail(f"{name}-sealed"), recipients=recipients)
                assert answer.code == 250, (name, answer)
                assert [got.recipients for got in sink.got] == ([] if again else arrives), name
                for got in sink.got:
                    assert got.message.endswith(old.mail(name))
    asked = [each for each in kmes.km2.got("dec_keys") if each.caller != each.other]
    assert asked == [], "a KME gives a received key once"
    assert said(log, "store_restored") == []
    unread = [each["event"] for each in log.entries if each["event"].endswith(("_torn", "_not_read", "_not_stored"))]
    assert unread == [], "neither keys and records, nor alarms and held mail"
    status, err, _ = await run("audit", "verify", "--config", bob.config_file)
    assert (status, err) == (0, "")


async def test_it_has_the_tables_of_one_that_is_made_today_and_what_lay_in_quarantine_is_listed_and_released(
    bob: Site, backend: Backend, old: OldStores, sink: Sink
) -> None:
    async with app.running(bob.config):
        pass
    await _has_the_tables_of_one_that_is_made_today(bob, backend, old)
    status, err, out = await run("quarantine", "list", "--json", "--config", bob.config_file)
    assert (status, err) == (0, "")
    kept = {each["reason"]: each for each in json.loads(out)}
    assert kept.keys() == {"unprotected", "tampered"}
    released = ("quarantine", "release", kept["unprotected"]["id"], "--config", bob.config_file)
    status, err, out = await run(*released)
    assert (status, err) == (0, ""), (out, err)
    [got] = sink.got
    assert got.recipients == (BEN,)
    assert got.message.endswith(old.mail("unprotected"))
    status, err, out = await run("quarantine", "show", kept["tampered"]["id"], "--config", bob.config_file)
    assert (status, err) == (0, "")


async def _has_the_tables_of_one_that_is_made_today(bob: Site, backend: Backend, old: OldStores) -> None:
    if old.backend == "sqlite":
        backend = sqlite_file(bob.directory / "relay.db")
        tables = {name for (name,) in await backend.run("SELECT name FROM sqlite_master WHERE type = 'table'")}
        columns = {name: {row[1] for row in await backend.run(f"PRAGMA table_info({name})")} for name in tables}
    else:
        rows = await backend.run(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        )
        columns = {name: {column for table, column in rows if table == name} for name, _ in rows}
    assert columns == {table.name: set(table.columns.keys()) for table in metadata.tables.values()}


async def test_an_older_store_that_is_put_back_is_noticed_by_the_file_beside_the_secret(
    bob: Site, old: OldStores, log: LogCapture
) -> None:
    """Under whichever name the old release has written it."""
    [file] = [path for path in (bob.directory / "restore.check", bob.directory / "store.beat") if path.exists()]
    file.write_text(repr(float(file.read_text()) + 5))
    async with app.running(bob.config):
        assert len(said(log, "store_restored")) == 1


COPIED = [each for each in OLD if each.backend == "sqlite" and each.schema < SCHEMA_VERSION]


@pytest.mark.parametrize("old", COPIED, ids=[each.name for each in COPIED], indirect=True)
async def test_the_copy_of_before_that_is_put_back_is_noticed_by_its_mark(
    bob: Site, old: OldStores, log: LogCapture
) -> None:
    async with app.running(bob.config):
        pass
    assert said(log, "store_restored") == []
    copy = bob.directory / f"relay.db.schema-{old.schema}"
    assert copy.stat().st_mode & 0o777 == 0o600
    for path in bob.directory.glob("relay.db-*"):
        path.unlink()
    copy.replace(bob.directory / "relay.db")
    async with app.running(bob.config):
        [restored] = said(log, "store_restored")
    assert "is a copy that `qumail-relay backup` or an upgrade has made" in str(restored)


def test_there_is_a_store_of_each_form_that_a_release_has_left() -> None:
    # One of today's schema can be made only from a commit, so it may follow.
    assert {each.schema for each in OLD} >= set(range(4, SCHEMA_VERSION)), "python -m tests.testlib.old_stores COMMIT"
    assert {each.backend for each in OLD} == {"sqlite", "postgresql"}


@pytest.mark.parametrize("old", FIRST, ids=[each.name for each in FIRST], indirect=True)
@pytest.mark.parametrize("used", [False, True])
async def test_of_tables_under_both_their_names_the_one_counts_that_was_used_last(
    bob: Site, old: OldStores, backend: Backend, used: bool
) -> None:
    """A release in between knew the new name alone, and made an empty table of it at its start."""
    here = sqlite_file(bob.directory / "relay.db") if old.backend == "sqlite" else backend
    [(beat,)] = await here.run("SELECT beat FROM store_beat")
    await here.run(
        "CREATE TABLE restore_check (one INTEGER PRIMARY KEY, mark DOUBLE PRECISION, trusted_from DOUBLE PRECISION, "
        "past DOUBLE PRECISION)"
    )
    if used:
        await here.run("INSERT INTO restore_check VALUES (1, ?, 7.0, ?)", beat + 100.0, beat)
    await migrate(bob.config.store.database, busy_timeout=5.0)
    marks = await here.run("SELECT mark, trusted_from FROM restore_check")
    assert marks == ([(beat + 100.0, 7.0)] if used else [(beat, 0.0)])


@pytest.mark.parametrize("old", FIRST, ids=[each.name for each in FIRST], indirect=True)
async def test_a_store_from_before_the_first_that_is_taken_over_is_refused(
    bob: Site, old: OldStores, backend: Backend
) -> None:
    here = sqlite_file(bob.directory / "relay.db") if old.backend == "sqlite" else backend
    await here.run("UPDATE store_schema SET version = 3")
    with pytest.raises(ConfigError, match="has schema 3, and stores are taken over from schema 4 on"):
        await migrate(bob.config.store.database, busy_timeout=5.0)


KILLED = """
import asyncio, os
from sqlalchemy import Engine, event
from relay.store import migrations

number = 0

def count(*_):
    global number
    number += 1
    if number == {at}:
        os.kill(os.getpid(), 9)

event.listen(Engine, "before_cursor_execute", count)
event.listen(Engine, "commit", count)
asyncio.run(migrations.migrate({where!r}, busy_timeout=5.0))
"""


@pytest.mark.promise("An upgrade loses no mail and repeats none")
@pytest.mark.parametrize("old", FIRST, ids=[each.name for each in FIRST], indirect=True)
async def test_killed_at_each_statement_it_leaves_the_old_store_or_the_new_one(
    bob: Site, old: OldStores, backend: Backend, sink: Sink
) -> None:
    where = str(bob.config.store.database)
    here = sqlite_file(bob.directory / "relay.db") if old.backend == "sqlite" else backend
    before = await _content(here)
    killed = 0
    while True:
        status, err, _ = await run("--version", before=KILLED.format(where=where, at=killed + 1))
        if status == 0:
            break
        assert status == -signal.SIGKILL, err
        killed += 1
        assert await _content(here) == before, f"killed at statement {killed}"
    assert killed > 10
    assert await here.run("SELECT version FROM store_schema") == [(SCHEMA_VERSION,)]
    async with app.running(bob.config) as relay:
        answer = await until_settled(relay["incoming"], old.mail("keys-here-sealed"), recipients=[BEA])
        assert answer.code == 250
    assert not list(bob.directory.glob(".relay.db*")), "no half copy stays"


async def _content(backend: Backend) -> Any:
    if backend.name == "sqlite":
        with closing(sqlite3.connect(backend.where)) as database:
            return list(database.iterdump())
    tables = (
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2"
    )
    return (
        await backend.run(tables),
        await backend.run("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"),
        await backend.run("SELECT * FROM sealed_copies"),
        await backend.run("SELECT version FROM store_schema"),
    )


only_sqlite = pytest.mark.parametrize(
    "old", [each for each in FIRST if each.backend == "sqlite"], ids=lambda each: each.name, indirect=True
)
only_postgresql = pytest.mark.parametrize(
    "old", [each for each in FIRST if each.backend == "postgresql"], ids=lambda each: each.name, indirect=True
)


@contextmanager
def no_file_grows_beyond(octets: int) -> Iterator[None]:
    """As on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (octets, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@only_sqlite
async def test_without_room_for_the_copy_it_does_not_start_and_the_store_stays_as_it_was(bob: Site) -> None:
    file = bob.directory / "relay.db"
    before = await _content(sqlite_file(file))
    async with connect(file, busy_timeout=1.0) as database:  # which puts it into WAL mode
        await database.quiet()
    with no_file_grows_beyond(40_000), pytest.raises(StoreUnavailable) as caught:
        await migrate(file, busy_timeout=1.0)
    assert f"{file}: is to be taken over from an earlier release, and no copy" in str(caught.value)
    assert "so it was left as it is" in str(caught.value)
    assert await _content(sqlite_file(file)) == before
    assert sorted(path.name for path in bob.directory.glob("*relay.db*")) == ["relay.db"]
    await migrate(file, busy_timeout=1.0)
    assert (bob.directory / "relay.db.schema-4").exists()


@pytest.mark.parametrize("old", FIRST, ids=[each.name for each in FIRST], indirect=True)
async def test_commands_leave_it_alone_and_say_what_takes_it_over(bob: Site, old: OldStores, backend: Backend) -> None:
    here = sqlite_file(bob.directory / "relay.db") if old.backend == "sqlite" else backend
    before = await _content(here)
    this = f"(schema 4, and this one has {SCHEMA_VERSION})"
    says = f"this store is of an earlier release {this}: start the relay, which takes it over"
    status, err, _ = await run("quarantine", "list", "--config", bob.config_file)
    assert status == 1
    assert says in err
    status, _, out = await run("check", "--json", "--config", bob.config_file)
    [store] = [each for each in json.loads(out) if each["what"] == "store"]
    assert any(says in each for each in store["problems"]), store
    assert await _content(here) == before


@pytest.mark.parametrize("old", FIRST, ids=[each.name for each in FIRST], indirect=True)
async def test_with_several_workers_the_process_that_starts_them_takes_it_over(
    bob: Site, old: OldStores, backend: Backend
) -> None:
    bob.set_workers(2)
    async with relay_process(bob) as relay:
        assert relay.log.count('"store_migrated"') == 1
    here = sqlite_file(bob.directory / "relay.db") if old.backend == "sqlite" else backend
    assert await here.run("SELECT version FROM store_schema") == [(SCHEMA_VERSION,)]


@only_sqlite
async def test_check_names_the_copy_of_before_once_it_is_a_day_old(bob: Site, old: OldStores) -> None:
    async with app.running(bob.config):
        pass
    copy = bob.directory / "relay.db.schema-4"
    said = []
    for age in (0, 2 * 86_400):
        os.utime(copy, (time.time() - age, time.time() - age))
        _, _, out = await run("check", "--json", "--config", bob.config_file)
        [store] = [each for each in json.loads(out) if each["what"] == "store"]
        said.append([each for each in store["problems"] if "is the store before an upgrade" in each])
    assert [len(each) for each in said] == [0, 1]
    assert str(copy) in said[1][0]


@only_postgresql
async def test_it_waits_for_the_relays_of_the_site_that_are_of_another_release(
    bob: Site, old: OldStores, backend: Backend, secret: SiteSecret
) -> None:
    """They would go on writing what this one does not read."""
    older = await asyncpg.connect(backend.where, server_settings={"application_name": "qumail-relay"})
    try:
        with pytest.raises(StoreUnavailable, match="1 connections of relays of another release are open: stop all rel"):
            await migrate(backend.where, busy_timeout=1.0)
        assert await backend.run("SELECT version FROM store_schema") == [(old.schema,)]
    finally:
        await older.close()
    await migrate(backend.where, busy_timeout=1.0)
    assert await backend.run("SELECT version FROM store_schema") == [(SCHEMA_VERSION,)]


async def test_a_relay_that_comes_back_to_a_server_with_a_newer_schema_writes_nothing(
    postgresql: Backend, secret: SiteSecret
) -> None:
    async with await open_store(postgresql.where, secret) as store:
        await store.received.ready()
        await postgresql.run("UPDATE store_schema SET version = ?", SCHEMA_VERSION + 1)
        await postgresql.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'qumail-relay%'"
        )
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="written by a newer relay"):
                await store.issued_keys.ready()


async def test_no_relay_starts_on_the_store_of_a_newer_one(sqlite: Backend, secret: SiteSecret) -> None:
    await (await open_store(sqlite.where, secret)).close()
    await sqlite.run("UPDATE store_schema SET version = ?", SCHEMA_VERSION + 1)
    with pytest.raises(
        ConfigError, match=r"written by a newer relay .*: install that release again, or restore the ba"
    ):
        await migrate(sqlite.where, busy_timeout=1.0)
