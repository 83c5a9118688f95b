"""`qumail-relay store accept`: accepts the present store as the intended one, as after a restore.
Exit status 0 on success; relay/store/restore_check.py explains the doubts.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from relay.cli.logs import configure_logging
from relay.cli.options import as_relay_option
from relay.config import Config, LogSettings
from relay.errors import ConfigError
from relay.files.credentials import is_there
from relay.files.permissions import printable


@click.group()
def store() -> None:
    """Say that the store is meant to be another one than it was."""


@store.command()
@as_relay_option
def accept(config_file: Path) -> None:
    """End the alarm that the store is not the one that was: it is meant, as after a restore or a move.

    It says what it has accepted. Mail that was sealed before the store was found to be another one stays in quarantine.
    """
    from relay.cli.as_relay import load

    configure_logging(LogSettings(level="error"))
    click.echo(asyncio.run(_accept(load(config_file))))


async def _accept(config: Config) -> str:
    """Accepts, and returns the message to show. Raises ConfigError and StoreUnavailable."""
    from relay.cli.quarantine import existing_store

    if not is_there(config.store.secret):
        raise ConfigError(f"{config.store.secret}: is missing: put it back, or start the relay, which makes a new one")
    async with existing_store(config) as opened:
        if opened is None:
            raise ConfigError("there is no store yet: start the relay, which makes an empty one, then accept that")
        doubt = await opened.restore_check.accept()
    return f"Accepted: {printable(doubt)}" if doubt else "Nothing to accept: the store is the one that was."
