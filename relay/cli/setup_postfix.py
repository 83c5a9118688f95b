"""Changes the Postfix beside the relay, or restores it, and prints what remains to be done.
Setup never reports success while mail waits for a relay that does not run, or bypasses the relay.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import click

from relay.cli.as_relay import load
from relay.cli.check_listeners import listens_at
from relay.cli.setup_again import integration_of, postfix_of
from relay.cli.units import how_to, unit_of
from relay.config import Config, TCPAddress
from relay.counting.amounts import many
from relay.errors import ConfigError
from relay.files.commands import command
from relay.files.rights import as_owner_of
from relay.postfix import handed_to
from relay.postfix.queue import QueueUnknown, filtered
from relay.setup import questions
from relay.setup.answers import SitePaths
from relay.setup.asking import Prompter, filled
from relay.setup.backups import BACKUP, backups_of
from relay.setup.files import Owner, write_flushed
from relay.setup.mail_server import apply, planned_change, undo
from relay.setup.questions import NONE
from relay.setup.relay_toml import postfix_lines
from relay.setup.restart import restarted, runs
from relay.setup.still_queued import left_over, refuse_undo_that_strands
from relay.status.active_alarms import serves


class BesidePostfix(NamedTuple):
    """The state of the Postfix beside the relay: its directory (None if not checked), whether it is joined and runs."""

    directory: Path | None
    joined: bool = False
    runs: bool = False

    @property
    def declined(self) -> bool:
        """Whether a change was needed and not made."""
        return self.directory is not None and not self.joined


def last_line(config: Config, places: SitePaths, owner: Owner, beside: BesidePostfix, *, well: bool) -> str:
    """What the administrator must do now because mail waits or bypasses the relay; "" for nothing."""
    if beside.directory is None:
        return ""
    with as_owner_of(beside.directory):
        ours = asyncio.run(handed_to(beside.directory, config))
        former = beside.declined and asyncio.run(left_over(beside.directory, config))
    if beside.declined and (ours or former):
        said = f"POSTFIX WAS NOT CHANGED, and {beside.directory} does not fit relay.toml. Run this again and say y, or"
        look = command("qumail-relay", "check", "--config", places.config_file, "--postfix", beside.directory)
        return f"{filled(f'{said} see what is wrong:')}\n  {look}"
    if beside.declined:
        return filled(
            f"MAIL GOES PAST THE RELAY, as before: {beside.directory} was not changed. Run this again and say y, or "
            "see deploy/POSTFIX.md for how to do it by hand."
        )
    unheard = asyncio.run(_unheard(ours))
    waits_for_start = (unit := unit_of(places.config_file)) is not None and unit.waits_for_start
    if waits_for_start:
        unheard = list(map(str, ours))
    if not unheard:
        return ""
    first = "" if well else "Fix what is wrong above. "
    action: Literal["start", "restart"] = "restart" if serves(config) and not waits_for_start else "start"
    how = how_to(action, places.config_file, owner.name if owner.is_another else "")
    waits = "port 25 answers 451" if integration_of(config) == "milter" else "mail waits in Postfix's queue"
    until = f"Until then {waits}: nobody listens at {', '.join(unheard)}."
    before, _, typed = how.replace(", then:", " first:").rpartition(": ")
    now = f"{first}NOW {action.upper()} THE RELAY{f' ({before})' if before else ''}. {until}"
    return f"{filled(now)}\n  {typed}"  # one line, to be copied


async def _unheard(addresses: Iterable[TCPAddress | Path]) -> list[str]:
    """The addresses at which nobody listens."""
    return [str(each) for each in addresses if not await listens_at(each)]


def beside_postfix(config: Config, places: SitePaths, asker: Prompter, flags: dict[str, Any]) -> BesidePostfix:
    """Shows the change to Postfix, makes it if confirmed, and returns the state after it.

    Raises ConfigError, and StillQueued if mail in the queue would be stranded.
    """
    if flags["apply_postfix"] is False:
        return BesidePostfix(None)
    directory = flags["postfix"] or postfix_of(config, places.directory)
    where = questions.ask_postfix(asker) if directory is None else None if directory == NONE else Path(directory)
    if where is None:
        return BesidePostfix(None)
    where = where.absolute()
    change = asyncio.run(planned_change(where, config, beside=places.directory, service=flags["postfix_service"]))
    if not change.differs:
        click.echo(f"{where}: there already, nothing to change")
        _write_down(places.config_file, config, where)
        return BesidePostfix(where, joined=True, runs=asyncio.run(runs(where)))
    click.echo(change.diff())
    for fault in change.faults:
        click.echo(f"afterwards check --postfix will say: {fault}")
    why = f"This is what changes in {where}. The files as they are now are kept in {places.directory / BACKUP}."
    if flags["apply_postfix"] or asker.confirm(why, "Change Postfix so?", unasked=False):
        backup = apply(change, places.directory)
        _write_down(places.config_file, config, where)
        reads_it = asyncio.run(restarted(where))
        click.echo(
            f"{where}: changed{' and restarted' if reads_it else ''}; `setup --undo` puts back what is in {backup}"
        )
        return BesidePostfix(where, joined=True, runs=reads_it)
    return BesidePostfix(where)


def as_before(places: SitePaths, said: bytes, beside: BesidePostfix) -> BesidePostfix:
    """Restores relay.toml as it `said`: a restart with another integration than Postfix's would stop all mail."""
    _write(places.config_file, said)
    click.echo(f"{places.config_file}: as it was before, since {beside.directory} was not changed")
    return beside._replace(joined=True)


def _write_down(path: Path, config: Config, directory: Path) -> None:
    """Adds this Postfix to an older relay.toml that names none."""
    if config.postfix is None:
        lines = "\n".join((*postfix_lines(directory), ""))
        _write(path, path.read_bytes().rstrip(b"\n") + f"\n{lines}".encode())
        click.echo(f"{path}: names {directory} now, which is watched from the relay's next restart")


def _write(path: Path, content: bytes) -> None:
    """Replaces the file atomically, with the same owner and mode."""
    with as_owner_of(path.parent):
        info = path.stat()
        write_flushed(path, content, info.st_mode & 0o7777, (info.st_uid, info.st_gid) if os.geteuid() == 0 else None)


def put_back(places: SitePaths) -> None:
    """Restores Postfix to its state before the last change, and prints that state. Raises ConfigError."""
    config = None
    with suppress(ConfigError):  # works even if relay.toml is wrong
        config = load(places.config_file)
    if config is not None:
        asyncio.run(refuse_undo_that_strands(places.directory, config))
    directory = undo(places.directory)
    reads_it = asyncio.run(restarted(directory))
    click.echo(f"{directory}: as it was before the last change{', and restarted' if reads_it else ''}.")
    if left := len(backups_of(directory, places.directory)):
        click.echo(f"Still in force: {many(left, 'earlier change')} of setup's. Run this again to undo that as well.")
        if config is not None and (unheard := asyncio.run(left_over(directory, config))):
            other = "content-filter" if integration_of(config) != "content-filter" else "milter"
            words = ("setup", "--replace", "--integration", other, "--config", places.config_file)
            again = command("qumail-relay", *words)
            click.echo(
                f"NO MAIL GOES THROUGH: Postfix is back at an earlier integration, and relay.toml is for "
                f"{integration_of(config)}. {unheard[0]}\n"
                f"Give relay.toml the earlier integration, then restart the relay:\n  {again}"
            )
    else:
        click.echo("MAIL LEAVES IN CLEAR from now on.")
        if config is not None and config.postfix is not None:
            click.echo(
                f"A relay that serves raises an alarm about that, unless [postfix] of {places.config_file} goes."
            )
    try:
        number = many(len(waiting), "mail") if (waiting := asyncio.run(filtered(directory))) else ""
    except QueueUnknown as error:
        number = f"The queue cannot be read ({error}): mail may be"
    if number:
        click.echo(f"{number} in the queue for the relay, and it may stay there: deploy/OPERATING.md, Uninstalling.")
    click.echo("relay.toml, policies and keys are still there.")
