"""Elements of HTML and SVG: content that is no element is text, and is escaped.
Standard: the HTML standard, 13.3 (serialisation); only the code chooses names of elements and attributes.
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
    """One element. In attribute names `_` means `-`, and is dropped at the end; None and False omit the attribute."""
    written = "".join(
        _attribute(each, value) for each, value in attributes.items() if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{together(content)}</{name}>")


def together(content: Content) -> Html:
    """The contents, joined."""
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
