"""Bulk statements for SQLite's own driver, with many rows in one step.
Standard: each step releases the interpreter lock and waits to get it back, which is expensive for single rows in a busy
relay. On a server they run through SQLAlchemy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from sqlalchemy import Column, Connection, Executable
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import ClauseElement

if TYPE_CHECKING:
    from relay.store.database import Insert

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
        """The result rows."""
        if connection.dialect.name != "sqlite":
            return list(connection.execute(self.statement, parameters))
        return self._run(connection, parameters).fetchall()

    def changed(self, connection: Connection, **parameters: Any) -> int:
        """The number of changed rows."""
        if connection.dialect.name != "sqlite":
            return connection.execute(self.statement, parameters).rowcount
        return self._run(connection, parameters).rowcount

    def _run(self, connection: Connection, parameters: Mapping[str, Any]) -> sqlite3.Cursor:
        lengths = tuple((name, len(value)) for name, value in parameters.items() if isinstance(value, list))
        if lengths not in self._expanded:
            lists = {name: [_Given(name, at) for at in range(length)] for name, length in lengths}
            given = {name: _Given(name, 0) for name in parameters} | lists
            # Compiled once: that takes longer than running it.
            statement = cast(ClauseElement, self.statement)
            self._compiled = self._compiled or cast(SQLCompiler, statement.compile(dialect=sqlite.dialect()))
            state = self._compiled.construct_expanded_state(given)
            self._expanded[lengths] = state.statement, list(state.positional_parameters)
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
    """Inserts rows that do not exist yet."""

    def __init__(self, key: Column[Any], returning: Executable) -> None:
        """`key` is the primary key; `returning` is an INSERT that leaves alone what is there and returns the others."""
        self._key = key
        self._returning = returning

    def add(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> set[Any]:
        """Inserts rows; returns the keys of new ones."""
        if connection.dialect.name != "sqlite":
            return set(connection.scalars(self._returning, list(rows))) if rows else set()
        name, added = self._key.name, set[Any]()
        for some in steps(rows):
            try:
                _insert(connection, self._key.table.name, some)
                added.update([row[name] for row in some])
            except sqlite3.IntegrityError:  # one of them exists, and nothing was inserted
                added.update(connection.scalars(self._returning, list(some)))
        return added


class PutRows:
    """Inserts or updates rows."""

    def __init__(self, insert: Insert, key: str, newer: Sequence[str]) -> None:
        """`key` is the primary key; of existing rows, the `newer` columns are updated."""
        self._table = insert.table.name
        self._statement = insert.on_conflict_do_update(
            index_elements=[key], set_={name: insert.excluded[name] for name in newer}
        )
        self._end = f" ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in newer)}"

    def put(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes all rows."""
        if connection.dialect.name != "sqlite":
            if rows:
                connection.execute(self._statement, list(rows))
            return
        for some in steps(rows):
            _insert(connection, self._table, some, self._end)


def _insert(connection: Connection, table: str, rows: Sequence[Mapping[str, Any]], end: str = "") -> None:
    """Adds rows, all of which have the columns of the first."""
    columns = tuple(rows[0])
    text = _insert_text(table, columns, len(rows), end)
    driver_of(connection).execute(text, [row[name] for row in rows for name in columns])


@lru_cache
def _insert_text(table: str, columns: tuple[str, ...], rows: int, end: str) -> str:
    one = f"({', '.join('?' * len(columns))})"
    # No name comes from outside.
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([one] * rows)}{end}"  # noqa: S608


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
    """The driver's connection, to bypass SQLAlchemy."""
    return cast(sqlite3.Connection, connection.connection.driver_connection)
