"""Notices that the store is not the one that was: restored from an older copy, emptied, another's, or without its mark.
A mark that only moves on and a random id, in the store and in a file of each relay; the file is written second.

What came since an older copy is forgotten, and could be replayed: mail from before is put aside. All other mail flows
meanwhile, since that is what protects it. The doubt stands in the store until an administrator accepts it.

Where store and file are set back together, as with a whole machine, nothing is noticed. A copy that backup.py has made
carries a mark of its own, and is noticed. Clocks are changed now and then, a week ahead by mistake and back again. So
what is forgotten by time is forgotten by a time that follows slowly.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from sqlalchemy import Column, Connection, Double, Integer, Table, select

from relay.errors import ConfigError, StoreUnavailable
from relay.files import write_whole
from relay.runtime.aio import boot_time
from relay.store import secret_file
from relay.store.database import Database, metadata, to_its_end
from relay.store.sameness import (
    MAX_DOUBT,
    OF_A_COPY,
    KnownStore,
    Sameness,
    StoreIdentity,
    moment,
    new_id,
    read_identity,
    remembered,
    said_by_file,
    secret_missing,
    write_identity,
)

log = structlog.get_logger(__name__)

MOST_PAST_S = 600.0
"""Maximum time that counts as passed between two restore checks, in seconds, in either direction."""
STEP_S = 60.0
"""Minimum clock step that is reported, in seconds."""
ONE_ON_S = 1.0
"""The mark moves on by this where the clock is behind it: a copy of the store must be older than what came after it."""

_table = Table(
    "restore_check",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("mark", Double, nullable=False),
    Column("trusted_from", Double, nullable=False),
    Column("past", Double, nullable=False),
)
"""One row, of seconds since 1970."""
_BEFORE_SCHEMA_5 = ("store_beat", "beat")
"""The names of table and mark in the first releases."""
FILE_BEFORE_SCHEMA_5 = "store.beat"
"""The name of the file in the first releases: an older store is noticed by it until there is one of today's name."""
_select = select(_table.c.mark, _table.c.trusted_from, _table.c.past)
_QUERIES = (str(_select), "SELECT store_id FROM store_identity")


def mark_as_copy(connection: sqlite3.Connection) -> None:
    """Marks a copy of the embedded database, also one of an earlier release. Blocks; raises sqlite3.Error."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, mark in ((_table.name, _table.c.mark.name), _BEFORE_SCHEMA_5):
        if table in tables:
            connection.execute(f"UPDATE {table} SET {mark} = ?", (OF_A_COPY,))  # noqa: S608 - names of ours


class _Row(NamedTuple):
    """The row, where it says what it should."""

    mark: float
    trusted_from: float
    past: float


def _marks(row: Sequence[object]) -> _Row | None:
    """None where one of its columns holds what is no moment."""
    moments = [moment(each) for each in row]
    marks = [each for each in moments if each is not None]
    return _Row(*marks) if len(marks) == len(moments) else None


class _Change(NamedTuple):
    """What one check has found and done: why the store is another one, its row then, its identity, whether we wrote."""

    why: str
    behind_s: int | None
    row: _Row
    identity: StoreIdentity
    ours: bool


class RestoreCheck:
    """The mark of one store as one relay sees it; all relays of a site share the row, each has a file of its own."""

    def __init__(
        self,
        database: Database,
        file: Path | None,
        clock: Callable[[], float],
        secret_ids: Sequence[str] = (),
        *,
        known_here: bool = False,
    ) -> None:
        """Without a `file` nothing is noticed. `clock` gives seconds since 1970.

        `secret_ids` are those of the site secret, newest first. `known_here` says that other files of a relay that
        served lie beside `file`.
        """
        self._database = database
        self._file = file
        self._clock = clock
        self._secret_ids = tuple(secret_ids)
        self._known_here = known_here
        self._complained = False
        self._ahead: float | None = None
        self._last: KnownStore | None = None
        self.sealed_under = self._secret_ids[0] if secret_ids else ""
        """The id of the secret that a store without an identity needs: of a missing one, if it has such rows."""
        self.doubt = ""
        """Why the store is not the one that was, as a sentence about it; "" if it is, or if that was accepted."""
        self.trusted_from = 0.0
        """Seconds since 1970: of what was sealed earlier, the store may have forgotten that it was delivered."""
        self.past = 0.0
        """Seconds since 1970, past beyond doubt: a clock that is ahead for a while must not have all forgotten.

        One that is behind for a while must not have all kept: it does not go back fast either.
        """

    @to_its_end
    async def load(self) -> None:
        """Reads what is known, without moving the mark on. Raises StoreUnavailable."""
        row, identity = await self._database.reading(_read)
        if row is not None:
            marks = _marks(row)
            self.trusted_from = marks.trusted_from if marks is not None else self._clock()
            self.past = marks.past if marks is not None else 0.0
        self.doubt = identity.doubt if identity is not None else ""

    @to_its_end
    async def doubts(self) -> str:
        """Why the store is not the one that was, also where no relay has noticed yet; changes nothing.

        Raises StoreUnavailable.
        """
        last = await asyncio.to_thread(self._remembered)
        alone = await self._file_alone()
        row, identity = await self._database.reading(_read)
        why = (self._sameness(row, identity, alone, last).why_another(), secret_missing(identity, self._secret_ids))
        known = identity.doubt if identity is not None else ""
        return known or "; ".join(self._sentence(each) for each in why if each)

    @to_its_end
    async def look(self) -> None:
        """Checks at once where the store has become another one under the relay. Raises StoreUnavailable."""
        last, alone = self._last, await self._file_alone()
        row, identity = await self._database.reading(_read)
        self.doubt = identity.doubt if identity is not None else self.doubt
        if last is not None and self._sameness(row, identity, alone, last).why_another():
            await self.go_on()

    @to_its_end
    async def accept(self) -> str:
        """Says that the store is meant to be this one, under this secret; returns what was doubted, "" for nothing.

        Raises StoreUnavailable.
        """
        await self.go_on()  # what no relay has noticed yet is doubted first, so that mail from before is put aside

        def accepted(connection: Connection) -> str:
            connection.execute(_select.with_for_update())
            identity = read_identity(connection)
            if identity is None or not identity.doubt:
                return ""
            newest = identity._replace(secret_id=self._secret_ids[0], doubt="")
            write_identity(self._database, connection, newest)
            return identity.doubt

        doubt = await self._database.writing(accepted)
        self.doubt = ""
        return doubt

    @to_its_end
    async def resealed(self) -> None:
        """From now on each relay needs the newest secret, and no other. Raises StoreUnavailable."""

        def change(connection: Connection) -> None:
            connection.execute(_select.with_for_update())
            if (identity := read_identity(connection)) is not None:
                newest = identity._replace(secret_id=self._secret_ids[0])
                write_identity(self._database, connection, newest)

        await self._database.writing(change)

    @to_its_end
    async def go_on(self) -> None:
        """Moves the mark on, and notices a store that is not the one that was. Raises StoreUnavailable.

        While another relay moves it on, that counts for all, and this one only looks.
        """
        self._tell_where_it_was_set()
        row, identity = await self._database.reading(_read)
        if row is None and identity is None:
            # First, so that a file that is missing beside a store is one that somebody has removed.
            await asyncio.to_thread(self._begin)
        last = await asyncio.to_thread(self._remembered)
        found = await self._database.writing(partial(self._move_on, await self._file_alone(), last))
        now = found.row
        self.trusted_from, self.past = now.trusted_from, now.past
        self.doubt = found.identity.doubt
        if found.why:
            log.error("store_restored", store=self._database.name, behind_s=found.behind_s, cause=found.why)
        if found.ours or last is None:
            # Second: a file that is ahead of the store for any other reason would cost mail its way to the mailbox.
            mark = await self._in_the_file(now.mark, last) if self._database.is_sqlite else now.mark
            self._last = KnownStore(mark, found.identity.store_id)
            await asyncio.to_thread(self._write, self._last)
        self._last = self._last or last

    async def _in_the_file(self, mark: float, last: KnownStore | None) -> float:
        """Moves the mark out of SQLite's write-ahead log; returns the latest one that is known to be in the file.

        A later checkpoint, into an older copy that was put over the file, must not bring the mark along.
        """
        with suppress(StoreUnavailable):
            await self._database.scrub()
        alone = await self._file_alone()
        moved = alone is not None and alone.mark >= mark
        return mark if moved else last.mark if last is not None else 0.0

    async def _file_alone(self) -> KnownStore | None:
        """What SQLite's file says without its write-ahead log. Read before the row: neither mark goes back."""
        return said_by_file(await self._database.first_rows_of_file(*_QUERIES))

    def _sameness(
        self,
        row: Sequence[Any] | None,
        identity: StoreIdentity | None,
        alone: KnownStore | None,
        last: KnownStore | None,
    ) -> Sameness:
        # A row with any other fault is as one without a time.
        mark = row and (row[0] if row[0] == OF_A_COPY or _marks(row) else float("nan"))
        file = self._file or Path()
        kept = self._file is not None and os.access(file.parent, os.W_OK)
        return Sameness(mark, identity, alone, last, file, kept, self._known_here, self._database.is_sqlite)

    def _sentence(self, why: str) -> str:
        return f"{self._database.name}: the store {why}"

    def _move_on(self, alone: KnownStore | None, last: KnownStore | None, connection: Connection) -> _Change:
        """`alone` is what SQLite's file says, and `last` the relay's."""
        row, ours = self._row(connection, last)
        identity = read_identity(connection)
        why = self._sameness(row, identity, alone, last).why_another()
        now = self._clock()
        # A row that was broken reveals nothing, so nothing that was sealed before now is trusted.
        marks = (_marks(row) if row is not None else _Row(0.0, 0.0, now)) or _Row(0.0, now, now)
        latest = max(marks.mark, last.mark if last is not None else 0.0)
        # A store made anew has no mark: it is behind by no time that says anything.
        behind = round(latest - marks.mark) if why and marks.mark else None
        trusted_from = max(marks.trusted_from, now) if why else marks.trusted_from
        mark = max(now, latest + ONE_ON_S)
        past = min(max(now, marks.past - MOST_PAST_S), marks.past + MOST_PAST_S)
        after = _Row(mark, trusted_from, past) if ours else marks
        identity = self._identified(identity, last, why)
        if ours:
            connection.execute(_table.update().values(after._asdict()))
            write_identity(self._database, connection, identity)
        return _Change(why, behind, after, identity, ours)

    def _identified(self, identity: StoreIdentity | None, last: KnownStore | None, why: str) -> StoreIdentity:
        """The identity from now on: made if missing, with the doubt if there is one."""
        known = last.store_id if last is not None else ""
        if identity is None:
            fresh = known if known and not why else new_id()
            identity = StoreIdentity(fresh, secret_id=self.sealed_under)
        if why and known not in ("", identity.store_id):
            identity = identity._replace(former_id=known)
        for each in filter(None, (why, secret_missing(identity, self._secret_ids))):
            if (sentence := self._sentence(each)) not in identity.doubt:
                doubts = "; ".join(filter(None, (identity.doubt, sentence)))
                identity = identity._replace(doubt=doubts[:MAX_DOUBT])
        return identity

    def _row(self, connection: Connection, last: KnownStore | None) -> tuple[Sequence[Any] | None, bool]:
        """The row as it was, and whether it is locked for us. It need not be while another relay moves it on, which may
        be frozen.
        """
        free = connection.execute(_select.with_for_update(skip_locked=True)).one_or_none()
        if free is not None:
            return free, True
        taken = connection.execute(_select).one_or_none()
        if taken is not None and not self._sameness(taken, read_identity(connection), None, last).why_another():
            return taken, False
        # There is none, or the store is another one, which nobody else may know: now it is waited for.
        first = {"one": 1, "mark": 0.0, "trusted_from": 0.0, "past": self._clock()}
        made = connection.execute(self._database.insert(_table).values(first).on_conflict_do_nothing()).rowcount
        row = connection.execute(_select.with_for_update()).one()
        return (None if made else row), True

    def _tell_where_it_was_set(self) -> None:
        """Mail is put aside by a clock that is wrong, so somebody must hear of one that was or will be."""
        ahead = self._clock() - boot_time()
        if self._ahead is not None and abs(by := ahead - self._ahead) >= STEP_S:
            log.error("clock_was_set", by_s=round(by), meaning="see THREATS.md for what a wrong clock costs")
        self._ahead = ahead

    def _remembered(self) -> KnownStore | None:
        """What the file says, else what this process knows."""
        if self._file is None:
            return self._last
        file = self._file if self._file.exists() else self._file.with_name(FILE_BEFORE_SCHEMA_5)
        return remembered(file) or self._last

    def _begin(self) -> None:
        """Makes the file where it is missing; a relay that starts at the same time keeps the other's."""
        if self._file is not None and not self._known_here and self._last is None:
            with suppress(ConfigError):  # which writing it says
                secret_file.create(self._file, KnownStore(0.0, new_id()).as_text().encode())

    def _write(self, known: KnownStore) -> None:
        if self._file is None:
            return
        try:
            write_whole(self._file, known.as_text())
        except OSError as error:
            # No more than that: what follows destroys keys, and must not wait for a file.
            if not self._complained:
                log.warning("restore_check_not_written", file=str(self._file), cause=str(error))
            self._complained = True
        else:
            self._complained = False


def _read(connection: Connection) -> tuple[Sequence[Any] | None, StoreIdentity | None]:
    return connection.execute(_select).one_or_none(), read_identity(connection)
