"""Asks a person at a terminal: a question, a choice, yes or no, a pasted invitation.
All lines are read through click.prompt: pasted text would be lost between two buffers.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import click

from relay.errors import ConfigError
from relay.files.rights import open_named
from relay.identity.invitation import END, MAX_INVITATION, unquoted


class Prompter:
    """Asks a person, or takes the default if nobody should be asked (`--yes`)."""

    def __init__(self, *, ask: bool) -> None:
        """`asks`: whether somebody is asked."""
        self.asks = ask

    def ask(self, why: str, question: str, default: str | None, read: Callable[[str], object] = str) -> str:
        """Returns the answer, and asks again until `read` accepts it.

        Raises UsageError if nobody is asked and there is no default.
        """
        if not self.asks:
            if default is None:
                raise click.UsageError(f"--yes needs an answer by a flag: {question}")
            return default
        click.echo(f"\n{filled(why)}")
        while True:
            answer: str = click.prompt(question, default=default, type=str).strip()
            try:
                read(answer)
            except (ValueError, ConfigError) as error:
                click.echo(f"Not so: {error}")
            else:
                return answer

    def say(self, text: str) -> None:
        """Prints information before questions."""
        if self.asks:
            click.echo(f"\n{filled(text)}")

    def choose(self, why: str, question: str, of: tuple[str, ...], default: str) -> str:
        """Asks for one of several words."""

        def one_of(answer: str) -> None:
            if answer not in of:
                raise ValueError(f"one of {', '.join(of)}")

        return self.ask(why, f"{question} ({', '.join(of)})", default, one_of)

    def confirm(self, why: str, question: str, *, unasked: bool) -> bool:
        """Returns yes or no; `unasked` if nobody is asked."""
        if not self.asks:
            return unasked
        if why:
            click.echo(f"\n{filled(why)}")
        return bool(click.confirm(question, default=False))


def filled(text: str, indent: str = "") -> str:
    """The text wrapped for a terminal of 80 columns, continuation lines indented; paths and addresses stay whole."""
    return textwrap.fill(text, 79, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def pasted_invitation(first: str = "") -> bytes:
    """The pasted lines of an invitation, after its `first` one. Raises ValueError for too many characters."""
    lines = [first]
    length = len(first)
    while unquoted(lines[-1]) != END:
        line: str = click.prompt("", default="", show_default=False, prompt_suffix="")
        length += len(line) + 1
        if length > MAX_INVITATION:
            raise ValueError(f"an invitation has at most {MAX_INVITATION} characters")
        lines.append(line)
    return "\n".join(lines).encode()


def read_file(path: Path) -> bytes:
    """Reads a document or invitation; root reads it as the owner of its directory. Raises ConfigError."""
    try:
        with open_named(path) as file:
            return read_document(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def read_document(file: BinaryIO) -> bytes:
    """Reads a document or invitation from an open file, up to the maximum length."""
    return file.read(MAX_INVITATION + 1)
