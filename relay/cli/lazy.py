"""Groups of commands that are imported when they are called; listing or starting one imports no other.
Help texts are repeated here; tests compare them with the commands' own.
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
    """A command imported on demand: `module:name` in relay.cli, and the first paragraph of its help.

    `listener` is the folder or file of relay.entry that the command needs. `without` are packages that libraries only
    use if installed, and that this command should not load.
    """

    place: str
    help: str
    listener: str = ""
    without: tuple[str, ...] = ()


class LazyGroup(click.Group):
    """A group with commands that are imported on demand; `later` has these by name."""

    def __init__(self, *args: Any, later: Mapping[str, LaterCommand], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._later = later

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return sorted({*super().list_commands(ctx), *self._later})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None if there is none of this name."""
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
        """Lists all commands with their short help in click's format, and imports none."""
        shown = {name: click.Command(name, help=_missing(each) or each.help) for name, each in self._later.items()}
        shown.update(self.commands)
        limit = formatter.width - 6 - max(map(len, shown))
        with formatter.section("Commands"):
            formatter.write_dl([(name, shown[name].get_short_help_str(limit)) for name in sorted(shown)])


def _loaded(module: str, name: str) -> click.Command:
    gc.disable()  # almost nothing imported is garbage, and the search takes a tenth of the time
    try:
        command = getattr(import_module(f"relay.cli.{module}"), name)
    finally:
        gc.enable()
    assert isinstance(command, click.Command)  # noqa: S101 - or the table is wrong
    return command


@contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Context in which these packages appear not to be installed, unless imported already."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is what importlib wants for that
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _missing(later: LaterCommand) -> str:
    """Why the command is unavailable in this relay, or ""."""
    place = _LISTENERS / later.listener
    if not later.listener or place.is_dir() or place.with_suffix(".py").is_file():
        return ""
    return f"this relay has no relay.entry.{later.listener}, which it needs"


def _of_no_listener(cause: str) -> click.Command:
    """Replaces a command whose listener's folder was removed."""

    def missing() -> None:
        raise ConfigError(cause)

    anything = {"allow_extra_args": True, "ignore_unknown_options": True}
    return click.Command(None, anything, missing, help=cause, add_help_option=False)
