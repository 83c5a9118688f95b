"""Opening the store: files made for us alone, durable settings, one schema, clear words about wrong places.
Standard: what cannot be right is ConfigError before any mail is taken; no password is ever seen.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from relay.errors import ConfigError, StoreUnavailable
from relay.store.database import SCHEMA_VERSION, open_database
from relay.store.secret import SiteSecret
from relay.store.store import open_store
from tests.testlib.databases import Backend, PostgreSQLServer


async def test_the_sqlite_files_are_for_us_alone(sqlite: Backend, secret: SiteSecret) -> None:
    directory = Path(sqlite.where).parent
    async with await open_store(sqlite.where, secret) as store:
        await store.received.put("g", "alice", {"k": b"key"})
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == {"relay.db": 0o600, "relay.db-wal": 0o600, "relay.db-shm": 0o600}
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


async def test_a_directory_that_is_there_keeps_its_mode(sqlite: Backend, secret: SiteSecret) -> None:
    directory = Path(sqlite.where).parent
    directory.mkdir(mode=0o750)
    await (await open_store(Path(sqlite.where), secret)).close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750


async def test_sqlite_is_durable_and_deletes_securely_on_every_connection(sqlite: Backend) -> None:
    database = await open_database(sqlite.where, busy_timeout=1.5)
    try:
        for transaction in (database.reading, database.writing):
            values = await transaction(
                lambda connection: [
                    connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "synchronous", "secure_delete", "busy_timeout")
                ]
            )
            assert values == ["wal", 2, 1, 1500]
    finally:
        await database.close()


@pytest.mark.parametrize(("default", "ours"), [("off", "on"), ("local", "local"), ("remote_apply", "remote_apply")])
async def test_postgresql_is_durable_whatever_its_default(postgresql: Backend, default: str, ours: str) -> None:
    await postgresql.run(f"ALTER DATABASE {postgresql.url.database} SET synchronous_commit = {default}")
    database = await open_database(postgresql.where, busy_timeout=1.5)
    try:
        for name, value in (("synchronous_commit", ours), ("lock_timeout", "1500ms")):
            assert await database.rows(text(f"SHOW {name}")) == [(value,)]
    finally:
        await database.close()


async def test_relays_that_start_at_once_make_one_schema(backend: Backend, secret: SiteSecret) -> None:
    stores = await asyncio.gather(*(open_store(backend.where, secret) for _ in range(8)))
    for store in stores:
        await store.close()
    assert await backend.run("SELECT version FROM store_schema") == [(SCHEMA_VERSION,)]


async def test_the_schema_of_a_newer_relay_is_left_alone(backend: Backend, secret: SiteSecret) -> None:
    await (await open_store(backend.where, secret)).close()
    await backend.run("UPDATE store_schema SET version = ?", SCHEMA_VERSION + 1)
    await backend.run("DROP TABLE received_keys")
    with pytest.raises(
        ConfigError, match=f"written by a newer relay .schema {SCHEMA_VERSION + 1}, .*install that release again"
    ):
        await open_store(backend.where, secret)
    with pytest.raises(DBAPIError, match="received_keys"):
        await backend.run("SELECT * FROM received_keys")


@pytest.mark.parametrize(
    "where",
    [
        "mysql://relay:hunter2@host/relay",
        "postgresql://relay:hunter2@host",
        "postgresql://relay:hunter2@host:port/relay",
        "sqlite://",
        "://hunter2",
    ],
)
async def test_a_url_that_is_none_is_refused_without_its_password(where: str, secret: SiteSecret) -> None:
    with pytest.raises(ConfigError, match=r"postgresql://user@host/database") as caught:
        await open_store(where, secret)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["postgres:", "postgresql+asyncpg:"])
async def test_other_spellings_of_a_url_are_understood(postgresql: Backend, secret: SiteSecret, prefix: str) -> None:
    await (await open_store(postgresql.where.replace("postgresql:", prefix), secret)).close()


async def test_sqlite_may_be_a_url_too(sqlite: Backend, secret: SiteSecret) -> None:
    await (await open_store(f"sqlite:///{sqlite.where}", secret)).close()
    assert await sqlite.run("SELECT count(*) FROM received_keys") == [(0,)]


async def test_a_path_where_no_file_can_be_is_a_configuration_fault(tmp_path: Path, secret: SiteSecret) -> None:
    (tmp_path / "file").write_text("not a directory")
    for path in (tmp_path / "file" / "relay.db", Path("/proc/relay.db")):
        with pytest.raises(ConfigError, match=f"^{path}: cannot be made or opened"):
            await open_store(path, secret)


async def test_a_file_that_is_no_database_is_a_configuration_fault(tmp_path: Path, secret: SiteSecret) -> None:
    path = tmp_path / "relay.toml"
    path.write_text("[site]\nname = 'alice'\n" * 100)
    with pytest.raises(ConfigError, match=f"^{path}: is not an SQLite database"):
        await open_store(path, secret)
    assert path.read_text().startswith("[site]")


async def test_a_directory_in_the_place_of_the_file_is_reported(tmp_path: Path, secret: SiteSecret) -> None:
    with pytest.raises(ConfigError, match=f"^{tmp_path}: cannot be made or opened: it is no regular file: move it"):
        await open_store(tmp_path, secret)


async def test_another_programs_database_is_left_alone(tmp_path: Path, secret: SiteSecret) -> None:
    path = tmp_path / "places.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=f"^{path}: has another program's tables"):
        await open_store(path, secret)
    assert path.read_bytes() == before


@pytest.mark.parametrize("what", ["moved", "replaced", "emptied"])
async def test_where_the_file_is_no_longer_what_was_opened_the_store_cannot_be_written(
    sqlite: Backend, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr("relay.store.database.FILE_LOOK_S", 0.0)
    path = Path(sqlite.where)
    async with await open_store(sqlite.where, secret) as store:
        await store.received.ready()
        if what == "emptied":
            os.truncate(path, 0)
        else:
            path.rename(path.with_name("elsewhere"))
        if what == "replaced":
            path.write_bytes(path.with_name("elsewhere").read_bytes())
        said = "was emptied while" if what == "emptied" else "is not the file from which the relay serves"
        with pytest.raises(StoreUnavailable, match=f"^{path}: {said}"):
            await store.received.ready()
        with pytest.raises(StoreUnavailable, match=f"^{path}: {said}"):  # and mail that needs no key is held too
            await store.deliveries.begin("outgoing", bytes(32), ["ben@bob.example"], intent=True)
        if what != "emptied":
            path.with_name("elsewhere").rename(path)
            await store.received.ready()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_where_the_log_of_the_file_is_deleted_the_store_cannot_be_written_and_a_restart_loses_nothing(
    sqlite: Backend, secret: SiteSecret, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr("relay.store.database.FILE_LOOK_S", 0.0)
    log = Path(f"{sqlite.where}{suffix}")
    async with await open_store(sqlite.where, secret) as store:
        await store.received.put("g", "alice", {"before": b"key"})
        log.unlink()
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=f"^{log}: is not the file from which the relay serves"):
                await store.received.put("g", "alice", {"after": b"key"})
    async with await open_store(sqlite.where, secret) as store:
        assert (await store.received.counts())["g", "alice"].held == 1


async def test_a_file_that_is_gone_is_not_made_anew_by_a_store_that_is_open(sqlite: Backend) -> None:
    database = await open_database(sqlite.where, busy_timeout=1.5)
    Path(sqlite.where).unlink()
    with pytest.raises(StoreUnavailable, match="unable to open database file"):  # by the first connection that reads
        await database.rows(text("SELECT 1"))
    await database.close()
    assert not Path(sqlite.where).exists()


async def test_what_was_found_damaged_counts_as_unwritable_though_a_row_can_be_written(sqlite: Backend) -> None:
    path = Path(sqlite.where)
    await (await open_database(path, busy_timeout=1.5)).close()
    database = await open_database(path, busy_timeout=1.5)
    await database.can_be_written()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    await database.can_be_written()
    with pytest.raises(StoreUnavailable, match="malformed"):
        await database.rows(text("SELECT * FROM received_keys"))
    with pytest.raises(StoreUnavailable, match=f"^{path}: .*malformed.*: it counts as damaged until the relay is re"):
        await database.can_be_written()
    await database.close()


async def test_a_server_that_is_not_there_is_reported(tmp_path: Path, secret: SiteSecret) -> None:
    with pytest.raises(StoreUnavailable, match=r"^postgresql://relay:\*\*\*@/relay: ") as caught:
        await open_store(f"postgresql://relay:hunter2@/relay?host={tmp_path}&password=hunter3", secret)
    assert "hunter" not in str(caught.value)


async def test_a_database_that_the_server_does_not_know_is_reported(
    postgresql_server: PostgreSQLServer, secret: SiteSecret
) -> None:
    with pytest.raises(StoreUnavailable, match='database "elsewhere" does not exist'):
        await open_store(postgresql_server.url("elsewhere"), secret)


async def test_options_that_postgresql_does_not_know_are_reported(
    postgresql_server: PostgreSQLServer, secret: SiteSecret
) -> None:
    with pytest.raises(StoreUnavailable, match="no_such_option"):
        await open_store(postgresql_server.url("postgres") + "&no_such_option=perhaps", secret)


async def test_without_asyncpg_the_missing_package_is_named(
    secret: SiteSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigError, match="asyncpg"):
        await open_store("postgresql://relay@host/relay", secret)
