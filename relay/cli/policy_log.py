"""`qumail-relay policy log`: which sets of policies came into force, who put them there, and what they weakened.
Exit status 0 fine, 1 it cannot be read, 2 usage; reading changes nothing, and `audit verify` proves that it is whole.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from relay.audit.entries import AddressHash
from relay.audit.policy_fields import person_of
from relay.audit.policy_places import newest_first
from relay.cli.as_relay import load
from relay.cli.options import as_relay_option, since_option
from relay.cli.output import Cell, Pair, json_option, plain_console, print_json, print_pairs
from relay.config import Config
from relay.files.credentials import is_there
from relay.policy.kept import KeptSets, kept_file
from relay.policy.names import SUFFIX, encode_local, printable
from relay.store.secret import SiteSecret

MAX_SHOWN = 10
"""Maximum number of files, and of differences, shown of each kind."""
_FILES = {"added": "Added", "changed": "Changed", "removed": "Removed"}
_DIFFERENCES = {"weakened": "Weaker", "raised": "Stronger", "otherwise": "Otherwise"}
_KNOWN_BY = {
    "command": "",
    "files": "whose files changed",
    "": "not known",
}
_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


@click.command("log")
@as_relay_option
@since_option
@click.option(
    "-n", "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="No more sets than this."
)
@json_option("the records, the newest first")
def show_log(config_file: Path, since: str | None, limit: int, as_json: bool) -> None:
    """Say which sets came into force, by whom, and what they weakened.

    All of it is from the audit record. A set that was found at a start was edited while the relay did not run.
    """
    config = load(config_file)
    every = newest_first(config.audit_directory)
    records = list(islice(takewhile(lambda each: str(each.get("time", "")) >= (since or ""), every), limit + 1))
    _spell_out(config, records)
    if as_json:
        print_json(records[:limit])
        return
    console = plain_console()
    for record, before in zip(records[:limit], [*records[1:], None], strict=False):
        _print(console, record)
        if before is not None and record.get("before") != before.get("version"):
            console.print(Text("What was in force in between is not recorded.", style="bold red"), end="\n\n")
    if len(records) > limit:
        console.print(f"Older ones are left out: --limit {2 * limit}")
    elif not records:
        console.print("No set of policies is recorded" + (" since then." if since else "."))


def _spell_out(config: Config, records: list[dict[str, Any]]) -> None:
    """Says whose addresses are hashed in each record, as far as their files are kept."""
    names: list[str] = []
    people: dict[str, str] = {}
    with suppress(OSError, sqlite3.Error), KeptSets(kept_file(config)).reading() as book:
        names = list(book.names())
    if any(map(_HASH.search, map(json.dumps, records))) and is_there(config.store.secret):
        addresses = AddressHash(SiteSecret.load(config.store.secret))
        every = filter(None, map(person_of, names))
        people = {hashed: each for each in every for hashed in addresses.spellings(each)}
    for record in records:
        for kind in _FILES:
            record[kind] = [_named(str(name), people) for name in record.get(kind, ())]
        for kind in _DIFFERENCES:
            record[kind] = [
                _HASH.sub(lambda match: people.get(match[0], match[0]), str(each)) for each in record.get(kind, ())
            ]


def _named(name: str, people: dict[str, str]) -> str:
    """The name of a file, with that of the person in place of a hash."""
    domain, _, stem = name.removesuffix(SUFFIX).partition("/")
    if stem not in people:
        return name
    return f"{domain}/{encode_local(people[stem].removesuffix(f'@{domain}'))}{SUFFIX}"


def _print(console: Console, record: dict[str, Any]) -> None:
    head = Text(f"version {record.get('version')}", style="bold")
    if record.get("weaker"):
        head.append("  weaker than before", style="bold red")
    console.print(head)
    print_pairs(console, ((f"  {name}", value) for name, value in _pairs(record)))
    console.print()


def _pairs(record: dict[str, Any]) -> Iterator[Pair]:
    yield "Time", str(record.get("time"))
    yield "By", _by(record)
    yield "Way", _way(record)
    for kind, title in _FILES.items():
        if names := record[kind][:MAX_SHOWN]:
            more = _more(record, kind)
            yield title, ", ".join(names) + (f" and {more} more" if more else "")
    for kind, title in _DIFFERENCES.items():
        style = "bold red" if kind == "weakened" else ""
        lines: list[Cell] = [Text(printable(text), style) for text in record[kind][:MAX_SHOWN]]
        yield title, lines + ([f"and {more} more"] if (more := _more(record, kind)) else [])
    if record.get("before") and record.get("compared") != "all":
        yield "Compared", str(record.get("compared"))


def _more(record: dict[str, Any], kind: str) -> int:
    """How many are not shown."""
    return max(0, len(record[kind]) - MAX_SHOWN) + int(record.get(f"{kind}_more", 0))


def _by(record: dict[str, Any]) -> str:
    cause = _KNOWN_BY.get(str(record.get("known_by")), "not known")
    sudo = f", by sudo of {record['sudo_user']}" if record.get("sudo_user") else ""
    by = str(record.get("by") or "")
    return f"{by}{sudo} ({cause})" if by and cause else by + sudo or cause


def _way(record: dict[str, Any]) -> str:
    method = str(record.get("way"))
    usual = "policy install" if record.get("known_by") == "command" else "edit"
    if method != "start":
        return usual
    if not record.get("before"):
        return "found at a start, and the first that is recorded"
    return f"found at a start: {usual} while the relay did not run"
