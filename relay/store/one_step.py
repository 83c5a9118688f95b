"""Statements of SQLAlchemy that SQLite's own driver runs, about any number of rows in one step.
Standard: each step lets other threads go on, and waits until it may go on itself: a busy relay's store would do little
else if there were one for each row. On a server they run as SQLAlchemy has them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import Column, Connection, Executable, Insert
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

STEPS = (500, 64, 16)
"""Numbers of rows in one step; the last step has fewer. There is a statement for each number, and the driver keeps
those that it has prepared."""

_Row = TypeVar("_Row")
_Expanded = tuple[str, list[Any]]
"""The text, and what stands in each place: a `_Given`, or a value that is always the same."""


@dataclass(frozen=True, slots=True)
class _Given:
    """Stands for a value while a statement is compiled: that of a parameter or column, and where in the list."""

    name: str
    at: int


class OneStep:
    """A statement with parameters by name, of which those that are `bindparam(..., expanding=True)` are lists."""

    def __init__(self, statement: Executable) -> None:
        """Its parameters are bytes, text and numbers, which the driver takes as they are."""
        self.statement = statement
        self._compiled: SQLCompiler | None = None
        self._expanded: dict[tuple[tuple[str, int], ...], _Expanded] = {}

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
        lengths = tuple((name, len(value)) for name, value in parameters.items() if isinstance(value, list))
        if lengths not in self._expanded:
            lists = {name: [_Given(name, at) for at in range(length)] for name, length in lengths}
            given = {name: _Given(name, 0) for name in parameters} | lists
            self._compiled = self._compiled or _compiled(self.statement)
            self._expanded[lengths] = _expanded(self._compiled, given)
        text, values = self._expanded[lengths]
        return driver_of(connection).execute(
            text,
            [
                value
                if not isinstance(value, _Given)
                else known[value.at]
                if isinstance(known := parameters[value.name], list)
                else known
                for value in values
            ],
        )


class InsertNew:
    """Adds rows to a table where there are none."""

    def __init__(self, key: Column[Any], returning: Executable) -> None:
        """`key` is the primary key; `returning` is an INSERT that leaves alone what is there and returns the others."""
        self._key = key
        self._returning = returning
        self._insert = _InsertOfRows(sqlite.insert(key.table))

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[Any]:
        """The keys of those that were added."""
        if connection.dialect.name != "sqlite":
            return set(connection.scalars(self._returning, list(rows))) if rows else set()
        driver, name, added = driver_of(connection), self._key.name, set[Any]()
        for some in steps(rows):
            try:
                self._insert.run(driver, some)
                added.update([row[name] for row in some])
            except sqlite3.IntegrityError:  # one of them is there, and nothing was added
                added.update(connection.scalars(self._returning, list(some)))
        return added


class PutRows:
    """Puts rows into a table, over what is there."""

    def __init__(self, statement: Insert) -> None:
        """An INSERT that says what becomes of a row which is there; it has no values but those of the rows."""
        self._statement = statement
        self._insert = _InsertOfRows(statement)

    def put(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """All of these."""
        if connection.dialect.name != "sqlite":
            if rows:
                connection.execute(self._statement, list(rows))
            return
        for some in steps(rows):
            self._insert.run(driver_of(connection), some)


class _InsertOfRows:
    """An INSERT of one number of rows after the other."""

    def __init__(self, statement: Insert) -> None:
        self._statement = statement
        self._of_one: dict[tuple[str, ...], _Expanded] = {}
        self._texts: dict[tuple[tuple[str, ...], int], str] = {}

    def run(self, driver: sqlite3.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """All of these have the columns of the first."""
        columns = tuple(rows[0])
        if columns not in self._of_one:
            given = {name: _Given(name, 0) for name in columns}
            self._of_one[columns] = _expanded(_compiled(self._statement.values(given)))
        text, values = self._of_one[columns]
        if (columns, len(rows)) not in self._texts:
            self._texts[columns, len(rows)] = _with_rows(text, len(values), len(rows))
        driver.execute(self._texts[columns, len(rows)], [row[value.name] for row in rows for value in values])


def _with_rows(insert: str, columns: int, rows: int) -> str:
    """An INSERT of one row with this number of columns, as one of many rows."""
    one = f"({', '.join('?' * columns)})"
    begin, values, end = insert.partition(f"VALUES {one}")
    assert values and "?" not in begin + end  # noqa: S101 - so SQLAlchemy writes it; the tables have no other value
    return f"{begin}VALUES {', '.join([one] * rows)}{end}"


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


def _compiled(statement: Executable) -> SQLCompiler:
    """As SQLite has it. That takes longer than to run it."""
    return cast(SQLCompiler, cast(ClauseElement, statement).compile(dialect=sqlite.dialect()))


def _expanded(compiled: SQLCompiler, given: Mapping[str, Any] | None = None) -> _Expanded:
    """The statement with a place for each value of a list."""
    state = compiled.construct_expanded_state(given)
    return state.statement, list(state.positional_parameters)
