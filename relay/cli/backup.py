"""`qumail-relay backup`: copies the relay's own files to a directory, even while the relay serves.
deploy/OPERATING.md explains its use; exit status 0 once the whole copy is on the disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from relay.cli.as_relay import load, relays_user
from relay.cli.logs import configure_logging
from relay.cli.options import config_option
from relay.config import Config, LogSettings
from relay.files import toml
from relay.files.credentials import credential_name
from relay.files.permissions import printable
from relay.files.rights import become
from relay.key_receiver import SPOOL
from relay.store import sent, spool
from relay.store.backup import copy_state, make_new
from relay.store.sent import SENT

OWN = ("store.database", "store.directory", "audit.directory", "policies.shadow_record")
"""Settings that name files written by the relay."""


@click.command()
@config_option
@click.argument("to", type=click.Path(path_type=Path))
def backup(config_file: Path, to: Path) -> None:
    """Copy what the relay writes by itself (store, spools, audit) into the new directory TO, also while it serves.

    A relay that starts from the copy detects that it is one. What was sealed before then goes to quarantine, since it
    is unknown who has had it. What only you change is not copied, and named at the end.
    """
    configure_logging(LogSettings(level="error"))
    config = load(config_file)
    user = relays_user(config)
    make_new(to, user)
    become(user)
    for copy, original in copy_state(config, {SPOOL: spool.SUFFIX, SENT: sent.SUFFIX}, to):
        click.echo(printable(f"{copy}: for {original}"))
    if not isinstance(config.store.database, Path):
        click.echo("the database: not copied; PostgreSQL has pg_dump for that")
    click.echo(f"not copied: {config_file.absolute()}")
    for setting, path in named_paths(config):
        click.echo(f"not copied: {setting}: {path}")


def named_paths(config: Config) -> Iterator[tuple[str, Path]]:
    """The files and directories that settings name and only people change, by setting."""
    return _paths("", config)


def _paths(place: str, value: object) -> Iterator[tuple[str, Path]]:
    """The paths in a setting and the settings below it."""
    if isinstance(value, Path):
        if place not in OWN and (credential_name(value) or value.is_file() or value.is_dir()):
            yield place, value
        return
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(value, toml.Table):
        parts = value
    elif isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, tuple):
        parts = enumerate(value)
    for name, part in parts:
        yield from _paths(f"{place}.{name}".lstrip("."), part)
