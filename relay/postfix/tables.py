"""Reads the tables of a Postfix configuration, and records the unreadable ones, whose effect is unknown.
Standard: postmap(1) and postalias(1), -s and -q; access(5) and aliases(5) for the form of texts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from relay.errors import ConfigError
from relay.files import permissions
from relay.postfix.settings import command, split_list

SEQUENTIAL_TABLES = ("hash", "btree", "lmdb", "cdb", "dbm", "texthash", "inline")
"""Types of tables that can be listed."""
TEXT_TABLES = ("regexp", "pcre", "cidr")
"""Types that are text files, or inline in the setting."""
ANSWERS, COMBINED = ("static", "randmap"), ("pipemap", "unionmap")
"""Types with inline answers, and types made of other tables."""
INDEXES = {"hash": ".db", "btree": ".db", "lmdb": ".lmdb", "cdb": ".cdb", "dbm": ".pag"}
"""Suffix of the file that Postfix reads, by type."""
_TABLE = re.compile(r"\b([a-z]+):(/[^\s,}]+)")
MAX_READ = 10_000_000
"""Maximum number of characters read from a table file."""


class Tables:
    """The tables of one Postfix; `unread` maps unreadable ones to the cause, `files` are those read as text.

    `asks_servers` are those of `unread` that no file permission makes readable.
    """

    def __init__(self, directory: Path, unlisted: Sequence[str] = ()) -> None:
        """`directory` contains main.cf; `unlisted` are tables that cannot be listed and that the administrator vouches
        for.
        """
        self._directory = directory
        self._unlisted = unlisted
        self.unread: dict[str, str] = {}
        self.asks_servers: set[str] = set()
        self.files: set[Path] = set()

    async def listed(self, table: str, program: str = "postmap") -> str | None:
        """The whole table, as a line `key<tab>value` for each entry; None if it cannot be listed."""
        bare = table.removeprefix("proxy:")
        kind, _, name = bare.partition(":")
        if kind not in SEQUENTIAL_TABLES:
            return None
        try:
            return (await command(program, self._directory, "-s", bare))[0]
        except ConfigError as error:
            self._note(table, str(error), Path(f"{name}{INDEXES.get(kind, '')}"))
            return None

    async def text(self, table: str) -> str:
        """The table's text; "" if it cannot be read or listed, which is recorded."""
        kind, _, name = table.removeprefix("proxy:").partition(":")
        if kind in TEXT_TABLES:
            return name if name.startswith("{") else self.file(Path(name), table)
        if kind in ANSWERS:
            return name
        if kind in COMBINED:
            return "\n".join([await self.text(each) for each in split_list(name[1:-1])])
        if kind not in SEQUENTIAL_TABLES and table not in self._unlisted:
            self.unread[table] = f"a table of the kind {kind} cannot be listed"
            self.asks_servers.add(table)
        return await self.listed(table) or ""

    async def look_up(self, table: str, key: str) -> str:
        """The table's value for this key; "" if it has none, or is unreadable."""
        kind, _, name = table.removeprefix("proxy:").partition(":")
        if kind in TEXT_TABLES and not name.startswith("{") and not os.access(name, os.R_OK, effective_ids=True):
            self.file(Path(name), table)
            return ""
        try:
            return (await command("postmap", self._directory, "-q", key, table))[0]
        except ConfigError as error:
            if "fatal: " in str(error):  # without this word the key is just missing
                self._note(table, str(error), Path(f"{name}{INDEXES.get(kind, '')}"))
            return ""

    async def answers(self, table: str, keys: Sequence[str]) -> dict[str, str]:
        """The table's values for those of the keys that it has; empty if it is unreadable, or queries a server."""
        kind = table.removeprefix("proxy:").partition(":")[0]
        if kind not in (*TEXT_TABLES, *SEQUENTIAL_TABLES, *ANSWERS, *COMBINED):
            return {}
        said = "".join(f"{key}\n" for key in keys)
        try:
            found, _ = await command("postmap", self._directory, "-q", "-", table.removeprefix("proxy:"), said=said)
        except ConfigError as error:
            if "fatal: " in str(error):  # as above
                self._note(table, str(error), Path(table.partition(":")[2]))
            return {}
        return dict(pair for pair in (line.split("\t", 1) for line in found.splitlines()) if len(pair) == 2)

    def file(self, path: Path, table: str) -> str:
        """The beginning of a table's file; "" if unreadable."""
        self.files.add(path)
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                return file.read(MAX_READ)
        except OSError as error:
            self._note(table, permissions.cause(path, error), path)
        except ValueError as error:
            self._note(table, str(error), path)
        return ""

    def _note(self, table: str, said: str, path: Path) -> None:
        denial = permissions.denial_at(path)
        self.unread[table] = str(denial) if denial is not None else " ".join(said.split())


def files_of(values: Iterable[str]) -> Iterator[Path]:
    """The files of all tables in these settings, with their indexes."""
    for value in values:
        for kind, name in _TABLE.findall(value):
            yield Path(name)
            if suffix := INDEXES.get(kind):
                yield Path(f"{name}{suffix}")


def logical_lines(text: str) -> list[str]:
    """The logical lines of a table, with continuation lines joined (access(5))."""
    return re.sub(r"\n[ \t]", " ", text).split("\n")
