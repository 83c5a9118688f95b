"""DER, strictly, and the one pass from BER to DER.

Standard: ITU-T X.690; relay/FORMAT.md, 9 step 1.
"""

from collections.abc import Iterator
from typing import Any

from pyasn1.codec.der.decoder import decode as pyasn1_decode
from pyasn1.codec.der.encoder import encode as pyasn1_encode
from pyasn1.error import PyAsn1Error
from pyasn1.type import univ

from tests.reader import limits

INTEGER, OCTET_STRING, NULL, OBJECT, UTF8, SEQUENCE, SET = 0x02, 0x04, 0x05, 0x06, 0x0C, 0x30, 0x31
CONSTRUCTED = 0x20
_CERTIFICATES = b"\x30\xa0\x30\xa0"
_AS_THEY_ARE = {_CERTIFICATES + b"\x30", b"\x30\xa0\x30\x31\x30\xa0"}  # certificates, signed attributes
_FAILURES = (PyAsn1Error, ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError)


class BadEncodingError(Exception):
    """The octets are not what the format writes."""


def tlv(tag: int, *contents: bytes) -> bytes:
    """One element: identifier octet, minimal length, contents."""
    return element(bytes([tag]), b"".join(contents))


def element(identifier: bytes, contents: bytes) -> bytes:
    """The same with identifier octets, which may be several."""
    return identifier + _length(len(contents)) + contents


def _length(size: int) -> bytes:
    if size < 0x80:
        return bytes([size])
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(octets)]) + octets


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    return bytes(pyasn1_encode(univ.ObjectIdentifier(dotted)))


def integer(number: int) -> bytes:
    """An INTEGER that is not negative."""
    return tlv(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def encode(value: Any) -> bytes:
    """The DER of a pyasn1 value."""
    try:
        return bytes(pyasn1_encode(value))
    except _FAILURES as error:
        raise BadEncodingError(str(error)) from error


def decode(octets: bytes, spec: Any) -> Any:
    """The pyasn1 value of `spec` in `octets`, which must be exactly its DER. pyasn1 is lenient: what it read is written again.

    Contents of ANY are not looked into; who reads them decodes them again. Raises BadEncodingError.
    """
    try:
        written, rest = pyasn1_decode(octets, asn1Spec=spec)
        if rest or encode(written) != octets:
            raise BadEncodingError("not DER")
        return pyasn1_decode(octets, asn1Spec=spec)[0]  # again: writing leaves empty components behind
    except _FAILURES as error:
        raise BadEncodingError(str(error)) from error


def has(value: Any, *names: str) -> bool:
    """Whether a SEQUENCE has one of these optional components. (To ask it for one makes pyasn1 invent it.)"""
    found = (value.getComponentByName(name, default=None, instantiate=False) for name in names)
    return any(component is not None and component.isValue for component in found)


def head(octets: bytes, at: int, end: int) -> tuple[bytes, int | None, int]:
    """Identifier octets, length (None: indefinite) and where the contents begin, of the element at `at`, in BER."""
    start = at
    at += 1
    if octets[start : start + 1] == b"":
        raise BadEncodingError("truncated")
    if octets[start] & 0x1F == 0x1F:
        while at < end and octets[at] & 0x80:
            at += 1
        at += 1
    identifier = octets[start:at]
    if at >= end:
        raise BadEncodingError("truncated")
    first = octets[at]
    at += 1
    if first < 0x80:
        length: int | None = first
    elif first == 0x80:
        length = None
    elif first == 0xFF:
        raise BadEncodingError("a length that X.690 reserves")
    else:
        length = int.from_bytes(octets[at : at + first - 0x80], "big")
        at += first - 0x80
    if at + (length or 0) > end:
        raise BadEncodingError("truncated")
    return identifier, length, at


def check(octets: bytes) -> None:
    """Everything in `octets` is one element in DER, as far as that shows without a schema, inside ANY too.

    Raises BadEncodingError.
    """
    waiting = [(0, len(octets), 1)]
    while waiting:
        at, end, allowed = waiting.pop()
        while at < end:
            if not allowed:
                raise BadEncodingError("something follows")
            identifier, length, start = head(octets, at, end)
            if length is None or octets[at:start] != identifier + _length(length):
                raise BadEncodingError("the length is not DER")
            _check_universal(identifier, octets[start : start + length])
            if identifier[0] & CONSTRUCTED:
                waiting.append((start, start + length, -1))
            at = start + length
            allowed -= 1
        if allowed > 0:
            raise BadEncodingError("nothing is there")


def _check_universal(identifier: bytes, contents: bytes) -> None:
    """What X.690 says of a universal type by itself."""
    first = identifier[0]
    if first & 0xC0:
        return
    number = first & 0x1F
    if number == 0 or len(identifier) > 1:
        raise BadEncodingError("no such universal type")
    if (number in (0x10, 0x11)) != bool(first & CONSTRUCTED):
        raise BadEncodingError("constructed, or primitive, where DER is not")
    if first == INTEGER and (
        not contents or (len(contents) > 1 and contents[0] in (0, 0xFF) and contents[0] >> 7 == contents[1] >> 7)
    ):
        raise BadEncodingError("an INTEGER that is not minimal")
    if first == NULL and contents:
        raise BadEncodingError("a NULL with contents")


def from_ber(octets: bytes, *, signed: bool = False) -> bytes:
    """`octets`, one element in BER, as DER: lengths definite and minimal, OCTET STRINGs in one piece, SETs in order.

    In a layer [0] that holds nothing but OCTET STRINGs is such a string as well. In SignedData (`signed`) there is none,
    and certificates and signed attributes stay as they are. Raises BadEncodingError.
    """
    converted, at = _Ber(octets, signed).element(0, len(octets), b"")
    if at != len(octets):
        raise BadEncodingError("something follows")
    return converted


class _Ber:
    """One pass over BER, which counts what it meets."""

    def __init__(self, octets: bytes, signed: bool) -> None:
        self._octets = octets
        self._signed = signed
        self._elements = 0
        self._chunks = 0

    def element(self, at: int, end: int, outside: bytes) -> tuple[bytes, int]:
        """The DER of the element at `at`, and where the next one begins; `outside` are the identifiers around it."""
        if len(outside) >= limits.BER_DEPTH:
            raise BadEncodingError("too deep")
        identifier, length, at = head(self._octets, at, end)
        if not identifier[0] & CONSTRUCTED or (self._signed and outside + identifier in _AS_THEY_ARE):
            if length is None or identifier == b"\0":
                raise BadEncodingError("a length, or an end, where none can be")
            self._count(identifier)
            return element(identifier, self._octets[at : at + length]), at + length
        self._count(identifier)
        stop = end if length is None else at + length
        children = list(self._children(at, stop, outside + identifier[:1], length is None))
        after = children.pop()[1]
        in_order = sorted if self._signed and outside + identifier == _CERTIFICATES else list
        return self._join(identifier, in_order([child for child, _ in children])), after

    def _children(self, at: int, stop: int, outside: bytes, until_end: bool) -> Iterator[tuple[bytes, int]]:
        """The children, and at last an empty one that says where the element ends."""
        while at < stop:
            if until_end and self._octets[at : at + 2] == b"\0\0":
                yield b"", at + 2
                return
            child, at = self.element(at, stop, outside)
            yield child, at
        if until_end:
            raise BadEncodingError("no end of contents")
        yield b"", at

    def _join(self, identifier: bytes, children: list[bytes]) -> bytes:
        first = identifier[0]
        pieces = not self._signed and all(child[0] == OCTET_STRING for child in children)
        if first == OCTET_STRING | CONSTRUCTED:
            if not all(child[0] == OCTET_STRING for child in children):
                raise BadEncodingError("a string of something else")
        elif first != 0xA0 or not pieces:
            contents = b"".join(sorted(children) if first == SET else children)
            if first == SET and len(contents) > limits.BER_SET:
                raise BadEncodingError("too large a SET")
            return element(identifier, contents)
        return element(bytes([first & ~CONSTRUCTED]), b"".join(_contents(child) for child in children))

    def _count(self, identifier: bytes) -> None:
        if identifier[0] & ~CONSTRUCTED == OCTET_STRING:
            self._chunks += 1
        else:
            self._elements += 1
        if self._chunks > limits.BER_FREE_CHUNKS + len(self._octets) // limits.BER_CHUNK_OCTETS:
            raise BadEncodingError("too many chunks")
        if self._elements > limits.BER_ELEMENTS:
            raise BadEncodingError("too many elements")


def _contents(der: bytes) -> bytes:
    _, length, at = head(der, 0, len(der))
    return der[at : at + (length or 0)]
