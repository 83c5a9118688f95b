"""How commands print tables for a person: no wider than the terminal, or COLUMNS, or 80, and nothing is cut off.
What others wrote is printed as it is, and never taken as markup. A word is broken only where there is no room for it.
"""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

FRAME = 3
"""Width of a column beside its text: a line and a blank on both sides. The table ends with one more line."""


def plain_console() -> Console:
    """Standard output, with what is printed taken as it is: addresses may hold brackets and colons."""
    return Console(markup=False, emoji=False, highlight=False)


def table(*headings: str, title: str = "") -> Table:
    """An empty table; what is too long for a column goes on in the next line."""
    made = _WholeWords(title=Text(title) if title else None, title_justify="left")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made


class _WholeWords(Table):
    """Gives each column room for its longest word, as far as there is room for all; rich breaks words to be fair."""

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
    """First the longest words, those of the narrowest columns first; what is left goes to who needs it most."""
    widths = [1] * len(longest)
    left = room
    for place, column in enumerate(sorted(range(len(longest)), key=longest.__getitem__)):
        widths[column] = max(1, min(longest[column], left // (len(longest) - place)))
        left -= widths[column]
    while left > 0 and (needy := [place for place, width in enumerate(widths) if width < whole[place]]):
        widths[max(needy, key=lambda place: whole[place] / widths[place])] += 1
        left -= 1
    return widths
