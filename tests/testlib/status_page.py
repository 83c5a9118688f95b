"""The status page as a program reads it: it is well-formed XML too, so that a parser stops at whatever is not escaped.
Standard: numbers are taken from what a reader sees, or from the value that stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from relay.config import TCPAddress
from tests.testlib.status_numbers import asked


@dataclass
class ReadPage:
    """What stands on it."""

    root: Element

    @classmethod
    def of(cls, text: str) -> ReadPage:
        doctype, _, rest = text.partition("\n")
        assert doctype == "<!doctype html>"
        return cls(ElementTree.fromstring(rest))

    def by_id(self, name: str) -> Element:
        [found] = [each for each in self.root.iter() if each.get("id") == name]
        return found

    def text(self, name: str) -> str:
        """All words of one element."""
        return " ".join(" ".join(self.by_id(name).itertext()).split())

    def table(self, name: str) -> Iterator[tuple[list[str], dict[str, int]]]:
        """Each row: its words, and its numbers by column."""
        head, *rows = self.by_id(f"table-{name}").iter("tr")
        columns = ["".join(each.itertext()) for each in head]
        for row in rows:
            cells = [("".join(each.itertext()), each.get("class")) for each in row]
            yield (
                [text for text, kind in cells if kind == "text"],
                {
                    column: int(text.replace(",", ""))
                    for column, (text, kind) in zip(columns, cells, strict=True)
                    if kind is None
                },
            )

    def facts(self, section: str) -> dict[str, str]:
        """Names and values of one section."""
        names, values = self.by_id(section).iter("dt"), self.by_id(section).iter("dd")
        return {"".join(name.itertext()): "".join(value.itertext()) for name, value in zip(names, values, strict=True)}

    def mails(self) -> dict[tuple[str, str, str], int]:
        """By direction, level and outcome, without those that are 0."""
        return {
            (direction, level.replace("in clear", "plaintext"), outcome): number
            for [level, direction], numbers in self.table("mails")
            for outcome, number in numbers.items()
            if number
        }


async def page(address: TCPAddress) -> ReadPage:
    """As it is served."""
    return ReadPage.of(await asked(address, "/"))
