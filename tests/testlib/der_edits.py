"""Edits of DER that keep it well-formed, or only just do not: elements dropped, doubled, swapped, renamed, rewritten.
Standard: ITU-T X.690. It shares no code with relay, and looks into OCTET STRINGs that hold DER.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random


@dataclass
class Element:
    """One element: identifier octet, and its contents, or its children and which octets stand before them."""

    identifier: int
    contents: bytes = b""
    children: list[Element] = field(default_factory=list)
    form: str = "minimal"  # or "long": a length that is not minimal; "indefinite"

    def encode(self) -> bytes:
        """As it stands, with lengths that fit unless `form` says otherwise."""
        contents = b"".join(child.encode() for child in self.children) if self.children else self.contents
        if self.form == "indefinite":
            return bytes([self.identifier, 0x80]) + contents + b"\0\0"
        return bytes([self.identifier]) + _length(len(contents), self.form) + contents

    def all(self) -> list[Element]:
        """This one and all inside."""
        return [self, *(inner for child in self.children for inner in child.all())]


def _length(size: int, form: str) -> bytes:
    if size < 0x80 and form == "minimal":
        return bytes([size])
    octets = size.to_bytes(max(1, (size.bit_length() + 7) // 8), "big")
    if form == "long":
        octets = b"\0" + octets if size >= 0x80 else octets
    return bytes([0x80 | len(octets)]) + octets


def parse(octets: bytes) -> list[Element]:
    """The elements in `octets`. Raises ValueError where it is not DER of short tags."""
    elements, at = [], 0
    while at < len(octets):
        identifier, at, end = _head(octets, at)
        contents = octets[at:end]
        element = Element(identifier, contents)
        if identifier & 0x20 and contents:
            element.children = parse(contents)
        elif identifier == 0x04 and contents[:1] == b"\x30":
            try:
                element.children = parse(contents)
            except ValueError:
                element.children = []
        elements.append(element)
        at = end
    return elements


def _head(octets: bytes, at: int) -> tuple[int, int, int]:
    """Identifier, where the contents begin, where they end."""
    if at + 2 > len(octets) or octets[at] & 0x1F == 0x1F:
        raise ValueError("not DER of short tags")
    length, start = octets[at + 1], at + 2
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(octets[at + 2 : start], "big")
    if start + length > len(octets):
        raise ValueError("truncated")
    return octets[at], start, start + length


def edited(octets: bytes, random: Random, times: int = 1) -> bytes:
    """`octets` of one element after so many random edits."""
    root = Element(0x30, children=parse(octets))
    for _ in range(times):
        parents = [element for element in root.all() if element.children]
        if not parents:
            break
        parent = random.choice(parents)
        random.choice(_EDITS)(parent, random.randrange(len(parent.children)), random)
    return b"".join(child.encode() for child in root.children)


def _drop(parent: Element, at: int, _: Random) -> None:
    del parent.children[at]
    parent.contents = b""


def _double(parent: Element, at: int, _: Random) -> None:
    parent.children.insert(at, parent.children[at])


def _swap(parent: Element, at: int, random: Random) -> None:
    other = random.randrange(len(parent.children))
    parent.children[at], parent.children[other] = parent.children[other], parent.children[at]


def _rename(parent: Element, at: int, random: Random) -> None:
    child = parent.children[at]
    child.identifier = random.choice(
        [child.identifier ^ 0x20, child.identifier ^ 1, 0x0C, 0x04, 0x13, 0xA0, 0xA1, 0x80, 0x31]
    )


def _other_form(parent: Element, at: int, random: Random) -> None:
    parent.children[at].form = random.choice(["long", "indefinite"])


def _add(parent: Element, at: int, random: Random) -> None:
    parent.children.insert(at + random.randrange(2), Element(random.choice([0x05, 0x02, 0x0C, 0x30, 0x31, 0xA1]), b""))


def _rewrite(parent: Element, at: int, random: Random) -> None:
    child = parent.children[at]
    octets = bytearray(b"".join(each.encode() for each in child.children) or child.contents)
    for _ in range(random.randrange(1, 3)):
        where = random.randrange(len(octets) + 1)
        octets[where : where + random.randrange(2)] = random.choice(
            [b"", b"\0", b"\xff", b"\x80", random.randbytes(1), random.randbytes(1), b"0", b" "]
        )
    child.contents, child.children = bytes(octets), []


_EDITS: list[Callable[[Element, int, Random], None]] = [
    _drop, _double, _swap, _rename, _other_form, _add, _rewrite, _rewrite, _rewrite,
]  # fmt: skip
