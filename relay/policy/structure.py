"""Finds the parts of a message as mail programs show them: each type and file name that some program sees.
Standard: RFC 2045, RFC 2046, RFC 2183; time is linear in the message, and what exceeds a limit is unclear.

Programs disagree about malformed messages. So whatever one of them may take for the beginning of a part is one here.
That applies after a line that only begins with a boundary, after the last delimiter, and for each boundary that is
named. A rule asks whether a part exists, and one too many can only raise the level.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from relay.errors import MalformedMessage
from relay.formats import charsets, mime
from relay.formats.parameters import Structured, parse

MAX_DEPTH = 8
MAX_PARTS = 250
MAX_DELIMITERS = 2000
"""Maximum number of lines that begin with a boundary."""
MAX_BOUNDARIES = 4
"""Maximum number of boundaries in one field."""
MAX_PART_HEADER_OCTETS = 16 * 1024
MAX_PASSES = 12
"""Maximum number of octets that are searched for delimiters, as a multiple of the message's size."""
ODD_FIELD_OCTETS, ODD_FIELD_SHARE = 8 * 1024, 64
"""Maximum work on all fields with several readings, in octets: a base, and one for each 64 octets of the message."""
PARAMETER_COSTS = 64
"""Cost of a parameter of such a field beside its octets, in octets."""

_FIELD = re.compile(
    rb"\n[^ -~\t\r\n]*+(content-(?:type|disposition|transfer-encoding|name)|x-sun-data-name)[^!-~]*+:"
    rb"((?:[^\r\n]++|(?:\r\n|\r|\n)[ \t])*+)",
    re.IGNORECASE,
)
_CALLED = re.compile(
    rb"\n[^ -~\t\r\n]*+(?:content-(?:description|location)|subject)[^!-~]*+:((?:[^\r\n]++|(?:\r\n|\r|\n)[ \t])*+)",
    re.IGNORECASE,
)
"""Fields that name a part without a file name (MS-OXCMAIL 2.2.3.4.3), or a message: its own Subject."""
_NO_FIELD = re.compile(rb"\n(?![\r\n]|[!-9;-~]++[ \t]*+:|[ \t]++[^ \t\r\n]|\Z)")
"""A line at which some programs see the end of the header."""
_ODD_BLANK = re.compile(rb"\n[\x0b\x0c\x1c-\x1f\x85\xa0]")
"""A line that continues the one before for some programs only."""
_MESSAGES = frozenset({"message/rfc822", "message/global", "message/news"})
_CMS = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_CMS_NAMES = (".p7m", ".p7z")
_ENCRYPTED = re.compile(
    rb"0(?:[\x00-\x80]|[\x81-\x84].{1,4}?)\x06(?:\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07[\x03\x06]"
    rb"|\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17)",
    re.DOTALL,
)
"""ContentInfo (RFC 5652, RFC 5083) of EnvelopedData, EncryptedData and AuthEnvelopedData, which need a key."""
_CMS_HEAD_OCTETS = 200
MAX_CALLED_OCTETS = 1000
"""Maximum length of such a name, in octets."""
_FAMILIES = frozenset({"multipart", "message"})
_UNENCODED = frozenset({"", "7bit", "8bit", "binary"})
"""Valid encodings of containers (RFC 2045, 6.4): programs disagree whether they decode any other."""
_PARAMETRISED = frozenset({b"content-type", b"content-disposition"})
_NOTHING = Structured()


class FoundPart(NamedTuple):
    """One reading of a part: its type in lower case, and its raw file names, encoded words included."""

    type: str
    names: tuple[str, ...]


class _Unclear(Exception):
    """The structure is too deep, too large or too malformed to parse."""


class _Delimiter(NamedTuple):
    """A line that begins with a boundary: its offset, and that of the next line.

    `exact` is False if more text follows in it; `last` if two hyphens mark it as the last one.
    """

    at: int
    after: int
    exact: bool
    last: bool


def find_parts(message: bytes) -> tuple[list[FoundPart], bool]:
    """The parts, without duplicates, in order of appearance, and whether there may be others."""
    walk = _Walk(message)
    unclear = False
    try:
        walk.entity(0, len(message), 0)
    except (MalformedMessage, _Unclear):
        unclear = True
    return list(dict.fromkeys(walk.parts)), unclear


class _Walk:
    """Parses a message, on the raw bytes and without copying bodies."""

    def __init__(self, message: bytes) -> None:
        self.parts: list[FoundPart] = []
        self._message = message
        self._entities = MAX_PARTS
        self._delimiters_left = MAX_DELIMITERS
        self._search = MAX_PASSES * len(message)
        self._odd_fields = ODD_FIELD_OCTETS + len(message) // ODD_FIELD_SHARE

    def entity(self, start: int, end: int, depth: int, *, in_digest: bool = False) -> None:
        """Parses one entity between two offsets: header, empty line, body. Raises _Unclear or MalformedMessage."""
        self._entities -= 1
        if depth > MAX_DEPTH or self._entities < 0:
            raise _Unclear
        header, body = self._header(start, end, outermost=depth == 0)
        fields = self._structured_fields(header)
        content_type = fields.get(b"content-type", _NOTHING)
        kinds = _kinds(content_type, in_digest=in_digest)
        names = _names(fields) if fields else ()
        encodings = fields.get(b"content-transfer-encoding", _NOTHING).values
        if not _CMS.isdisjoint(kinds) or any(name.lower().endswith(_CMS_NAMES) for name in names):
            self._look_into_cms(body, end, encodings)
        if not names and depth:
            names = _called(header)
        families = set()
        for kind in kinds:
            families.add(kind.partition("/")[0])
            if names or not kind.startswith("multipart"):
                self.parts.append(FoundPart(kind, names))
        as_it_stands = "message/partial" not in kinds and _UNENCODED.issuperset(encodings)
        if not (as_it_stands or families.isdisjoint(_FAMILIES)):
            raise _Unclear
        if "message" in families:
            if _NO_FIELD.search(header):
                raise _Unclear
            if not names:
                inner, _ = self._header(body, end, outermost=False)
                called = [form for name in _called(inner) for form in (name, f"{name}.eml")]
                self.parts += [FoundPart(kind, tuple(called)) for kind in kinds if called]
            self.entity(body, end, depth + 1)
        if "multipart" in families or content_type.readings("boundary"):  # some programs go by the boundary alone
            has_parts = self._multipart(content_type, start, end, depth, in_digest="multipart/digest" in kinds)
            if not has_parts and "multipart" in families:
                raise _Unclear

    def _header(self, start: int, end: int, *, outermost: bool) -> tuple[bytes, int]:
        """An entity's header after an end of line, and the offset of its body."""
        message = self._message
        if outermost:
            stop, body = mime.bounds(message)
            if stop == body < end:  # a line in between is no field
                raise _Unclear
        elif message.startswith(b"\r\n", start):
            stop, body = start, start + 2
        else:
            stop = message.find(b"\r\n\r\n", start, min(end, start + MAX_PART_HEADER_OCTETS))
            if stop < 0 and end - start > MAX_PART_HEADER_OCTETS:
                raise _Unclear
            stop, body = (end, end) if stop < 0 else (stop + 2, stop + 4)
        header = b"\r\n" + message[start:stop]
        if header.startswith((b"\r\n ", b"\r\n\t")) or _ODD_BLANK.search(header):
            raise _Unclear  # it continues nothing, or for some programs only
        # Some programs end a line at a CR alone; a pattern that begins with one octet is fast.
        return header if header.count(b"\r") == header.count(b"\r\n") else header.replace(b"\r", b"\n"), body

    def _look_into_cms(self, start: int, end: int, encodings: tuple[str, ...]) -> None:
        """Raises _Unclear unless all CMS content is encrypted: mail programs show what is within signed data."""
        head = self._message[start : min(end, start + _CMS_HEAD_OCTETS)]
        if encodings == ("base64",):
            try:
                head = binascii.a2b_base64(b"".join(head.split())[: _CMS_HEAD_OCTETS // 2] + b"==")
            except binascii.Error as error:
                raise _Unclear from error
        elif not _UNENCODED.issuperset(encodings):
            raise _Unclear
        if not _ENCRYPTED.match(head):
            raise _Unclear

    def _structured_fields(self, header: bytes) -> dict[bytes, Structured]:
        """The fields that describe an entity, by name; duplicates are ambiguous and raise _Unclear."""
        fields: dict[bytes, Structured] = {}
        for field, value in _FIELD.findall(header):
            name, structured = field.lower(), parse(value)
            if not structured.plain:
                self._odd_fields -= len(value) + PARAMETER_COSTS * value.count(b"=")
            if name in fields or structured.unclear or self._odd_fields < 0:
                raise _Unclear
            if name == b"content-transfer-encoding" and not structured.value and value.strip():
                raise _Unclear
            fields[name] = structured
        return fields

    def _multipart(self, content_type: Structured, start: int, end: int, depth: int, *, in_digest: bool) -> bool:
        """Parses the parts of each boundary that some program may see; returns whether there are any.

        Delimiters are searched from the beginning of the header, since programs disagree where that ends.
        """
        named = content_type.octets("boundary")
        boundaries = {each for octets in named for each in (octets.rstrip(), octets.strip()) if each}
        if not boundaries or len(boundaries) > MAX_BOUNDARIES:
            raise _Unclear
        results = [self._between(boundary, start, end, depth, in_digest=in_digest) for boundary in sorted(boundaries)]
        return any(results)

    def _between(self, boundary: bytes, start: int, end: int, depth: int, *, in_digest: bool) -> bool:
        """Parses the parts between the delimiters of a boundary; returns whether there are any."""
        has_parts = closed = False
        begins: list[int] = []
        for delimiter in self._delimiters(boundary, max(0, start - 2), end):
            has_parts = True
            if delimiter.exact:
                for begin in begins:
                    self.entity(begin, max(begin, delimiter.at), depth + 1, in_digest=in_digest)
                begins, closed = [], delimiter.last
            if not delimiter.last:
                begins.append(delimiter.after)
        for begin in begins:
            self.entity(begin, end, depth + 1, in_digest=in_digest)
        if has_parts and not closed:
            # Delimiters of an outer boundary have ended it, and some programs continue this one after them.
            self._look(len(self._message) - end)
            if self._message.find(b"\r\n--" + boundary, end) >= 0:
                raise _Unclear
        return has_parts

    def _delimiters(self, boundary: bytes, start: int, end: int) -> Iterator[_Delimiter]:
        """Each line that begins with this boundary (RFC 2046, 5.1.1)."""
        message, needle = self._message, b"\r\n--" + boundary
        self._look(end - start)
        while (at := message.find(needle, start, end)) >= 0:
            self._delimiters_left -= 1
            if self._delimiters_left < 0:
                raise _Unclear
            start = at + len(needle)
            line_end = message.find(b"\r\n", start, end)
            rest = message[start : line_end if line_end >= 0 else end].rstrip(b" \t")
            after = line_end + 2 if line_end >= 0 else end
            yield _Delimiter(at, after, rest in (b"", b"--"), rest == b"--")

    def _look(self, size: int) -> None:
        self._search -= size
        if self._search < 0:
            raise _Unclear


def _kinds(content_type: Structured, *, in_digest: bool) -> tuple[str, ...]:
    """Each possible type of a Content-Type, in lower case; the default if it is missing or invalid."""
    first, _, second = content_type.values[0].partition("/")
    if first and second:
        return content_type.values if content_type.plain else tuple(filter(None, content_type.values))
    default = ("message/rfc822", "text/plain") if in_digest else ("text/plain",)
    return (*filter(None, content_type.values), *default)


def _called(header: bytes) -> tuple[str, ...]:
    """The names of a part without a file name: description, location, or Subject. Raises _Unclear."""
    texts: list[str] = []
    for value in _CALLED.findall(header):
        octets = value.replace(b"\r\n", b"").strip()
        if len(octets) > MAX_CALLED_OCTETS:
            raise _Unclear
        texts += charsets.texts(octets, charsets.raw_codecs(octets))
    return tuple(texts)


def _names(fields: Mapping[bytes, Structured]) -> tuple[str, ...]:
    """All names in these fields under which a mail program may save the part, without duplicates."""
    names: list[str] = []
    for field, structured in fields.items():
        if field in _PARAMETRISED:
            names += structured.readings("filename")
            names += structured.readings("name")
        elif field != b"content-transfer-encoding":
            names += structured.values
    return tuple(dict.fromkeys(names))
