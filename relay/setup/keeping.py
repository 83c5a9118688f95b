"""Carries an administrator's additions to relay.toml over into the new one that setup writes.
Standard: TOML 1.0. Tables and settings that are not setup's stay as written, including comments.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from relay.config import load_config
from relay.errors import ConfigError

Name = tuple[str, ...]
"""The names in a table's header; () for the lines before the first table."""
OWN: dict[Name, frozenset[str]] = {
    ("site",): frozenset({"name", "domains", "sae_id"}),
    ("outgoing",): frozenset({"lmtp", "listen", "milter", "next_hop"}),
    ("incoming",): frozenset({"lmtp", "listen", "milter", "next_hop"}),
    ("policies",): frozenset({"directory"}),
    ("store",): frozenset({"database", "secret"}),
    ("identity",): frozenset({"directory", "peers_directory"}),
    ("alarms",): frozenset({"mail_to"}),
    ("status",): frozenset({"listen"}),
    ("postfix",): frozenset({"directory"}),
    ("kmes", "kme"): frozenset({"url", "group", "ca", "certificate", "key"}),
}
"""The tables that setup writes, and their settings that setup determines."""


@dataclass
class _Block:
    """A table: its header and settings, each with the comments above."""

    name: Name
    head: str
    settings: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        return self.head + "".join(text for _, text in self.settings)


def with_what_was_added(path: Path, text: str, former: str) -> str:
    """The new `text` of relay.toml at `path`, plus the additions of the `former` one.

    Raises ConfigError if the result is invalid.
    """
    try:
        new, old = list(_blocks(text)), list(_blocks(former))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not TOML ({error}), so nothing of it can be kept: move it away first") from error
    by_name = {block.name: block for block in new}
    added = ""
    for block in old:
        if block.name not in OWN and block.name:
            added += f"\n{str(block).strip(chr(10))}\n"
        elif (existing := by_name.get(block.name)) is not None:
            own = OWN.get(block.name, frozenset())
            own = own | {name for name, _ in existing.settings}
            existing.settings += [(name, each) for name, each in block.settings if name and name not in own]
    whole = "".join(map(str, new)) + added
    try:
        load_config(path, whole)
    except ConfigError as error:
        raise ConfigError([f"with what was added to it before: {each}" for each in error.problems]) from error
    return whole


def _blocks(text: str) -> Iterator[_Block]:
    """The tables in order, first the lines before them. Raises TOMLDecodeError."""
    block, piece = _Block((), ""), ""
    for line in text.splitlines(keepends=True):
        piece += line
        try:
            said = tomllib.loads(piece)
        except tomllib.TOMLDecodeError:
            continue  # a value that continues on the next line
        if not said:
            continue  # a comment, which belongs to the next entry
        first = next(each for each in piece.splitlines() if each.strip() and not each.lstrip().startswith("#"))
        if first.lstrip().startswith("["):
            yield block
            block = _Block(_name(said), piece)
        else:
            block.settings.append((next(iter(said)), piece))
        piece = ""
    if piece.strip():
        tomllib.loads(piece)
        block.settings.append(("", piece))
    yield block


def _name(said: object) -> Name:
    """The names in a header, parsed alone."""
    if isinstance(said, list):
        return _name(said[0])
    if not isinstance(said, dict) or not said:
        return ()
    [(name, below)] = said.items()
    return (name, *_name(below))
