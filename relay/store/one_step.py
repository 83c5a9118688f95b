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
_Compiled = tuple[str, list[Any]]
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
        self._compiled: dict[tuple[tuple[str, int], ...], _Compiled] = {}

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
        if lengths not in self._compiled:
            lists = {name: [_Given(name, at) for at in range(length)] for name, length in lengths}
            given = {name: _Given(name, 0) for name in parameters} | lists
            self._compiled[lengths] = _compiled(self.statement, given)
        text, values = self._compiled[lengths]
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
        self._compiled: dict[tuple[tuple[str, ...], int], _Compiled] = {}

    def run(self, driver: sqlite3.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """All of these have the columns of the first."""
        key = tuple(rows[0]), len(rows)
        if key not in self._compiled:
            given = [{name: _Given(name, at) for name in rows[0]} for at in range(len(rows))]
            self._compiled[key] = _compiled(self._statement.values(given))
        text, values = self._compiled[key]
        driver.execute(text, [rows[value.at][value.name] for value in values])


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


def _compiled(statement: Executable, given: Mapping[str, Any] | None = None) -> _Compiled:
    """As SQLite has it, with a place for each value of a list."""
    compiled = cast(SQLCompiler, cast(ClauseElement, statement).compile(dialect=sqlite.dialect()))
    state = compiled.construct_expanded_state(given)
    return state.statement, list(state.positional_parameters)
