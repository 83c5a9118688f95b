"""Writes DER elements without copying what is large, and reads structures with one kind of error.
Standard: X.690 (DER); reading is by cryptography's strict parser.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure

SEQUENCE, SET, OCTET_STRING, INTEGER, NULL = 0x30, 0x31, 0x04, 0x02, b"\x05\x00"

T = TypeVar("T")


class Element:
    """One DER element whose parts are joined only once, at the very end."""

    __slots__ = ("pieces", "size")
    pieces: list[bytes]
    size: int

    def __init__(self, tag: int, *parts: bytes | Element) -> None:
        """`tag` is the identifier octet; `parts` are its contents in order."""
        pieces: list[bytes] = []
        for part in parts:
            pieces += part.pieces if isinstance(part, Element) else [part]
        length = sum(len(piece) for piece in pieces)
        head = header(tag, length)
        self.pieces = [head, *pieces]
        self.size = len(head) + length

    def octets(self) -> bytes:
        """The whole element."""
        return b"".join(self.pieces)


def header(tag: int, length: int) -> bytes:
    """Identifier and length octets, the shortest form (X.690, 10.1)."""
    if length < 0x80:
        return bytes((tag, length))
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets


def sequence(*parts: bytes | Element) -> Element:
    """A SEQUENCE of encoded parts."""
    return Element(SEQUENCE, *parts)


def set_of(parts: Iterable[bytes], tag: int = SET) -> Element:
    """A SET OF encoded parts, in the order that DER wants (X.690, 11.6)."""
    return Element(tag, *sorted(parts))


def integer(value: int) -> bytes:
    """An INTEGER that is not negative."""
    return Element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1)).octets()


def oid(identifier: ObjectIdentifier) -> bytes:
    """An OBJECT IDENTIFIER."""
    octets: bytes = asn1.encode_der(identifier)
    return octets


def algorithm(identifier: ObjectIdentifier, *parameters: bytes | Element) -> bytes:
    """An AlgorithmIdentifier; without `parameters` they are absent."""
    return sequence(oid(identifier), *parameters).octets()


def retagged(tag: int, element: bytes) -> bytes:
    """The element under another identifier octet (IMPLICIT tagging)."""
    return bytes((tag,)) + element[1:]


def parse(structure: type[T], der: bytes, what: str) -> T:
    """`der` as `structure`; raises BadStructure, which begins with `what`."""
    try:
        return asn1.decode_der(structure, der)
    except (ValueError, OverflowError) as error:
        raise BadStructure(f"{what}: {error}") from error


def parse_tlv(structure: type[T], element: asn1.TLV, what: str) -> T:
    """An element that was kept as it came, as `structure`; raises BadStructure."""
    try:
        parsed: T = element.parse(structure)
    except (ValueError, OverflowError) as error:
        raise BadStructure(f"{what}: {error}") from error
    return parsed


def shown(value: int) -> str:
    """An INTEGER of the message for an error's text: it may have a million digits."""
    return str(value) if value.bit_length() <= 64 else f"of {value.bit_length()} bits"


def children(octets: bytes | memoryview, most: int) -> list[memoryview]:
    """The contents of each element in `octets`, which is not parsed any further.

    For a look before the strict parser makes objects of everything. Raises BadStructure for more than `most`, and
    for what is no sequence of elements.
    """
    view = memoryview(octets)
    return [view[begin:end] for begin, end in _spans(octets, most)]


def check_number(octets: bytes | memoryview, most: int) -> None:
    """Raises BadStructure where `octets` are more than `most` elements, or are no sequence of elements."""
    for _ in _spans(octets, most):
        pass


def _spans(octets: bytes | memoryview, most: int) -> Iterator[tuple[int, int]]:
    position, size = 0, len(octets)
    while position < size:
        begin = position + 2
        length = octets[position + 1] if begin <= size else size
        if length >= 0x80:
            begin += length & 0x7F
            length = int.from_bytes(octets[position + 2 : begin])
        position = begin + length
        most -= 1
        if most < 0 or position > size:
            raise BadStructure("more elements than are accepted, or one that is cut short")
        yield begin, position


def whole(element: asn1.TLV) -> bytes:
    """Identifier, length and contents of an element that was kept as it came."""
    tag = element.tag_bytes
    return tag + header(0, len(element.data))[1:] + bytes(element.data)
