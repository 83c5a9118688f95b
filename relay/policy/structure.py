"""Finds the parts of a message as mail programs show them: each type and file name that some program reads.
Standard: RFC 2045, RFC 2046, RFC 2183; time is linear in the message, and what passes a bound is unclear.

Programs do not agree about messages that are not quite as the standards have them. So whatever one of them may take for
the beginning of a part is one here. That is so behind a line that only begins with a boundary, behind the last
delimiter, and for each boundary that is named. A rule asks whether there is a part, and one too many can only raise the
level.
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
"""Maximum number of boundaries that one field may name."""
MAX_PART_HEADER_OCTETS = 16 * 1024
MAX_PASSES = 12
"""Maximum number of octets that are searched for delimiters, as a multiple of the message's size."""
ODD_FIELD_OCTETS, ODD_FIELD_SHARE = 8 * 1024, 64
"""Maximum work on all fields with several readings, in octets: a base, and one for each 64 octets of the message."""
PARAMETER_COSTS = 64
"""What a parameter of such a field costs in addition to its octets, as a number of octets."""

_FIELD = re.compile(
    rb"\n[^ -~\t\r\n]*+(content-(?:type|disposition|transfer-encoding|name)|x-sun-data-name)[^!-~]*+:"
    rb"((?:[^\r\n]++|(?:\r\n|\r|\n)[ \t])*+)",
    re.IGNORECASE,
)
_CALLED = re.compile(
    rb"\n[^ -~\t\r\n]*+(?:content-(?:description|location)|subject)[^!-~]*+:((?:[^\r\n]++|(?:\r\n|\r|\n)[ \t])*+)",
    re.IGNORECASE,
)
"""What a part without a file name is called by (MS-OXCMAIL 2.2.3.4.3), and a message by its own Subject."""
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
"""Maximum length of what a part is called by, in octets, where it has no file name."""
_FAMILIES = frozenset({"multipart", "message"})
_UNENCODED = frozenset({"", "7bit", "8bit", "binary"})
"""What parts that hold others may be (RFC 2045, 6.4): programs do not agree whether they decode any other."""
_PARAMETRISED = frozenset({b"content-type", b"content-disposition"})
_NOTHING = Structured()


class FoundPart(NamedTuple):
    """One reading of a part: its type in lower case, and its file names as they stand, encoded words included."""

    type: str
    names: tuple[str, ...]


class _Unclear(Exception):
    """The structure is deeper, larger or stranger than is followed."""


class _Delimiter(NamedTuple):
    """A line that begins with a boundary: where it begins, and where the next line does.

    `exact` is False where more stands in it; `last` where two hyphens say that it is the last one.
    """

    at: int
    after: int
    exact: bool
    last: bool


def find_parts(message: bytes) -> tuple[list[FoundPart], bool]:
    """The parts, each kind once, in the order in which they begin, and whether there may be others."""
    walk = _Walk(message)
    unclear = False
    try:
        walk.entity(0, len(message), 0)
    except (MalformedMessage, _Unclear):
        unclear = True
    return list(dict.fromkeys(walk.parts)), unclear


class _Walk:
    """Goes through a message, on the raw bytes and without copying bodies."""

    def __init__(self, message: bytes) -> None:
        self.parts: list[FoundPart] = []
        self._message = message
        self._entities = MAX_PARTS
        self._delimiters_left = MAX_DELIMITERS
        self._search = MAX_PASSES * len(message)
        self._odd_fields = ODD_FIELD_OCTETS + len(message) // ODD_FIELD_SHARE

    def entity(self, start: int, end: int, depth: int, *, in_digest: bool = False) -> None:
        """One entity between two offsets: header, empty line, body. Raises _Unclear or MalformedMessage."""
        self._entities -= 1
        if depth > MAX_DEPTH or self._entities < 0:
            raise _Unclear
        header, body = self._header(start, end, outermost=depth == 0)
        told = self._told(header)
        content_type = told.get(b"content-type", _NOTHING)
        kinds = _kinds(content_type, in_digest=in_digest)
        names = _names(told) if told else ()
        encodings = told.get(b"content-transfer-encoding", _NOTHING).values
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
            found = self._multipart(content_type, start, end, depth, in_digest="multipart/digest" in kinds)
            if not found and "multipart" in families:
                raise _Unclear

    def _header(self, start: int, end: int, *, outermost: bool) -> tuple[bytes, int]:
        """An entity's header behind an end of line, and where its body begins."""
        message = self._message
        if outermost:
            stop, body = mime.bounds(message)
            if stop == body < end:  # a line stands between that is no field
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
        """Mail programs show what is within signed data. Raises _Unclear unless all of it is encrypted."""
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

    def _told(self, header: bytes) -> dict[bytes, Structured]:
        """The fields that say what an entity is, by name; two of one name could be read in two ways."""
        told: dict[bytes, Structured] = {}
        for field, value in _FIELD.findall(header):
            name, structured = field.lower(), parse(value)
            if not structured.plain:
                self._odd_fields -= len(value) + PARAMETER_COSTS * value.count(b"=")
            if name in told or structured.unclear or self._odd_fields < 0:
                raise _Unclear
            if name == b"content-transfer-encoding" and not structured.value and value.strip():
                raise _Unclear
            told[name] = structured
        return told

    def _multipart(self, content_type: Structured, start: int, end: int, depth: int, *, in_digest: bool) -> bool:
        """The parts between the delimiters of each boundary that some program may read; whether there are any.

        The delimiters are looked for from the beginning of the header, since programs do not agree where that ends.
        """
        named = content_type.octets("boundary")
        boundaries = {each for octets in named for each in (octets.rstrip(), octets.strip()) if each}
        if not boundaries or len(boundaries) > MAX_BOUNDARIES:
            raise _Unclear
        found = [self._between(boundary, start, end, depth, in_digest=in_digest) for boundary in sorted(boundaries)]
        return any(found)

    def _between(self, boundary: bytes, start: int, end: int, depth: int, *, in_digest: bool) -> bool:
        """The parts between the delimiters of a boundary; whether there are any of these."""
        found = closed = False
        begins: list[int] = []
        for delimiter in self._delimiters(boundary, max(0, start - 2), end):
            found = True
            if delimiter.exact:
                for begin in begins:
                    self.entity(begin, max(begin, delimiter.at), depth + 1, in_digest=in_digest)
                begins, closed = [], delimiter.last
            if not delimiter.last:
                begins.append(delimiter.after)
        for begin in begins:
            self.entity(begin, end, depth + 1, in_digest=in_digest)
        if found and not closed:
            # The delimiters of an outer boundary have ended it, and some programs go on with this one behind them.
            self._look(len(self._message) - end)
            if self._message.find(b"\r\n--" + boundary, end) >= 0:
                raise _Unclear
        return found

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
    """Each type that a Content-Type may be read as, in lower case; the default where there is none or no right one."""
    first, _, second = content_type.values[0].partition("/")
    if first and second:
        return content_type.values if content_type.plain else tuple(filter(None, content_type.values))
    default = ("message/rfc822", "text/plain") if in_digest else ("text/plain",)
    return (*filter(None, content_type.values), *default)


def _called(header: bytes) -> tuple[str, ...]:
    """What a part is called by where it has no file name: description, location, or Subject. Raises _Unclear."""
    found: list[str] = []
    for value in _CALLED.findall(header):
        octets = value.replace(b"\r\n", b"").strip()
        if len(octets) > MAX_CALLED_OCTETS:
            raise _Unclear
        found += charsets.texts(octets, charsets.raw_codecs(octets))
    return tuple(found)


def _names(told: Mapping[bytes, Structured]) -> tuple[str, ...]:
    """Every name in these fields that a mail program may offer for saving the part, each once."""
    found: list[str] = []
    for field, structured in told.items():
        if field in _PARAMETRISED:
            found += structured.readings("filename")
            found += structured.readings("name")
        elif field != b"content-transfer-encoding":
            found += structured.values
    return tuple(dict.fromkeys(found))
