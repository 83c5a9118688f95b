"""Notices that the store was restored from an older copy: what came since then is forgotten, and could be replayed.
A mark that only moves on, in the store and in a file beside the site's secret; the file is written second.

Where store and file are set back together, as with a whole machine, nothing is noticed. A copy that backup.py has made
carries a mark of its own, and is noticed. Clocks are changed now and then, a week ahead by mistake and back again. So
what is forgotten by time is forgotten by a time that follows slowly.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import structlog
from sqlalchemy import Column, Connection, Double, Integer, Table, select

from relay.files import write_whole
from relay.files.stamps import read_regular
from relay.runtime.aio import boot_time
from relay.store.database import Database, metadata, to_its_end

log = structlog.get_logger(__name__)

MOST_PAST_S = 600.0
"""Maximum time that counts as passed between two restore checks, in seconds, in either direction."""
STEP_S = 60.0
"""Minimum clock step that is reported, in seconds."""
ONE_ON_S = 1.0
"""The mark moves on by this where the clock is behind it: a copy of the store must be older than what came after it."""
OF_A_COPY = -1.0
"""Sentinel for the mark of a copy: such a store counts as restored, whatever the file beside the secret says."""
YEAR_10000 = 253_402_300_800.0
"""Seconds since 1970 that no clock has shown: a mark beyond could not be seen to move on."""

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
    moments = [_moment(each) for each in row]
    marks = [each for each in moments if each is not None]
    return _Row(*marks) if len(marks) == len(moments) else None


def _moment(value: object) -> float | None:
    """Seconds since 1970 that some clock may have shown; None for anything else, such as infinity."""
    return float(value) if isinstance(value, int | float) and 0.0 <= value < YEAR_10000 else None


class RestoreCheck:
    """The mark of one store as one relay sees it; all relays of a site share the row, each has a file of its own."""

    def __init__(self, database: Database, file: Path | None, clock: Callable[[], float]) -> None:
        """Without a `file` nothing is noticed. `clock` gives seconds since 1970."""
        self._database = database
        self._file = file
        self._clock = clock
        self._complained = False
        self._ahead: float | None = None
        self.trusted_from = 0.0
        """Seconds since 1970: of what was sealed earlier, the store may have forgotten that it was delivered."""
        self.past = 0.0
        """Seconds since 1970, past beyond doubt: a clock that is ahead for a while must not have all forgotten.

        One that is behind for a while must not have all kept: it does not go back fast either.
        """

    @to_its_end
    async def load(self) -> None:
        """Reads what is known, without moving the mark on. Raises StoreUnavailable."""
        row = await self._database.reading(lambda connection: connection.execute(_select).one_or_none())
        if row is not None:
            marks = _marks(row)
            self.trusted_from = marks.trusted_from if marks is not None else self._clock()

    @to_its_end
    async def go_on(self) -> None:
        """Moves the mark on, and notices a store that is behind the file. Raises StoreUnavailable.

        While another relay moves it on, that counts for all, and this one only looks.

        Where no file can be written (the secret is a systemd credential) a restored store is not noticed, and the log
        says so.
        """
        self._tell_where_it_was_set()
        last = await asyncio.to_thread(self._read)
        before, now, ours = await self._database.writing(partial(self._move_on, last))
        self.trusted_from, self.past = now.trusted_from, now.past
        if before is None or before.mark < last:
            # A store made anew has no mark: it is behind by no time that says anything.
            behind = round(last - before.mark) if before is not None and before.mark else None
            log.error("store_restored", store=self._database.name, behind_s=behind)
        if ours:
            # Second: a file that is ahead of the store for any other reason would cost mail its way to the mailbox.
            await asyncio.to_thread(self._write, now.mark)

    def _move_on(self, last: float, connection: Connection) -> tuple[_Row | None, _Row, bool]:
        """The row as it was, as it is, and whether we wrote it; `last` is what the file says."""
        before, ours = self._row(connection, last)
        now = self._clock()
        restored = before is None or before.mark < last
        # A row that was broken reveals nothing, so nothing that was sealed before now is trusted.
        marks = before or _Row(0.0, now, now)
        trusted_from = max(marks.trusted_from, now) if restored else marks.trusted_from
        mark = max(now, max(marks.mark, last) + ONE_ON_S)
        past = min(max(now, marks.past - MOST_PAST_S), marks.past + MOST_PAST_S)
        after = _Row(mark, trusted_from, past)
        if ours:
            connection.execute(_table.update().values(after._asdict()))
        return before, after, ours

    def _row(self, connection: Connection, last: float) -> tuple[_Row | None, bool]:
        """What the row says, and whether it is locked for us; it need not be while another relay, which may
        be frozen, moves it on. None: it was broken."""
        free = connection.execute(_select.with_for_update(skip_locked=True)).one_or_none()
        if free is not None:
            return _marks(free), True
        taken = connection.execute(_select).one_or_none()
        if taken is not None and (marks := _marks(taken)) is not None and marks.mark >= last:
            return marks, False
        # There is none, or the store was restored, which nobody else may know: now it is waited for.
        first = {"one": 1, "mark": 0.0, "trusted_from": 0.0, "past": self._clock()}
        connection.execute(self._database.insert(_table).values(first).on_conflict_do_nothing())
        return _marks(connection.execute(_select.with_for_update()).one()), True

    def _tell_where_it_was_set(self) -> None:
        """Mail is put aside by a clock that is wrong, so somebody must hear of one that was or will be."""
        ahead = self._clock() - boot_time()
        if self._ahead is not None and abs(by := ahead - self._ahead) >= STEP_S:
            log.error("clock_was_set", by_s=round(by), meaning="see THREATS.md for what a wrong clock costs")
        self._ahead = ahead

    def _read(self) -> float:
        if self._file is None:
            return 0.0
        file = self._file if self._file.exists() else self._file.with_name(FILE_BEFORE_SCHEMA_5)
        try:
            return _moment(float(read_regular(file))) or 0.0
        except (OSError, ValueError):
            return 0.0

    def _write(self, mark: float) -> None:
        if self._file is None:
            return
        try:
            write_whole(self._file, repr(mark))
        except OSError as error:
            # No more than that: what follows destroys keys, and must not wait for a file.
            if not self._complained:
                log.warning("restore_check_not_written", file=str(self._file), cause=str(error))
            self._complained = True
        else:
            self._complained = False
