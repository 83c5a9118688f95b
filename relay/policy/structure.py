"""Finds the file names of a message's parts; raises InDoubt if they are not found beyond doubt.
Standard: RFC 2045, RFC 2046, RFC 2183; time is linear in the message.

A rule asks whether a file is attached. What breaks the standard is in doubt, since programs show different parts of it.
A message that ends without its last delimiter is read all the same.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator

from relay.errors import MalformedMessage
from relay.formats import mime
from relay.formats.doubt import InDoubt
from relay.formats.parameters import Structured, parse

MAX_DEPTH = 8
MAX_PARTS = 250
MAX_PART_HEADER_OCTETS = 16 * 1024
MAX_CALLED_OCTETS = 1000
"""Maximum length of the name of a part without a file name, in octets."""

_FIELD = re.compile(
    rb"\n(content-(?:type|disposition|transfer-encoding|name)|x-sun-data-name)[ \t]*+:((?:[^\r\n]++|\r\n[ \t])*+)",
    re.IGNORECASE,
)
_CALLED = re.compile(
    rb"\n(?:content-(?:description|location)|subject)[ \t]*+:((?:[^\r\n]++|\r\n[ \t])*+)", re.IGNORECASE
)
"""Fields that name a part without a file name (MS-OXCMAIL 2.2.3.4.3), or a message: its own Subject."""
_NO_FIELD = re.compile(rb"\n(?![!-9;-~]++[ \t]*+:|[ \t]++[^ \t\r\n]|(?<=\A\r\n)>?From |\Z)")
"""A line that is no field and continues none; mailbox files have one as the first."""
_CMS = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_CMS_NAMES = (b".p7m", b".p7z")
_ENCRYPTED = re.compile(
    rb"0(?:[\x00-\x80]|[\x81-\x84].{1,4}?)\x06(?:\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07[\x03\x06]"
    rb"|\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17)",
    re.DOTALL,
)
"""ContentInfo (RFC 5652, RFC 5083) of EnvelopedData, EncryptedData and AuthEnvelopedData, which need a key."""
_CMS_HEAD_OCTETS = 200
_UNENCODED = frozenset({"7bit", "8bit", "binary"})
"""Valid encodings of parts that hold others (RFC 2045, 6.4)."""
_ENCODINGS = _UNENCODED | {"quoted-printable", "base64"}
_TEXT = Structured("text/plain", {})
_MESSAGE = Structured("message/rfc822", {})
_SEVEN_BITS = Structured("7bit", {})


def find_names(message: bytes) -> list[bytes]:
    """The raw file names, encoded words included, without duplicates, in order of appearance. Raises InDoubt."""
    walk = _Walk(message)
    try:
        walk.entity(0, len(message), 0)
    except MalformedMessage as error:
        raise InDoubt(str(error)) from error
    return list(dict.fromkeys(walk.names))


class _Walk:
    """Parses a message, on the raw bytes and without copying bodies. Each method raises InDoubt."""

    def __init__(self, message: bytes) -> None:
        self.names: list[bytes] = []
        self._message = message
        self._entities = MAX_PARTS

    def entity(self, start: int, end: int, depth: int, *, default: Structured = _TEXT) -> None:
        """Parses one entity between two offsets: header, empty line, body."""
        self._entities -= 1
        if depth > MAX_DEPTH or self._entities < 0:
            raise InDoubt(f"it has more than {MAX_PARTS} parts, or {MAX_DEPTH} within each other")
        header, body = self._header(start, end, outermost=depth == 0)
        fields = _structured_fields(header)
        content_type = fields.get(b"content-type", default)
        kind, encoding = content_type.value, fields.get(b"content-transfer-encoding", _SEVEN_BITS).value
        if "/" not in kind or encoding not in _ENCODINGS:
            raise InDoubt("it has a part of no type, or of an unknown encoding")
        names = tuple(
            name for each in fields.values() for key in ("filename", "name") for name in each.values(key) if name
        )
        if kind in _CMS or any(name.lower().endswith(_CMS_NAMES) for name in names):
            self._check_encrypted(body, end, encoding)
        family = kind.partition("/")[0]
        if not names and depth:
            names = tuple(_called(header))
        if not names and family == "message":
            inner, _ = self._header(body, end, outermost=False)
            names = tuple(form for name in _called(inner) for form in (name, name + b".eml"))
        self.names += names
        if family in ("multipart", "message") and (encoding not in _UNENCODED or kind == "message/partial"):
            raise InDoubt("it has a part that holds others and is encoded, or not whole")
        if family == "message":
            self.entity(body, end, depth + 1)
        if family == "multipart" or content_type.values("boundary"):
            of_parts = _MESSAGE if kind == "multipart/digest" else _TEXT
            for begin, stop in self._between(content_type, body, end, depth):
                self.entity(begin, stop, depth + 1, default=of_parts)

    def _header(self, start: int, end: int, *, outermost: bool) -> tuple[bytes, int]:
        """An entity's header after an end of line, and the offset of its body."""
        message = self._message
        if outermost:
            stop, body = mime.bounds(message)
            if stop == body < end:
                raise InDoubt("a line of its header is no field")
        elif message.startswith(b"\r\n", start):
            stop, body = start, start + 2
        else:
            stop = message.find(b"\r\n\r\n", start, min(end, start + MAX_PART_HEADER_OCTETS))
            if stop < 0 and end - start > MAX_PART_HEADER_OCTETS:
                raise InDoubt(f"it has a part with a header of more than {MAX_PART_HEADER_OCTETS} octets")
            stop, body = (end, end) if stop < 0 else (stop + 2, stop + 4)
        header = b"\r\n" + message[start:stop]
        if (
            header.startswith((b"\r\n ", b"\r\n\t"))
            or _NO_FIELD.search(header)
            or header.count(b"\r") != header.count(b"\r\n")
        ):
            raise InDoubt("a line of a header is no field")
        return header, body

    def _check_encrypted(self, start: int, end: int, encoding: str) -> None:
        """Raises InDoubt unless CMS content is encrypted: mail programs show what is within signed data."""
        head = self._message[start : min(end, start + _CMS_HEAD_OCTETS)]
        if encoding == "base64":
            try:
                head = binascii.a2b_base64(b"".join(head.split())[: _CMS_HEAD_OCTETS // 2] + b"==")
            except binascii.Error as error:
                raise InDoubt("it has CMS content that is no base64") from error
        if not _ENCRYPTED.match(head):
            raise InDoubt("it has CMS content that is not encrypted")

    def _between(self, content_type: Structured, start: int, end: int, depth: int) -> Iterator[tuple[int, int]]:
        """The offsets of each part (RFC 2046, 5.1.1)."""
        message, boundaries = self._message, content_type.values("boundary")
        if (
            len(boundaries) != 1
            or not content_type.value.startswith("multipart/")
            or boundaries[0].strip() != boundaries[0]
        ):
            raise InDoubt("it has parts, and no boundary of them or several")
        needle = b"\r\n--" + boundaries[0]
        at, last = message.find(needle, max(0, start - 2), end), False
        if at < 0 or not boundaries[0]:
            raise InDoubt("it has parts, and no line with their boundary")
        while at >= 0:
            line_end = message.find(b"\r\n", at + len(needle), end)
            rest = message[at + len(needle) : line_end if line_end >= 0 else end].rstrip(b" \t")
            if last or rest not in (b"", b"--"):
                raise InDoubt("it has a line that only begins with a boundary, or a boundary behind the last")
            begin, last = line_end + 2 if line_end >= 0 else end, rest == b"--"
            at = message.find(needle, begin - 2, end)
            if not last:
                yield begin, max(begin, at if at >= 0 else end)
        if depth and not last:
            raise InDoubt("it has parts within parts that do not end")


def _structured_fields(header: bytes) -> dict[bytes, Structured]:
    """The fields that describe an entity, by name in lower case."""
    fields: dict[bytes, Structured] = {}
    for field, value in _FIELD.findall(header):
        name = field.lower()
        if name in fields or name in (b"content-name", b"x-sun-data-name"):
            raise InDoubt(f"it has {name.decode()}, or has it twice")
        try:
            fields[name] = parse(value)
        except InDoubt as error:
            raise InDoubt(f"{name.decode()}: {error}") from error
    return fields


def _called(header: bytes) -> Iterator[bytes]:
    """The names of a part without a file name: description, location, or Subject."""
    for value in _CALLED.findall(header):
        octets = value.replace(b"\r\n", b"").strip()
        if len(octets) > MAX_CALLED_OCTETS:
            raise InDoubt(f"it has a part with a name of more than {MAX_CALLED_OCTETS} octets")
        if octets:
            yield octets
