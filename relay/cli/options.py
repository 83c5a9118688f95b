"""Options and files of several commands, so that they are spelt, explained and opened alike.
--config may also come from the environment, as QUMAIL_RELAY_CONFIG; the current directory is never searched.

Root opens files that a person names as the owner of their directory (relay/files/rights.py). So a name in another
user's directory leads root to nothing that this user may not use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from relay.cli import units
from relay.errors import ConfigError
from relay.files import rights
from relay.files.stamps import is_there

T = TypeVar("T")


config_option = click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    default=units.DEFAULT_CONFIG,
    envvar="QUMAIL_RELAY_CONFIG",
    show_default=True,
    show_envvar=True,
    help="The relay's configuration file.",
)


output_option = click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write. [default: standard output]",
)


class ThereIs(click.Path):
    """An existing path. If existence cannot be determined, it is not reported as missing."""

    def __init__(self, *, only_directory: bool = False) -> None:
        """Gives a Path; with `only_directory` that of a directory."""
        super().__init__(exists=True, file_okay=not only_directory, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Reports what denies access, and the remedy."""
        try:
            is_there(Path(os.fsdecode(value)))
        except ConfigError as error:
            self.fail(str(error), param, ctx)
        return super().convert(value, param, ctx)


def as_relay_option(command: Callable[..., T]) -> Callable[..., T]:
    """--config of a command that uses the relay's own files: root becomes the relay's user.

    So the command sees what the relay sees, and leaves no file that the relay cannot read.
    """

    @wraps(command)
    def as_relay(*arguments: Any, config_file: Path, **options: Any) -> T:
        from relay.cli.as_relay import become_the_relays_user

        become_the_relays_user(config_file)
        return command(*arguments, config_file=config_file, **options)

    return config_option(as_relay)


class Time(click.ParamType[str]):
    """A time comparable with those of the audit record: RFC 3339, UTC, with milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The time; without a zone it is UTC."""
        try:
            when = datetime.fromisoformat(value)
            when = when.astimezone(UTC) if when.tzinfo is not None else when.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time; write 2026-11-25, 2026-11-25T10:00 or 2026-11-25T10:00+01:00", param, ctx)
        return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


since_option = click.option(
    "--since", type=Time(), help="From this time on: 2026-11-25, 2026-11-25T10:00 (UTC), or with a zone."
)
until_option = click.option("--until", type=Time(), help="Before this time.")


def chosen(
    records: Iterable[dict[str, Any]], since: str | None, until: str | None, peer: str | None, peers: Collection[str]
) -> Iterator[dict[str, Any]]:
    """The records of this time and peer. Raises ConfigError for a peer neither in `peers` nor in any record."""
    names = set(peers)
    for record in records:
        names.add(str(record.get("peer") or ""))
        time = str(record.get("time", ""))
        if (since or "") <= time and (until is None or time < until) and peer in (None, record.get("peer")):
            yield record
    if peer is not None and peer not in names:
        raise ConfigError(f"no peer {peer!r}; known are {', '.join(sorted(filter(None, names))) or 'none'}")


class InputFile(click.ParamType[BinaryIO]):
    """A file to read, "-" for standard input; opened before the command becomes the relay's user."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BinaryIO:
        """The open file, closed at the command's end."""
        if value == "-":
            return sys.stdin.buffer
        try:
            file = rights.open_named(Path(value))
        except FileNotFoundError:
            self.fail(f"{value!r} does not exist", param, ctx)
        except OSError as error:
            self.fail(f"{value!r} cannot be read: {error.strerror}", param, ctx)
        if ctx is not None:
            ctx.call_on_close(file.close)
        return file


def create_named(path: Path) -> BinaryIO:
    """Creates or empties the file named by `-o`. Raises ConfigError."""
    try:
        return rights.create_named(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def write_named(path: Path | None, content: bytes) -> None:
    """Writes the file named by `-o`, or standard output. Raises ConfigError."""
    if path is None:
        from relay.cli.output import print_message  # imports rich

        print_message(content)
        return
    try:
        with create_named(path) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
