"""Writes DER elements, and reads structures with one kind of error.
Standard: X.690 (DER); reading is by cryptography's strict parser.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TypeVar

from cryptography.hazmat import asn1 as asn1  # noqa: TID251 - not yet promised to be stable: from here alone
from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure

SEQUENCE, SET, BIT_STRING, OCTET_STRING, INTEGER, NULL = 0x30, 0x31, 0x03, 0x04, 0x02, b"\x05\x00"

T = TypeVar("T")


def header(tag: int, length: int) -> bytes:
    """Identifier and length octets, the shortest form (X.690, 10.1)."""
    if length < 0x80:
        return bytes((tag, length))
    octets = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets


def element(tag: int, *parts: bytes) -> bytes:
    """An element; `tag` is the identifier octet, `parts` are its contents in order."""
    return b"".join(around(tag, parts))


def around(tag: int, pieces: Iterable[bytes], more: int = 0) -> list[bytes]:
    """Returns an element in pieces, without a rest of `more` octets that the caller adds: large content."""
    pieces = list(pieces)
    return [header(tag, sum(map(len, pieces)) + more), *pieces]


sequence = partial(element, SEQUENCE)
"""A SEQUENCE of encoded parts."""


def set_of(parts: Iterable[bytes]) -> bytes:
    """A SET OF encoded parts, in DER order (X.690, 11.6)."""
    return element(SET, *sorted(parts))


def integer(value: int) -> bytes:
    """An INTEGER that is not negative."""
    return element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def oid(identifier: ObjectIdentifier) -> bytes:
    """An OBJECT IDENTIFIER."""
    octets: bytes = asn1.encode_der(identifier)
    return octets


def algorithm(identifier: ObjectIdentifier, *parameters: bytes) -> bytes:
    """An AlgorithmIdentifier; without `parameters` they are absent."""
    return sequence(oid(identifier), *parameters)


def retagged(tag: int, encoded: bytes) -> bytes:
    """The element under another identifier octet (IMPLICIT tagging)."""
    return bytes((tag,)) + encoded[1:]


def parse(structure: type[T], source: bytes | asn1.TLV, label: str) -> T:
    """Parses DER, or an unparsed element, as `structure`; raises BadStructure, whose text begins with `label`."""
    try:
        if isinstance(source, bytes):
            return asn1.decode_der(structure, source)
        parsed: T = source.parse(structure)
        return parsed
    except (ValueError, OverflowError) as error:
        raise BadStructure(f"{label}: {error}") from error


def shown(value: int) -> str:
    """An INTEGER of the message for an error text, shortened: it may have a million digits."""
    return str(value) if value.bit_length() <= 64 else f"of {value.bit_length()} bits"


def children(octets: bytes | memoryview, most: int, *, kept: bool = True) -> list[memoryview]:
    """The contents of each element in `octets`, not parsed any further; without `kept` they are only counted.

    A check before the strict parser creates objects. Raises BadStructure for more than `most` elements, and for
    anything that is no sequence of elements.
    """
    view, contents = memoryview(octets), []
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
        if kept:
            contents.append(view[begin:position])
    return contents


def whole(kept: asn1.TLV) -> bytes:
    """Identifier, length and contents of an unparsed element."""
    return kept.tag_bytes + header(0, len(kept.data))[1:] + bytes(kept.data)
