"""`qumail-relay imap once`: opens the sealed mail that is in mailboxes now, and shows the progress.
Exit status 0 if no sealed mail for us is left, else 1; --json for programs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from relay import key_receiver
from relay.cli.as_relay import load
from relay.cli.logs import configure_logging
from relay.cli.options import as_relay_option
from relay.cli.output import json_option, plain_console, print_json
from relay.config import Config, LogSettings
from relay.entry.budget import Budget
from relay.entry.imap.watch import Report, Visited, mailboxes
from relay.errors import ConfigError
from relay.files.permissions import printable
from relay.process import assembly
from relay.runtime.stopping import stop_on_signals

_QUIET = LogSettings(level="warning")


@click.group("imap")
def imap() -> None:
    """Mailboxes that this relay reaches only by IMAP ([imap.*])."""


@imap.command("once")
@as_relay_option
@click.option("--account", "accounts", multiple=True, help="Only this account; may be repeated.  [default: all]")
@json_option("a list of folders")
def once(config_file: Path, accounts: tuple[str, ...], as_json: bool) -> None:
    """Open what lies sealed in the mailboxes now, then stop.

    It can be stopped at any moment and run again. A relay that serves does the same all the time.
    """
    configure_logging(_QUIET)
    config = load(config_file)
    names = accounts or tuple(config.imap)
    if unknown := [name for name in names if name not in config.imap]:
        raise ConfigError(f"{config_file}: there is no [imap.{unknown[0]}]; known: {', '.join(config.imap) or 'none'}")
    if not names:
        raise ConfigError(f"{config_file}: no [imap.*] is set, so there is no mailbox to open anything in")
    visits = asyncio.run(_visit(config, names, key_receiver.start(config)))
    if as_json:
        print_json([dataclasses.asdict(each) for each in visits])
    else:
        for each in visits:
            click.echo(printable(_in_words(each)))
    sys.exit(1 if any(each.failure or each.unopened or each.lost for each in visits) else 0)


async def _visit(config: Config, names: tuple[str, ...], receiver: socket.socket) -> list[Visited]:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with stop_on_signals() as stop:
        async with assembly.parts(config, prefetch=False, key_receiver=receiver) as built:
            budget = Budget(config.limits.messages_in_flight)
            watched = mailboxes(config, built.originals, budget, assembly.tally(built, "incoming"), built.board)
            console = plain_console(stderr=True)
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                report = _shown(progress)
                return [each for name in names for each in await stop.or_end(watched.once(name, report))]


def _shown(progress: Progress) -> Report:
    tasks = {}

    def report(account: str, folder: str, opened: int, left: int) -> None:
        name = printable(f"{account} {folder}")
        if name not in tasks:
            tasks[name] = progress.add_task(name)
        progress.update(tasks[name], completed=opened, total=opened + left)

    return report


def _in_words(visited: Visited) -> str:
    words = f"{visited.account} {visited.folder}: {visited.opened} opened"
    if visited.unopened:
        words += f", {visited.unopened} left sealed (flagged $QuMailUnopened; the log above says why)"
    if visited.lost:
        words += f", {visited.lost} whose key is lost (flagged $QuMailKeyLost, not tried again)"
    return f"{words}; failed: {visited.failure}" if visited.failure else words
