"""The command line, whose names are fixed because people script them.
The exit status is 0 for fine, 1 where something is wrong with what was asked about, 2 for wrong usage.
"""

from __future__ import annotations

import sys
from importlib import import_module

import click

from relay.errors import ConfigError, RelayError
from relay.no_dumps import forbid_core_dumps

COMMANDS = {
    "bench": "bench:bench",
    "check": "check:check",
    "identity": "identity:identity",
    "imap": "imap:imap",
    "keys": "keys:keys",
    "kme": "kme:kme",
    "ledger": "ledger:ledger",
    "open": "files:open_file",
    "policy": "policy:policy",
    "quarantine": "quarantine:quarantine",
    "seal": "files:seal_file",
    "serve": "serve:serve",
    "setup": "setup:setup",
    "users": "users:users",
}
"""Where each command is, `module:name` in relay.cli: one that is not called is not loaded, which takes a second."""


class _LazyGroup(click.Group):
    """A group whose commands are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted({*super().list_commands(ctx), *COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None where there is none of this name."""
        if cmd_name in COMMANDS and cmd_name not in self.commands:
            module, _, name = COMMANDS[cmd_name].partition(":")
            try:
                command = getattr(import_module(f"relay.cli.{module}"), name)
            except ModuleNotFoundError as error:
                command = _of_no_door(error)
            self.add_command(command, cmd_name)
        return super().get_command(ctx, cmd_name)


def _of_no_door(error: ModuleNotFoundError) -> click.Command:
    """Stands for a command of a door whose folder was taken away. Raises the error where it is another one."""
    if not (error.name or "").startswith("relay.entry."):
        raise error
    cause = f"this relay has no {error.name}, which it needs"

    def missing() -> None:
        raise ConfigError(cause)

    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    return click.Command(None, anything, missing, help=cause, add_help_option=False)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="qumail-relay")
def cli() -> None:
    """A mail encryption gateway for organisations that share quantum keys (QKD).

    Start with `qumail-relay setup`; deploy/SETTINGS.md explains every setting.
    """


def main() -> None:
    """The console script: errors that the user can mend are said in one line each, never as a traceback."""
    try:
        forbid_core_dumps()
        cli.main(prog_name="qumail-relay")
    except ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        sys.exit(1)
    except RelayError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
