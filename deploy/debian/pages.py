"""Writes man pages and shell completion out of the commands: `python pages.py VERSION DIRECTORY`, which is usr/share.
Standard: man(7), one page for each command and group of commands; completion for bash and zsh as click makes it.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.shell_completion import BashComplete, ZshComplete

from relay.cli import cli

PROGRAM = "qumail-relay"
SECTION = 1


def pages(version: str) -> dict[str, str]:
    """Each page by its name: qumail-relay, and qumail-relay-COMMAND, where the commands of a group have sections."""
    top = click.Context(cli, info_name=PROGRAM)
    commands = dict(_commands(top))
    made = {PROGRAM: _page(top, version, list(commands))}
    for name, context in commands.items():
        made[f"{PROGRAM}-{name}"] = _page(context, version)
    return made


def completion() -> dict[str, str]:
    """What a shell loads, by where it lies under usr/share."""
    variable = "_QUMAIL_RELAY_COMPLETE"
    return {
        f"bash-completion/completions/{PROGRAM}": BashComplete(cli, {}, PROGRAM, variable).source(),
        f"zsh/vendor-completions/_{PROGRAM}": ZshComplete(cli, {}, PROGRAM, variable).source(),
    }


def _commands(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    """The commands of a group by name; none of any other command."""
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                yield name, click.Context(command, info_name=name, parent=context)


def _page(context: click.Context, version: str, see: list[str] | None = None) -> str:
    """One page; with `see` the commands have pages of their own, else all that is below has its section here."""
    name = context.command_path.replace(" ", "-")
    short = context.command.get_short_help_str(limit=200).rstrip(".")
    lines = [
        f'.TH {name.upper()} {SECTION} "" "QuMail Relay {version}" "QuMail Relay"',
        ".SH NAME",
        f"{_text(name)} \\- {_text(short)}",
        ".SH SYNOPSIS",
        *_synopsis(context),
        ".SH DESCRIPTION",
        *_paragraphs(context.command.help or ""),
        *_options(context, ".SH OPTIONS"),
    ]
    if see is None:
        for _, below in _commands(context):
            lines += _section(below)
        others = [PROGRAM]
    else:
        lines.append(".SH COMMANDS")
        for command, below in _commands(context):
            lines += [".TP", f".B {_text(command)}", _text(below.command.get_short_help_str(limit=200))]
        others = [f"{PROGRAM}-{each}" for each in see]
    lines += [".SH EXIT STATUS", "0: fine. 1: something is wrong with what was asked about. 2: wrong usage."]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_text(each)}\\fR({SECTION})" for each in others)]
    return "\n".join(lines) + "\n"


def _section(context: click.Context) -> list[str]:
    """A command of a group, and those below it."""
    lines = [f'.SH "{_text(context.command_path)}"', *_synopsis(context), ".PP"]
    lines += [*_paragraphs(context.command.help or ""), *_options(context, ".PP")]
    for _, below in _commands(context):
        lines += _section(below)
    return lines


def _synopsis(context: click.Context) -> list[str]:
    pieces = " ".join(context.command.collect_usage_pieces(context))
    return [f"\\fB{_text(context.command_path)}\\fR {_text(pieces)}"]


def _options(context: click.Context, title: str) -> list[str]:
    records = [record for each in context.command.get_params(context) if (record := each.get_help_record(context))]
    lines = [title] if records else []
    for names, explained in records:
        lines += [".TP", f"\\fB{_text(names)}\\fR", _text(" ".join(explained.split())) or "\\&"]
    return lines


def _paragraphs(text: str) -> Iterator[str]:
    """As click shows a command's help: paragraphs are filled, but for those that begin with \\b."""
    for paragraph in text.split("\f")[0].strip().split("\n\n"):
        as_it_stands = paragraph.startswith("\b")
        yield ".PP"
        if as_it_stands:
            yield ".nf"
            yield from (_text(line) for line in paragraph.strip("\b\n").splitlines())
            yield ".fi"
        else:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Nothing in it is a command of roff's."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def main(version: str, directory: Path) -> None:
    """Writes all files under `directory`."""
    for name, page in pages(version).items():
        file = directory / "man" / f"man{SECTION}" / f"{name}.{SECTION}.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(page.encode(), mtime=0))
    for place, script in completion().items():
        file = directory / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(script)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
