"""`qumail-relay ledger`: proves that the downgrade ledger is whole, and shows what left with less than it could have.
Exit status 0 fine, 1 the ledger was changed or cannot be read, 2 usage; reading changes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from relay.cli.options import config_option
from relay.cli.tables import plain_console, table
from relay.config import Config, load_config
from relay.policy.names import printable
from relay.store.ledger import AddressHash, ledger_entries, verify_ledger
from relay.store.secret import SiteSecret

EVENTS = ("downgrade", "plaintext", "shadow", "released", "dropped")


@click.group()
def ledger() -> None:
    """Look at the record of mails that left with less than the first level listed for them."""


@ledger.command()
@config_option
@click.option("--file", "path", type=click.Path(path_type=Path), help="Another file than the configured one.")
@click.option("--head", help="A head that was kept elsewhere: shows that nothing is missing up to it.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one JSON object.")
def verify(config_file: Path, path: Path | None, head: str | None, as_json: bool) -> None:
    """Follow the chain of hashes from the first line to the last.

    The chain shows every change within the file. That lines are missing at its end only a head shows that was
    kept elsewhere: the log has one in each `ledger_written`.
    """
    path = path or load_config(config_file).ledger_file
    if not path.exists() and head is None:
        click.echo(f"{path}: not there yet; nothing was recorded")
        return
    found = verify_ledger(path, head)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "file": str(path),
                    "entries": found.entries,
                    "head": found.head,
                    "problems": list(found.problems),
                    "broken_off": list(found.broken_off),
                },
                indent=2,
            )
        )
    else:
        for problem in found.problems:
            click.echo(problem, err=True)
        for line in found.broken_off:
            click.echo(f"{path}:{line}: broken off by a crash; it was confirmed to nobody")
        if not found.problems:
            click.echo(f"{path}: {found.entries} entries, whole; head {found.head}")
    if found.problems:
        sys.exit(1)


@ledger.command()
@config_option
@click.option("--file", "path", type=click.Path(path_type=Path), help="Another file than the configured one.")
@click.option("--since", help="From this time on, as it stands in the file: 2026-11-25 or 2026-11-25T10:00.")
@click.option("--until", help="Before this time.")
@click.option("--peer", help="Only mail for this peer.")
@click.option("--event", type=click.Choice(EVENTS), help="Only lines of this kind.")
@click.option("--address", help="Only mail from or to this address (the site secret is needed).")
@click.option("--message", "digest", help="Only the message with this SHA-256.")
@click.option("--json", "as_json", is_flag=True, help="For programs: the lines as they are.")
def show(
    config_file: Path,
    path: Path | None,
    since: str | None,
    until: str | None,
    peer: str | None,
    event: str | None,
    address: str | None,
    digest: str | None,
    as_json: bool,
) -> None:
    """Show the entries, the oldest first."""
    config = None if path is not None and address is None else load_config(config_file)
    path = path or (config.ledger_file if config is not None else Path())
    spellings = _spellings(config, address) if address is not None and config is not None else None
    wanted = {"peer": peer, "event": event, "message": digest}
    entries = [
        entry
        for entry in (ledger_entries(path) if path.exists() else ())
        if (since is None or str(entry.get("time", "")) >= since)
        and (until is None or str(entry.get("time", "")) < until)
        and all(value is None or entry.get(name) == value for name, value in wanted.items())
        and (spellings is None or not spellings.isdisjoint(_addresses(entry)))
    ]
    if as_json:
        click.echo(json.dumps(entries, indent=2))
    else:
        _print(entries)


def _spellings(config: Config, address: str) -> set[str]:
    secret = SiteSecret.load(config.store.secret) if config.store.secret.exists() else None
    return AddressHash(secret).spellings(address)


def _addresses(entry: dict[str, Any]) -> Iterator[str]:
    yield str(entry.get("sender", ""))
    yield from map(str, entry.get("recipients", ()))


def _print(entries: list[dict[str, Any]]) -> None:
    shown = table("No.", "Time", "Event", "Used", "Why")
    for entry in entries:
        listed = ", ".join(map(str, entry.get("listed", ())))
        peer = entry.get("peer") or "nobody"
        why = f"{entry.get('reason')} (peer {peer}; listed: {listed or 'nothing'}; {entry.get('policy')})"
        cells = (entry.get("number"), entry.get("time"), entry.get("event"), entry.get("used"), why)
        shown.add_row(*(printable(str(cell)) for cell in cells))
    console = plain_console()
    console.print(shown)
    console.print(f"{len(entries)} entries")
