"""How commands print tables for a person: no wider than the terminal, or COLUMNS, or 80, and nothing is cut off.
What others wrote is printed as it is, and never taken as markup.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


def plain_console() -> Console:
    """Standard output, with what is printed taken as it is: addresses may hold brackets and colons."""
    return Console(markup=False, emoji=False, highlight=False)


def table(*headings: str, title: str = "") -> Table:
    """An empty table; what is too long for a column goes on in the next line."""
    made = Table(title=Text(title) if title else None, title_justify="left")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made
