"""`qumail-relay ledger`: shows mail that left with weaker protection than possible, from the audit record.
Exit status 0 fine, 1 unreadable, 2 usage; changes nothing, and `audit verify` proves that the record is complete.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from relay.audit.entries import LEDGER, AddressHash
from relay.audit.reading import records
from relay.cli.as_relay import load, reader_of, relay_rights
from relay.cli.options import chosen, config_option, since_option, until_option
from relay.cli.output import json_option, plain_console, print_json, print_table
from relay.config import Config
from relay.files.credentials import is_there
from relay.files.rights import become
from relay.store.secret import SiteSecret


@click.group()
def ledger() -> None:
    """Look at the record of mails that left with less than the first level listed for them."""


@ledger.command()
@config_option
@click.option(
    "--directory", type=click.Path(path_type=Path), help="Another directory of records than the configured one."
)
@since_option
@until_option
@click.option("--peer", help="Only mail for this peer.")
@click.option("--event", type=click.Choice(LEDGER), help="Only lines of this kind.")
@click.option("--address", help="Only mail from or to this address (the site secret is needed).")
@click.option("--message", "digest", help="Only the message with this SHA-256.")
@json_option("the lines as they are")
def show(
    config_file: Path,
    directory: Path | None,
    since: str | None,
    until: str | None,
    peer: str | None,
    event: str | None,
    address: str | None,
    digest: str | None,
    as_json: bool,
) -> None:
    """Show the entries, the oldest first."""
    become(reader_of(config_file, directory))
    config = None if directory is not None and address is None else load(config_file)
    directory = directory or (config.audit_directory if config is not None else Path())
    spellings = spellings_of(config, address) if address is not None and config is not None else None
    criteria = {"event": event, "message": digest}
    every = records(directory, since or "", LEDGER) if directory.exists() else iter(())
    entries = [
        entry
        for entry in chosen(every, since, until, peer, config.peers if config is not None else ())
        if all(value is None or entry.get(name) == value for name, value in criteria.items())
        and (spellings is None or not spellings.isdisjoint(addresses_in(entry)))
    ]
    if as_json:
        print_json(entries)
    else:
        _print(entries)


def spellings_of(config: Config, address: str) -> set[str]:
    """The forms of this address in records. Raises ConfigError."""
    with relay_rights(config):
        secret = SiteSecret.load(config.store.secret) if is_there(config.store.secret) else None
    return AddressHash(secret).spellings(address)


def addresses_in(entry: dict[str, Any]) -> Iterator[str]:
    """The sender and recipients, as recorded."""
    yield str(entry.get("sender", ""))
    yield from map(str, entry.get("recipients", ()))


def _print(entries: list[dict[str, Any]]) -> None:
    print_table(plain_console(), ("No.", "Time", "Event", "Level", "Why"), map(_cells, entries))
    click.echo(f"{len(entries)} entries")


def _cells(entry: dict[str, Any]) -> list[str]:
    listed = ", ".join(map(str, entry.get("listed", ())))
    peer = entry.get("peer") or "nobody"
    why = f"{entry.get('reason')} (peer {peer}; listed: {listed or 'nothing'}; {entry.get('policy')})"
    return [*(str(entry.get(name)) for name in ("number", "time", "event", "level")), why]
