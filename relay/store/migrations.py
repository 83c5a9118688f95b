"""Takes over the store of an earlier release: steps from each schema to the next, in one transaction.
Standard: DDL is transactional in SQLite and PostgreSQL, so that a killed relay leaves the old schema or the new one.

Only a relay that starts to serve does this, before any process of it opens the store. Commands and later workers refuse
such a store. An embedded database is copied first, to beside it; that of a server is its administrator's to copy. The
rules for a change of the tables are in SCHEMA.md.
"""

from __future__ import annotations

import asyncio
import glob
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import structlog
from sqlalchemy import Connection, inspect, select, text, update

from relay.errors import ConfigError, StoreUnavailable
from relay.files import sync_directory, sync_file
from relay.files.sqlite import connected, make_sqlite_file, said_by_sqlite
from relay.store import secret_file
from relay.store.database import SCHEMA_VERSION, Database, connect, is_begun, lock_schema, not_ours, schema
from relay.store.postgresql import APPLICATION, application_name
from relay.store.restore_check import mark_as_copy

log = structlog.get_logger(__name__)

Step: TypeAlias = Callable[[Connection], None]


def _to_5(connection: Connection) -> None:
    """Schema 4 has four forms, since tables were added and renamed without a new number."""
    if _renamed(connection, "store_beat", "restore_check"):
        _run(connection, "ALTER TABLE restore_check RENAME COLUMN beat TO mark")
    if _renamed(connection, "spent", "rate_limits"):
        _run(connection, "DROP INDEX ix_spent_changed", "CREATE INDEX ix_rate_limits_changed ON rate_limits (changed)")
    _run(
        connection,
        "DROP INDEX IF EXISTS ix_claims_relay",
        "ALTER TABLE quarantine ADD COLUMN named TEXT NOT NULL DEFAULT ''",
        # Members that copies of some releases lack, before those that they have: of two, the later one counts. A next
        # hop may have such a copy, so it is sent again as it is, as the release that made it would have done.
        "UPDATE sealed_copies SET facts = '{\"sealed_at\": ' || (forget_at - 432000) || "
        '\', "may_have": true, "listed": [], \' || substr(facts, 2)',
    )


def _to_6(connection: Connection) -> None:
    """The store has an identity, which a relay writes when it first serves."""
    _run(
        connection,
        "CREATE TABLE store_identity (one INTEGER NOT NULL, store_id TEXT NOT NULL, former_id TEXT NOT NULL, "
        "secret_id TEXT NOT NULL, doubt TEXT NOT NULL, PRIMARY KEY (one))",
    )


STEPS: Mapping[int, Step] = {5: _to_5, 6: _to_6}
"""What makes of a store of the version before one of this version. A step never changes once it was released."""
OLDEST = min(STEPS) - 1
"""The oldest schema that is taken over."""


async def migrate(where: str | Path, *, busy_timeout: float) -> None:
    """Brings the store to SCHEMA_VERSION; does nothing where there is none, or it is of this version already.

    Call it before the store is opened, with the lock on an embedded one. Raises ConfigError and StoreUnavailable: the
    store is as it was then.
    """
    if not await is_begun(where, busy_timeout=busy_timeout):
        return
    async with connect(where, busy_timeout=busy_timeout) as database:
        found = await database.reading(_version)
        if found is None or found == SCHEMA_VERSION:
            return
        if found > SCHEMA_VERSION:
            raise not_ours(database.name, found)
        if found < OLDEST:
            raise ConfigError(
                f"{database.name}: this store has schema {found}, and stores are taken over from schema {OLDEST} on: "
                "give the relay another database"
            )
        copy = await asyncio.to_thread(_copied, Path(database.name), found) if database.is_sqlite else None
        await database.writing(lambda connection: _migrate(database, connection))
        log.warning(
            "store_migrated", store=database.name, from_schema=found, to_schema=SCHEMA_VERSION,
            copy=str(copy) if copy is not None else None,
        )  # fmt: skip


def copies_of_upgrades(database: Path) -> list[Path]:
    """The copies of an embedded database that were made before it was migrated. Blocks."""
    found = database.parent.glob(f"{glob.escape(database.name)}.schema-*")
    return sorted(each for each in found if each.name.rpartition("-")[2].isdecimal())


def _version(connection: Connection) -> int | None:
    """The version of the schema, None before a relay has made one."""
    return connection.scalar(select(schema.c.version)) if inspect(connection).has_table(schema.name) else None


def _migrate(database: Database, connection: Connection) -> None:
    lock_schema(connection)
    found = _version(connection)
    if found is None or found >= SCHEMA_VERSION:  # another relay of the site was first
        return
    if not database.is_sqlite:
        _refuse_others(database, connection)
    for version in range(found + 1, SCHEMA_VERSION + 1):
        STEPS[version](connection)
    connection.execute(update(schema).values(version=SCHEMA_VERSION))


def _run(connection: Connection, *statements: str) -> None:
    for each in statements:
        connection.exec_driver_sql(each)


def _renamed(connection: Connection, old: str, new: str) -> bool:
    """Gives a table its new name, and returns whether it had the old one.

    A release that knew only the new name has made an empty one, or gone on in it: then the old one counts no more.
    """
    tables = inspect(connection).get_table_names()
    if old in tables and new in tables:
        used = connection.exec_driver_sql(f"SELECT 1 FROM {new} LIMIT 1").first()  # noqa: S608 - a name of ours
        superfluous = old if used else new
        _run(connection, f"DROP TABLE {superfluous}")
        tables.remove(superfluous)
    if old not in tables:
        return False
    _run(connection, f"ALTER TABLE {old} RENAME TO {new}")
    return True


def _refuse_others(database: Database, connection: Connection) -> None:
    """Raises StoreUnavailable while relays of another release are connected: they would go on in the old form."""
    others = connection.scalar(
        text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name LIKE :any_release || '%' AND application_name <> :ours"
        ),
        {"any_release": APPLICATION, "ours": application_name(SCHEMA_VERSION)},
    )
    if others:
        raise StoreUnavailable(
            f"{database.name}: is to be taken over from an earlier release, and {others} connections of relays of "
            "another release are open: stop all relays of the site, then start them; until then mail is held"
        )


def _copied(path: Path, version: int) -> Path:
    """Copies the embedded database, marked as a copy, to beside it. Blocks; raises StoreUnavailable.

    What the site secret seals is sealed in the copy too, and nobody else may read either.
    """
    copy = path.with_name(f"{path.name}.schema-{version}")
    part = copy.with_name(f".{copy.name}.part")
    try:
        with secret_file.locked(path.parent):
            part.unlink(missing_ok=True)  # of a killed relay
            try:
                make_sqlite_file(part)
                with closing(connected(path)) as store:
                    store.execute("VACUUM INTO ?", (str(part),))
                with closing(connected(part)) as copied:
                    mark_as_copy(copied)
                sync_file(part)
                part.replace(copy)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            sync_directory(path.parent)
    except (OSError, sqlite3.Error) as error:
        cause = said_by_sqlite(path, error) if isinstance(error, sqlite3.Error) else error.strerror
        raise StoreUnavailable(
            f"{path}: is to be taken over from an earlier release, and no copy of it could be made beside it, so it "
            f"was left as it is: {cause}"
        ) from error
    return copy
