"""Statements of SQLAlchemy that SQLite's own driver runs, about any number of rows in one step.
Standard: each step lets other threads go on, and waits until it may go on itself: a busy relay's store would do little
else if there were one for each row. On a server they run as SQLAlchemy has them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import Column, Connection, Executable, Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

STEPS = (500, 64, 16)
"""Numbers of rows in one step; the last step has fewer. There is a statement for each number, and the driver keeps
those that it has prepared."""

_Row = TypeVar("_Row")


class OneStep:
    """A statement with parameters by name, of which those that are `bindparam(..., expanding=True)` are lists."""

    def __init__(self, statement: Executable) -> None:
        """Its parameters are bytes, text and numbers, which the driver takes as they are."""
        self.statement = statement
        self._compiled: tuple[str, Sequence[str], Mapping[str, Any]] | None = None

    def rows(self, connection: Connection, **parameters: Any) -> list[Any]:
        """What it gives."""
        if connection.dialect.name != "sqlite":
            return list(connection.execute(self.statement, parameters))
        return self._run(connection, parameters).fetchall()

    def changed(self, connection: Connection, **parameters: Any) -> int:
        """How many rows it has changed."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, parameters).rowcount
        return self._run(connection, parameters).rowcount

    def _run(self, connection: Connection, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
        if self._compiled is None:
            compiled = _compiled(self.statement)
            self._compiled = compiled.string, compiled.positiontup or (), compiled.params
        text, names, usual = self._compiled
        values: list[Any] = []
        for name in names:
            value = parameters[name] if name in parameters else usual[name]
            if isinstance(value, list):
                text = text.replace(f"(__[POSTCOMPILE_{name}])", f"({', '.join('?' * len(value))})")
                values += value
            else:
                values.append(value)
        return driver_of(connection).execute(text, values)


class InsertNew:
    """Adds rows to a table where there are none."""

    def __init__(self, key: Column[Any], returning: Executable) -> None:
        """`key` is the primary key; `returning` is an INSERT that leaves alone what is there and returns the others."""
        self._table: Table = key.table
        self._key = key
        self._returning = returning
        self._texts: dict[tuple[tuple[str, ...], int], str] = {}

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[Any]:
        """The keys of those that were added."""
        if connection.dialect.name != "sqlite":
            return set(connection.scalars(self._returning, list(rows))) if rows else set()
        driver, name, added = driver_of(connection), self._key.name, set[Any]()
        for some in steps(rows):
            names = tuple(some[0])
            try:
                driver.execute(self._text(names, len(some)), [row[each] for row in some for each in names])
                added.update([row[name] for row in some])
            except sqlite3.IntegrityError:  # one of them is there, and nothing was added
                added.update(connection.scalars(self._returning, list(some)))
        return added

    def _text(self, names: tuple[str, ...], rows: int) -> str:
        if (names, rows) not in self._texts:
            self._texts[names, rows] = _with_rows(_compiled(sqlite.insert(self._table), names).string, names, rows)
        return self._texts[names, rows]


class PutRows:
    """Puts rows into a table, over what is there."""

    def __init__(self, statement: Executable) -> None:
        """An INSERT that says what becomes of a row which is there; it has no values but those of the rows."""
        self._statement = statement
        self._texts: dict[tuple[tuple[str, ...], int], str] = {}

    def put(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """All of these."""
        if connection.dialect.name != "sqlite":
            if rows:
                connection.execute(self._statement, list(rows))
            return
        driver = driver_of(connection)
        for some in steps(rows):
            names = tuple(some[0])
            driver.execute(self._text(names, len(some)), [row[each] for row in some for each in names])

    def _text(self, names: tuple[str, ...], rows: int) -> str:
        if (names, rows) not in self._texts:
            self._texts[names, rows] = _with_rows(_compiled(self._statement, names).string, names, rows)
        return self._texts[names, rows]


def steps(rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
    """The rows in order, as many at a time as are in one step."""
    start = 0
    for size in STEPS:
        while len(rows) - start >= size:
            yield rows[start : start + size]
            start += size
    if start < len(rows):
        yield rows[start:]


def driver_of(connection: Connection) -> sqlite3.Connection:
    """The driver's own connection, which is spared the way through SQLAlchemy."""
    return cast(sqlite3.Connection, connection.connection.driver_connection)


def _compiled(statement: Executable, columns: Iterable[str] | None = None) -> SQLCompiler:
    names: Collection[str] | None = list(columns) if columns is not None else None
    return cast(SQLCompiler, cast(ClauseElement, statement).compile(dialect=sqlite.dialect(), column_keys=names))


def _with_rows(text: str, names: Sequence[str], rows: int) -> str:
    """An INSERT of one row, as one of so many."""
    one = f"({', '.join('?' * len(names))})"
    before, values, after = text.partition(f" VALUES {one}")
    assert values  # noqa: S101 - SQLAlchemy writes it so
    return f"{before} VALUES {', '.join([one] * rows)}{after}"
