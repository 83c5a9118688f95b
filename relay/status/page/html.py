"""Elements of HTML and SVG: what is not an element already is text, and is escaped.
Standard: the HTML standard, 13.3 (serialisation); names of elements and attributes are the code's own.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"meta", "link", "rect", "path", "line", "circle"})


class Html(str):
    """HTML that needs no more escaping."""

    __slots__ = ()


Content = str | int | Iterable["Content"] | None


def element(name: str, /, *content: Content, **attributes: str | float | bool | None) -> Html:
    """One element; an attribute's `_` is `-`, but for one at its end, and None and False leave it out."""
    written = "".join(
        _attribute(each, value) for each, value in attributes.items() if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{together(content)}</{name}>")


def together(content: Content) -> Html:
    """One after the other."""
    if content is None:
        return Html("")
    if isinstance(content, Html):
        return content
    if isinstance(content, str | int):
        return Html(html.escape(str(content)))
    return Html("".join(map(together, content)))


def _attribute(name: str, value: str | float | bool | None) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f' {name}="{"" if value is True else html.escape(str(value))}"'
