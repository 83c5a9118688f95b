"""Groups of commands that are loaded when they are called: to list them, and to start one, loads no other.
What help shows of each stands here too; tests compare it with the command's own.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click

from relay.errors import ConfigError

_LISTENERS = Path(__file__).parents[1] / "entry"


class LaterCommand(NamedTuple):
    """A command that is loaded when it is called: `module:name` in relay.cli, and the first paragraph of its help.

    `listener` is the folder or file of relay.entry that it is for, and without which there is no such command.
    `without` are packages that libraries use only because they are installed, and that this command shall not keep in
    memory.
    """

    place: str
    help: str
    listener: str = ""
    without: tuple[str, ...] = ()


class LazyGroup(click.Group):
    """A group whose commands, or some of them, are loaded when they are called; `later` has these by name."""

    def __init__(self, *args: Any, later: Mapping[str, LaterCommand], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._later = later

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted({*super().list_commands(ctx), *self._later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None where there is none of this name."""
        if cmd_name in self._later and cmd_name not in self.commands:
            later = self._later[cmd_name]
            module, _, name = later.place.partition(":")
            if missing := _missing(later):
                self.add_command(_of_no_listener(missing), cmd_name)
            else:
                with _hidden(later.without):
                    self.add_command(_loaded(module, name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All commands, with what they do, as click shows them; none is loaded for that."""
        shown = {name: click.Command(name, help=_missing(each) or each.help) for name, each in self._later.items()}
        shown.update(self.commands)
        limit = formatter.width - 6 - max(map(len, shown))
        with formatter.section("Commands"):
            formatter.write_dl([(name, shown[name].get_short_help_str(limit)) for name in sorted(shown)])


def _loaded(module: str, name: str) -> click.Command:
    gc.disable()  # next to nothing of what is loaded is garbage, and looking for it is a tenth of the time
    try:
        command = getattr(import_module(f"relay.cli.{module}"), name)
    finally:
        gc.enable()
    assert isinstance(command, click.Command)  # noqa: S101 - or the table is wrong
    return command


@contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Within it these cannot be imported, unless they are loaded already: as if they were not installed."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is what importlib wants for that
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _missing(later: LaterCommand) -> str:
    """What this relay has not and the command needs, or ""."""
    place = _LISTENERS / later.listener
    if not later.listener or place.is_dir() or place.with_suffix(".py").is_file():
        return ""
    return f"this relay has no relay.entry.{later.listener}, which it needs"


def _of_no_listener(cause: str) -> click.Command:
    """Stands for a command of a listener whose folder was taken away."""

    def missing() -> None:
        raise ConfigError(cause)

    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    return click.Command(None, anything, missing, help=cause, add_help_option=False)
