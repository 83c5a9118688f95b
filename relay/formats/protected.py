"""A message as the content of an S/MIME message, with its header inside where nobody on the way reads or changes it.
Standard: RFC 9788 (header protection), 2.1 and 2.2: the parameter hp of Content-Type, and fields HP-Outer.

A program that does not know this shows the header outside, and the same body.
"""

from __future__ import annotations

from relay.formats import mime, parameters
from relay.formats.doubt import InDoubt
from relay.formats.pieces import Pieces

_NOT_INSIDE = mime.NEVER_CARRIED | {b"received", b"hp-outer", b"x-qumail-sealed"}
_NO_COPIES = frozenset({b"received"})
"""Fields outside that were not written by the author."""
_PROTECTED = b'hp="cipher"'


def protected_entity(original: bytes, shown: bytes) -> Pieces:
    """The header fields of the original, a copy of each that is outside (`shown`), and the body.

    Raises MalformedMessage.
    """
    end, body = mime.bounds(original)
    found = [(name, raw) for name, raw in mime.fields(original[:end]) if name not in _NOT_INSIDE]
    types = [raw for name, raw in found if name == b"content-type"]
    inside = b"".join([raw if name != b"content-type" else _marked(raw, len(types)) for name, raw in found])
    if inside and not inside.endswith(b"\r\n"):
        inside += b"\r\n"
    if not types:
        inside += b"Content-Type: text/plain; " + _PROTECTED + b"\r\n"
    outside = [b"HP-Outer: " + raw for name, raw in mime.fields(shown) if name not in _NO_COPIES]
    return Pieces.of(inside + b"".join(outside) + b"\r\n", memoryview(original)[body:])


def _marked(content_type: bytes, number: int) -> bytes:
    """The field with the parameter hp, or unchanged if there are several, or programs may read it differently."""
    value = content_type.partition(b":")[2]
    try:
        structured = parameters.parse(value)
    except InDoubt:
        return content_type
    if number != 1 or not value.isascii() or structured.values("hp"):
        return content_type
    bare = content_type.rstrip(b"\r\n \t")
    return bare + (b"" if bare.endswith(b";") else b";") + b"\r\n " + _PROTECTED + b"\r\n"
