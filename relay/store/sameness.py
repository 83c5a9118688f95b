"""Whether a store is the one that was: its random id and mark, compared with the file that each relay keeps of both.
What differs is doubt, in words, and stands in the store until an administrator accepts it.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Column, Connection, Integer, Table, Text, select

from relay.files.stamps import read_regular
from relay.store.database import Database, metadata

OF_A_COPY = -1.0
"""Sentinel for the mark of a copy: such a store counts as restored, whatever the file says."""
YEAR_10000 = 253_402_300_800.0
"""Seconds since 1970 that no clock has shown: a mark beyond could not be seen to move on."""
MAX_DOUBT = 1000
"""Maximum length of the doubt that is kept, in characters."""
ACCEPT = "qumail-relay store accept"
"""The command that ends the doubt."""

_table = Table(
    "store_identity",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),
    Column("store_id", Text, nullable=False),
    Column("former_id", Text, nullable=False),
    Column("secret_id", Text, nullable=False),
    Column("doubt", Text, nullable=False),
)
"""One row. `former_id` is the store that this one took the place of: a relay that was away may still remember it.

Each relay needs the secret `secret_id`. It is the newest at the first start, and again once all rows are resealed.
"""
_select = select(_table.c.store_id, _table.c.former_id, _table.c.secret_id, _table.c.doubt)


class StoreIdentity(NamedTuple):
    """The row."""

    store_id: str
    former_id: str = ""
    secret_id: str = ""
    doubt: str = ""


class KnownStore(NamedTuple):
    """What a relay's file says: the last mark in seconds since 1970, and the store's id, "" from an earlier release.

    A mark of 0 is written before the first row: no store was there yet.
    """

    mark: float
    store_id: str = ""

    def as_text(self) -> str:
        """The content of the file."""
        return f"{self.mark!r} {self.store_id}\n"


def new_id() -> str:
    """A random id of a store."""
    return secrets.token_hex(16)


def moment(value: object) -> float | None:
    """Seconds since 1970 that some clock may have shown; None for anything else, such as infinity."""
    return float(value) if isinstance(value, int | float) and 0.0 <= value < YEAR_10000 else None


def remembered(file: Path) -> KnownStore | None:
    """None if the file is missing, or says no moment. Blocks."""
    try:
        mark, _, store_id = read_regular(file).decode("ascii").strip().partition(" ")
        found = moment(float(mark))
    except (OSError, ValueError):
        return None
    return KnownStore(found, store_id) if found is not None else None


def read_identity(connection: Connection) -> StoreIdentity | None:
    """None where the store has none yet."""
    row = connection.execute(_select).one_or_none()
    return StoreIdentity(*row) if row is not None else None


def said_by_file(rows: Sequence[Sequence[object] | None] | None) -> KnownStore | None:
    """What the file alone says: the first rows of mark and identity; None where they are missing or say no moment."""
    marks, identity = rows or (None, None)
    if marks is None or identity is None:
        return None
    mark = OF_A_COPY if marks[0] == OF_A_COPY else moment(marks[0])
    return KnownStore(mark, str(identity[0])) if mark is not None else None


def write_identity(database: Database, connection: Connection, identity: StoreIdentity) -> None:
    """Makes or changes the row. All who change it hold the lock on the row of marks."""
    values = {"one": 1, **identity._asdict()}
    insert = database.insert(_table).values(values)
    connection.execute(insert.on_conflict_do_update(index_elements=["one"], set_=identity._asdict()))


class Sameness(NamedTuple):
    """What is compared; `mark` is the store's, before it is checked, None without a row.

    `alone` is what SQLite's file says without its write-ahead log, which may be that of the file that was there before.
    `last` is what the relay's `file` says, None if it is missing. `known_here` says that a relay has served from this
    directory before, and `kept` that such a relay can keep the file. Only one relay uses a store that is `embedded`.
    """

    mark: object
    identity: StoreIdentity | None
    alone: KnownStore | None
    last: KnownStore | None
    file: Path
    kept: bool
    known_here: bool
    embedded: bool

    def why_another(self) -> str:
        """Why the store is not the one that was, as the end of a sentence about it; "" if it is."""
        last = self.last if self.last is not None and self.last.mark else None
        if self.mark is None:
            if self.identity is not None:
                return "has lost its mark, and may be older than it was"
            if last is not None:
                return f"is empty, and {self.file} says that there was another one"
            return "is empty, and other files beside it say that a relay has served here" if self.known_here else ""
        if OF_A_COPY in (self.mark, self.alone and self.alone.mark):
            return "is a copy that `qumail-relay backup` or an upgrade has made"
        if (mark := moment(self.mark)) is None:
            return "has a mark that is no time: it is damaged, or was changed by hand"
        if last is None:
            # A store from before this release has no identity; where the file had no place then, it was never written.
            missing = self.identity is not None and self.kept and self.last is None
            if missing and (self.embedded or self.known_here):
                return f"may be any one: {self.file} is missing, which says which one was here"
            return ""
        known = self.identity[:2] if self.identity is not None else ()
        if last.store_id and not {last.store_id, self.alone.store_id if self.alone else last.store_id} <= {*known}:
            return "is another store than the one that was here"
        mark = min(mark, self.alone.mark) if self.alone is not None else mark
        return f"is older than what the relay knows, by {last.mark - mark:.0f} s" if mark < last.mark else ""


def secret_missing(identity: StoreIdentity | None, secret_ids: Sequence[str]) -> str:
    """Why what the store has sealed cannot be opened with these secrets, as the end of a sentence; "" if it can."""
    if identity is None or not identity.secret_id or identity.secret_id in secret_ids:
        return ""
    return f"was sealed under site secret {identity.secret_id}, which this relay lacks"
