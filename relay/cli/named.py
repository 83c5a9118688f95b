"""Files that a person names on the command line, which root opens as the owner of the place where they lie.
Standard: relay/files/rights.py; a name in another user's directory leads root to nothing that this user may not use.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, BinaryIO

import click

from relay.errors import ConfigError
from relay.files import rights


class InputFile(click.ParamType[BinaryIO]):
    """A file to read, "-" for standard input; it is opened before the command becomes the relay's user."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> BinaryIO:
        """The file, which is closed with the command."""
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


def create(path: Path) -> BinaryIO:
    """The file named by `-o`, empty, to write. Raises ConfigError."""
    try:
        return rights.create_named(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def write(path: Path, content: bytes) -> None:
    """The file named by `-o`. Raises ConfigError."""
    try:
        with create(path) as file:
            file.write(content)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
