"""Output of commands: tables and pairs for people, JSON for programs.
Text is no wider than the terminal, COLUMNS or 80, and never cut off; only a word longer than a line is broken.

Text of others is never interpreted as markup, and control characters are escaped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import click
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Span, Text

from relay.policy.names import printable

T = TypeVar("T")
Cell = str | Text
Pair = tuple[str, Cell | Sequence[Cell]]
FRAME = 3
"""Width of a column in addition to its text: a line and a space on both sides. The table ends with one more line."""


class _TextConsole(Console):
    def print(self, *objects: Any, **settings: Any) -> None:
        """Escapes strings and texts, including line ends; other objects contain escaped text."""
        super().print(*(_safe(each) if isinstance(each, Cell) else each for each in objects), **settings)


def plain_console(*, stderr: bool = False) -> Console:
    """A console on standard output without markup: addresses may contain brackets and colons."""
    return _TextConsole(markup=False, emoji=False, highlight=False, stderr=stderr)


def print_message(message: bytes) -> None:
    """Writes the message unchanged to standard output; escaped if that is a terminal."""
    if sys.stdout.isatty():
        lines = message.decode("utf-8", "surrogateescape").replace("\r\n", "\n").split("\n")
        click.echo("\n".join(map(printable, lines)))
    else:
        click.echo(message, nl=False)


def json_option(content: str = "one JSON object") -> Callable[[Callable[..., T]], Callable[..., T]]:
    """The option --json, as `as_json`; `content` describes its output."""
    return click.option("--json", "as_json", is_flag=True, help=f"For programs: {content}.")


def print_json(value: Any) -> None:
    """Prints the value, indented."""
    click.echo(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))  # json does not escape DEL


def print_table(
    out: Console, headings: Sequence[str], rows: Iterable[Sequence[Cell]], *, title: str = "", numbers: int = 0
) -> None:
    """Prints one row each; long cells wrap. The last `numbers` columns are right-aligned."""
    made = _WholeWords(title=_safe(Text(title)) if title else None, title_justify="left")
    for place, heading in enumerate(headings):
        made.add_column(
            _safe(heading), overflow="fold", justify="right" if place >= len(headings) - numbers else "left"
        )
    for row in rows:
        made.add_row(*map(_safe, row))
    out.print(made)


def print_pairs(out: Console, pairs: Iterable[Pair]) -> None:
    """Prints each name beside its value; several values get a line each, none gets no line."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        for place, each in enumerate((value,) if isinstance(value, Cell) else value):
            made.add_row("" if place else _safe(name), _safe(each))
    out.print(made)


def _safe(cell: Cell) -> Cell:
    """The cell as one line, escaped."""
    if isinstance(cell, str):
        return printable(cell)
    if cell.plain.isprintable():
        return cell
    ends = [0, *accumulate(len(printable(each)) for each in cell.plain)]
    spans = [Span(ends[each.start], ends[each.end], each.style) for each in cell.spans]
    return Text(printable(cell.plain), cell.style, end=cell.end, spans=spans)


class _WholeWords(Table):
    """A table whose columns have room for their longest word if possible; rich breaks words to be fair."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        texts = [[_plain(column.header), *map(_plain, column.cells)] for column in self.columns]
        whole = [max(map(len, each)) for each in texts]
        room = options.max_width - FRAME * len(whole) - 1
        if sum(whole) > room > 0:
            longest = [max((len(word) for text in each for word in text.split()), default=1) for each in texts]
            for column, width in zip(self.columns, _widths(longest, whole, room), strict=True):
                column.width = width
        yield from super().__rich_console__(console, options)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _widths(longest: list[int], whole: list[int], room: int) -> list[int]:
    """Column widths: first the longest words, narrowest columns first; the rest goes where it is needed most."""
    widths = [1] * len(longest)
    left = room
    for place, column in enumerate(sorted(range(len(longest)), key=longest.__getitem__)):
        widths[column] = max(1, min(longest[column], left // (len(longest) - place)))
        left -= widths[column]
    while left > 0 and (needy := [place for place, width in enumerate(widths) if width < whole[place]]):
        widths[max(needy, key=lambda place: whole[place] / widths[place])] += 1
        left -= 1
    return widths
