"""The last sets of policies that were in force, so that one can be served again or compared: a file of SQLite.
Standard: SQLite's rollback journal; a set is stored completely or not at all, and sets share what they have in common.

The file's sticky bit says that a newer set came into force and could not be kept: a full disk has room for that.

Each file is stored with the numbers of two sets: the first that has this text, and the first without it. What is to
be recorded of a set is stored until it is in the audit record.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from relay.config import Config
from relay.errors import ConfigError
from relay.files import write_whole
from relay.files.sqlite import connected, make_sqlite_file
from relay.files.stamps import read_regular
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder
from relay.policy.step import Edits, SetFiles, SetStep
from relay.policy.walk import digest_of

KEPT_POLICIES = "policies.kept"
"""Name of the directory, in the state directory."""
MAX_SETS = 4
"""Maximum number of sets kept: that in force, and those with which it may still be compared for the audit record."""
FORMAT = 2
_IN_FORCE = ".in-force"
"""Ending of the file that says which set all processes of the relay go by."""

_TABLES = (
    "CREATE TABLE files (name TEXT, since INTEGER, until INTEGER, text BLOB)",
    "CREATE UNIQUE INDEX of_now ON files (name) WHERE until IS NULL",
    "CREATE INDEX of_before ON files (until) WHERE until IS NOT NULL",
    "CREATE TABLE sets (number INTEGER PRIMARY KEY, version TEXT, directory TEXT, step TEXT)",
    "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT)",
    f"PRAGMA user_version = {FORMAT}",
)
_OF_SET = "since <= :number AND (until IS NULL OR until > :number)"


class KeptSet(NamedTuple):
    """The key of one kept set."""

    number: int
    version: str
    directory: str


class KeptTexts(NamedTuple):
    """The files of a kept set, each with its name and its text in UTF-8."""

    version: str
    files: list[tuple[str, bytes]]

    def read(self, folder: PolicyFolder) -> PolicySet:
        """The set, read into an empty folder; raises ConfigError if its version differs."""
        try:
            policies = folder.read_texts((name, bytes(text).decode()) for name, text in self.files)
        except (UnicodeDecodeError, TypeError) as error:
            raise ConfigError(f"{folder.directory}: not the texts that were kept") from error
        if policies.version != self.version:
            raise ConfigError(f"{folder.directory}: not the whole of the set of this version")
        return policies


def kept_file(config: Config) -> Path:
    """Returns the file of kept sets: one for each audit record, which is the history of one relay."""
    of = hashlib.sha256(os.fsencode(config.audit_directory.absolute())).hexdigest()[:8]
    return config.state_directory / KEPT_POLICIES / f"{of}.db"


def text_of_path(path: Path) -> str:
    """A path as stored: a name need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class KeptSets:
    """The file of kept sets; each method opens it, so any thread of any process may call them.

    All of them block, and raise sqlite3.Error and OSError.
    """

    def __init__(self, file: Path) -> None:
        """Does not create the file yet."""
        self.file = file

    @contextmanager
    def writing(self) -> Iterator[KeptTransaction]:
        """A write transaction."""
        with closing(self._made()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield KeptTransaction(connection)
            except BaseException:
                with suppress(sqlite3.Error):  # a full disk has ended it already
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def last(self, transaction: KeptTransaction, directory: Path) -> KeptSet | None:
        """The set that was in force last, if it is one of this directory; raises ConfigError if it is not kept."""
        if self.file.stat().st_mode & stat.S_ISVTX:
            raise ConfigError(f"{self.file}: the set in force last could not be kept there")
        newest = transaction.newest
        return newest if newest is not None and newest.directory == text_of_path(directory) else None

    def mark(self, *, behind: bool) -> None:
        """Sets or clears the mark that a newer set came into force than the kept ones."""
        with suppress(FileNotFoundError, NotADirectoryError):
            self.file.chmod(0o600 | (stat.S_ISVTX if behind else 0))

    @property
    def in_force(self) -> str:
        """The version by which all processes of the relay went last."""
        return read_regular(self.file.with_suffix(_IN_FORCE)).decode("ascii", "replace")

    def set_in_force(self, version: str) -> None:
        """Says that all processes of the relay go by this set."""
        write_whole(self.file.with_suffix(_IN_FORCE), version)

    def discard(self) -> None:
        """Deletes the file if it is unusable."""
        self.file.unlink(missing_ok=True)
        self.file.with_name(f"{self.file.name}-journal").unlink(missing_ok=True)

    @contextmanager
    def reading(self) -> Iterator[KeptTransaction]:
        """A consistent read; raises FileNotFoundError if nothing is kept yet."""
        self.file.stat()
        with closing(connected(self.file)) as connection:
            connection.execute("BEGIN")
            yield KeptTransaction(connection)

    def _made(self) -> sqlite3.Connection:
        """The open file; created if missing, replaced if it has another format."""
        for _ in range(2):
            make_sqlite_file(self.file)
            connection = connected(self.file)
            try:
                if _prepared(connection):
                    return connection
            except sqlite3.Error:
                connection.close()
                raise
            connection.close()
            self.discard()
        raise sqlite3.OperationalError("it cannot be made anew")


def _prepared(connection: sqlite3.Connection) -> bool:
    """Whether the file has our tables; creates them in an empty file."""
    [found] = connection.execute("PRAGMA user_version").fetchone()
    if not found and not connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        connection.execute("PRAGMA auto_vacuum = FULL")
        connection.execute("BEGIN IMMEDIATE")
        for each in _TABLES:
            connection.execute(each)
        connection.execute("COMMIT")
        found = FORMAT
    return bool(found == FORMAT)


class KeptTransaction:
    """The contents of the file, within one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    # --- sets -----------------------------------------------------------------------------------------------------

    @property
    def newest(self) -> KeptSet | None:
        """The kept set that came into force last."""
        found = self._connection.execute("SELECT number, version, directory FROM sets ORDER BY number DESC LIMIT 1")
        return next((KeptSet(*row) for row in found), None)

    def sets(self) -> list[KeptSet]:
        """The sets of which all files are kept, the newest first."""
        rows = self._connection.execute(
            "SELECT number, version, directory FROM sets WHERE number > ? ORDER BY number DESC",
            (self.newest.number - MAX_SETS if self.newest is not None else 0,),
        )
        return [KeptSet(*row) for row in rows]

    def texts(self, kept: KeptSet) -> KeptTexts:
        """The files of a set, to be parsed after this transaction."""
        rows = self._connection.execute(f"SELECT name, text FROM files WHERE {_OF_SET}", {"number": kept.number})  # noqa: S608
        return KeptTexts(kept.version, rows.fetchall())

    def digests(self, number: int) -> Iterator[tuple[str, int]]:
        """The names of the files of a set, each with the SHA-256 of name and text."""
        rows = self._connection.execute(f"SELECT name, text FROM files WHERE {_OF_SET}", {"number": number})  # noqa: S608
        return ((name, digest_of(name, bytes(text))) for name, text in rows)

    def names(self) -> Iterator[str]:
        """The names of all files of all sets."""
        return (name for (name,) in self._connection.execute("SELECT DISTINCT name FROM files"))

    def edits(self, now: SetFiles) -> Edits:
        """The differences between the newest kept set and another one."""
        return now.edits(dict(self.digests(newest.number)) if (newest := self.newest) is not None else {})

    def put(
        self, now: SetFiles, edits: Edits, directory: Path, step: SetStep | None, text_of: Callable[[str], str]
    ) -> None:
        """Keeps a set, given its edits since the newest one, and what is to be recorded of it.

        `text_of` gives the text of a file of this name, and may raise ConfigError.
        """
        newest = self.newest
        number = newest.number + 1 if newest is not None else 1
        gone = ((number, name) for names in (edits.changed, edits.removed) for name in names)
        self._connection.executemany("UPDATE files SET until = ? WHERE name = ? AND until IS NULL", gone)
        rows = ((name, text_of(name).encode(), number) for names in (edits.added, edits.changed) for name in names)
        self._connection.executemany("INSERT INTO files (name, text, since) VALUES (?, ?, ?)", rows)
        self._connection.execute(
            "INSERT INTO sets (number, version, directory, step) VALUES (?, ?, ?, ?)",
            (number, now.policies.version, text_of_path(directory), step.as_json() if step is not None else None),
        )
        self._prune(number)

    def moved(self, number: int, directory: Path) -> None:
        """Sets the directory of this set."""
        self._connection.execute(
            "UPDATE sets SET directory = ? WHERE number = ? AND directory != ?",
            (text_of_path(directory), number, text_of_path(directory)),
        )

    def _prune(self, newest: int) -> None:
        """Deletes all but the last sets; a set that is still to be recorded keeps its row."""
        first = newest - MAX_SETS + 1
        self._connection.execute("DELETE FROM files WHERE until <= ?", (first,))
        self._connection.execute("DELETE FROM sets WHERE number < ? AND step IS NULL", (first,))

    # --- what is to be recorded -------------------------------------------------------------------------------------

    def steps(self) -> list[tuple[KeptSet, SetStep]]:
        """The sets that are not known to be recorded, the oldest first."""
        rows = self._connection.execute(
            "SELECT number, version, directory, step FROM sets WHERE step IS NOT NULL ORDER BY number"
        )
        return [(KeptSet(number, version, where), SetStep.from_json(step)) for number, version, where, step in rows]

    def recorded(self, step: SetStep) -> None:
        """Marks a step as recorded in the audit record."""
        self._connection.execute("UPDATE sets SET step = NULL WHERE step = ?", (step.as_json(),))

    def state(self, name: str) -> str | None:
        """The stored value of this name."""
        found = self._connection.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else None

    def set_state(self, name: str, value: str) -> None:
        """Stores a value for the next process."""
        self._connection.execute("INSERT OR REPLACE INTO state (name, value) VALUES (?, ?)", (name, value))
