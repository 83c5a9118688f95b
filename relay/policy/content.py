"""What rules may ask about one message: its subject, header fields and attachments, read at most once and lazily.
Standard: RFC 5322, RFC 2045 to 2047, RFC 2231; time and memory are bounded, and what is unclear counts as matching.

A rule that looks into a message can only raise the level, so counting the unclear as matching is the safe side.
"""

from __future__ import annotations

import email.errors
import email.header
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from functools import cached_property
from typing import TypeVar, cast

from relay import mime
from relay.addresses import MAX_ADDRESSES, MAX_OCTETS, read_addresses
from relay.errors import MalformedMessage
from relay.policy.names import FoldedAddress, fold_address

MAX_FIELD_OCTETS = 16 * 1024
"""A longer header field counts as having any text: decoding it takes too long."""
MAX_VALUES = 20
MAX_DATE_OCTETS = 200
MAX_DEPTH = 8
MAX_PARTS = 500
MAX_DELIMITERS = 2000
MAX_LINE_OCTETS = 1000
MAX_PART_HEADER_OCTETS = 16 * 1024

T = TypeVar("T")

_STRUCTURE = frozenset({b"content-type", b"content-disposition", b"content-transfer-encoding"})
_MANY_MARKS = re.compile(r"([^\w\x00-\x7f]{31,})")
_MESSAGES = frozenset({"message/rfc822", "message/global"})
_FILE_NAMES = frozenset({"filename", "name"})
_ENCODED = frozenset({"base64", "quoted-printable"})
"""What no part that holds others may be (RFC 2045, 6.4)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message that is not a wrapper around others: MIME type and file names, in lower case.

    There may be several names, since mail programs do not agree which of two places counts.
    """

    type: str
    names: tuple[str, ...] = ()


class MessageFacts:
    """One message, asked by any number of rules for any number of recipients."""

    def __init__(self, message: bytes, login: str | None = None) -> None:
        """Reads nothing yet. Asking raises MalformedMessage where the header has no end.

        `login` is the name under which the client has authenticated, "" for none; None where that is not known.
        """
        self.message = message
        self.login = login
        self._values: dict[str, list[str] | None] = {}
        self._once: dict[object, object] = {}

    @property
    def size(self) -> int:
        """Octets."""
        return len(self.message)

    @property
    def sealed_size(self) -> int:
        """Octets of what would be sealed: without the fields that are never carried, such as Bcc."""
        hidden = self.once("hidden", lambda: len(self.message) - len(mime.without_hidden_fields(self.message)))
        return self.size - hidden

    def once(self, what: Hashable, work: Callable[[], T]) -> T:
        """What `work` gives, which is done once for each `what`: many recipients ask the same of a message."""
        if what not in self._once:
            self._once[what] = work()
        return cast("T", self._once[what])

    @cached_property
    def _fields(self) -> dict[bytes, list[bytes]]:
        """The raw fields by name in lower case."""
        found: dict[bytes, list[bytes]] = {}
        for name, raw in mime.fields(mime.searched_header(self.message[: mime.MAX_HEADER_OCTETS + 4])):
            found.setdefault(name, []).append(raw)
        return found

    def values(self, name: str) -> list[str] | None:
        """All values of a field (its name in lower case) as `plain`, unfolded, decoded; [] where it is not there.

        A field that can be read in two ways has two. None where there are so many, or one that is so long, that not all
        is looked at.
        """
        if name not in self._values:
            raw = self._fields.get(name.encode("ascii", "replace"), [])
            many = len(raw) > MAX_VALUES or any(len(each) > MAX_FIELD_OCTETS for each in raw)
            self._values[name] = None if many else [text for each in raw for text in readings(each.partition(b":")[2])]
        return self._values[name]

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """Every part, that of a message without structure included."""
        return self._walked[0]

    @property
    def unclear(self) -> bool:
        """True where the structure could not be followed to its end."""
        return self._walked[1]

    @cached_property
    def _walked(self) -> tuple[tuple[Part, ...], bool]:
        walk = _PartFinder()
        try:
            walk.entity(self.message, 0, len(self.message), 0)
        except (MalformedMessage, _Unclear):
            walk.unclear = True
        return tuple(walk.parts), walk.unclear

    @cached_property
    def authors(self) -> tuple[FoldedAddress, ...] | None:
        """Everybody whom From fields name; () without one, None where that cannot be read without doubt."""
        return self._addresses(b"from")

    @cached_property
    def senders(self) -> tuple[FoldedAddress, ...] | None:
        """The same of Sender fields: mail programs show "Sender on behalf of From" (RFC 5322, 3.6.2)."""
        return self._addresses(b"sender")

    @property
    def sole_author_field(self) -> bool:
        """Whether there is one From field, as there must be."""
        return len(self._fields.get(b"from", [])) == 1

    def _addresses(self, name: bytes) -> tuple[FoldedAddress, ...] | None:
        fields = self._fields.get(name, [])
        if sum(map(len, fields)) > MAX_OCTETS:
            return None
        try:
            found = {fold_address(*each) for raw in fields for each in read_addresses(raw.partition(b":")[2])}
        except ValueError:
            return None
        return tuple(sorted(found)) if len(found) <= MAX_ADDRESSES else None

    def read(self) -> None:
        """Reads now what is slow to read of a large message."""
        _ = self._walked

    def waited(self, now: datetime) -> float | None:
        """Seconds since the mail server that hands us this message got it, as its Received field says.

        None where there is no such field, or none that can be read.
        """
        received = self._fields.get(b"received", [b""])[0][-MAX_DATE_OCTETS:]
        return _seconds_since(received.decode("ascii", "replace").rpartition(";")[2].strip(), now)


def plain(text: str) -> str:
    """As texts are compared: in lower case, in one form of Unicode (NFC), blanks made single.

    So many marks as no letter has stay as they are: to sort them takes the square of their number.
    """
    pieces = _MANY_MARKS.split(text.casefold())
    pieces[::2] = [unicodedata.normalize("NFC", piece) for piece in pieces[::2]]
    return " ".join("".join(pieces).split())


def readings(value: bytes) -> Iterable[str]:
    """A field's value unfolded, with encoded words read (RFC 2047), as `plain`.

    Octets that are no UTF-8 are read as Latin-1, too: old programs write a subject so, and mail programs show it.
    """
    unfolded = value.replace(b"\r\n", b"")
    texts = {unfolded.decode("utf-8", "replace"), unfolded.decode("utf-8" if _is_utf8(unfolded) else "iso-8859-1")}
    return {plain(_words(text)) for text in texts}


def _is_utf8(octets: bytes) -> bool:
    try:
        octets.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _words(text: str) -> str:
    """The text with each encoded word read where it stands; as it is where one is broken."""
    if "=?" not in text:
        return text
    try:
        parts = email.header.decode_header(text)
    except (ValueError, email.errors.MessageError):
        return text
    return "".join(part if isinstance(part, str) else _text(part, charset) for part, charset in parts)


def _text(octets: bytes, charset: str | None) -> str:
    """What these octets are, as far as that can be told; without a character set, decode_header has encoded text."""
    try:
        return octets.decode(charset or "raw-unicode-escape", "replace")
    except (ValueError, LookupError):
        return octets.decode("iso-8859-1")


def _seconds_since(date: str, now: datetime) -> float | None:
    try:
        then = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    then = then if then.tzinfo else then.replace(tzinfo=UTC)
    return max(0.0, (now - then).total_seconds())


class _Unclear(Exception):
    """The structure is deeper, larger or stranger than is followed."""


class _PartFinder:
    """Finds the parts between boundaries, on the raw bytes and without copying bodies."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.unclear = False

    def entity(self, message: bytes, start: int, end: int, depth: int, *, in_digest: bool = False) -> None:
        """One entity between two offsets: header, empty line, body."""
        if depth > MAX_DEPTH or len(self.parts) >= MAX_PARTS:
            raise _Unclear
        header, body = _header(message, start, end, outermost=depth == 0)
        entity = _structured(header)
        entity.set_default_type("message/rfc822" if in_digest else "text/plain")
        kind = entity.get_content_type()
        if kind == "message/partial" or not set(kind).isdisjoint(" \t()"):  # a piece, or with a comment in its type
            raise _Unclear
        wrapper = kind in _MESSAGES or kind.startswith("multipart/")
        if wrapper and entity.get("content-transfer-encoding", "").strip().lower() in _ENCODED:
            raise _Unclear
        if kind in _MESSAGES:
            self.entity(message, body, end, depth + 1)
        elif wrapper:
            self._multipart(message, body, end, entity, depth)
        else:
            self.parts.append(Part(kind, _file_names(entity)))

    def _multipart(self, message: bytes, body: int, end: int, entity: Message, depth: int) -> None:
        boundary = _boundary(entity)
        if not boundary:
            raise _Unclear
        in_digest = entity.get_content_type() == "multipart/digest"
        begin = -1
        for start, after, last in _delimiters(message, boundary, max(0, body - 2), end):
            if begin >= 0:
                self.entity(message, begin, max(begin, start), depth + 1, in_digest=in_digest)
            if last:
                return
            begin = min(after + 2, end)
        if begin < 0:
            raise _Unclear
        self.entity(message, begin, end, depth + 1, in_digest=in_digest)


def _delimiters(message: bytes, boundary: bytes, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Each line of this boundary (RFC 2046, 5.1.1): where it begins and ends, and whether it is the last one."""
    needle = b"\r\n--" + boundary
    for _ in range(MAX_DELIMITERS):
        at = message.find(needle, start, end)
        if at < 0:
            return
        start = after = at + len(needle)
        last = message.startswith(b"--", after)
        line_end = message.find(b"\r\n", after, min(end, after + MAX_LINE_OCTETS))
        line_end = min(end, after + MAX_LINE_OCTETS) if line_end < 0 else line_end
        if not message[after + 2 * last : line_end].strip(b" \t"):
            yield at, line_end, last
    raise _Unclear


def _header(message: bytes, start: int, end: int, *, outermost: bool) -> tuple[bytes, int]:
    """An entity's header, and where its body begins; both are unclear where a line stands between that is no field."""
    if outermost:
        header_end, body = mime.bounds(message)
        if header_end == body < end:
            raise _Unclear
        return message[:header_end], body
    if message.startswith(b"\r\n", start):
        return b"", start + 2
    stop = message.find(b"\r\n\r\n", start, min(end, start + MAX_PART_HEADER_OCTETS))
    if stop < 0:
        if end - start > MAX_PART_HEADER_OCTETS:
            raise _Unclear
        return message[start:end], end
    return message[start : stop + 2], stop + 4


def _structured(header: bytes) -> Message:
    """The fields that say what an entity is; two of one kind could be read in two ways."""
    entity = Message()
    for name, raw in mime.fields(header):
        if name in _STRUCTURE:
            if len(raw) > mime.MAX_STRUCTURED_FIELD_OCTETS or name.decode() in entity:
                raise _Unclear
            entity[name.decode()] = raw.partition(b":")[2].replace(b"\r\n", b"").strip().decode("utf-8", "replace")
    return entity


def _boundary(entity: Message) -> bytes:
    try:
        value = entity.get_param("boundary", "")
    except (ValueError, LookupError, IndexError):
        return b""
    return value.rstrip().encode("utf-8") if isinstance(value, str) else b""


def _file_names(entity: Message) -> tuple[str, ...]:
    """Every name that a mail program may offer for saving the part (RFC 2183, RFC 2231, RFC 2047)."""
    names = set()
    try:
        for field in ("content-disposition", "content-type"):
            for key, value in entity.get_params([], header=field):
                if key.lower() in _FILE_NAMES:
                    names.add(plain(_words(collapse_rfc2231_value(value))))
    except (ValueError, LookupError, TypeError) as error:
        raise _Unclear from error
    return tuple(names - {""})
