"""What rules may ask about one message: its subject, header fields and attachments, read at most once and lazily.
Standard: RFC 5322, RFC 2045 to 2047, RFC 2231; time and memory are bounded, and what is unclear counts as matching.

A rule that looks into a message can only raise the level, so counting the unclear as matching is the safe side.
"""

from __future__ import annotations

import email.errors
import email.header
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar, cast

from relay import mime
from relay.addresses import MAX_ADDRESSES, MAX_OCTETS, read_addresses
from relay.policy.names import FoldedAddress, fold_address
from relay.policy.structure import find_parts

MAX_FIELD_OCTETS = 16 * 1024
"""A longer header field counts as having any text: decoding it takes too long."""
MAX_VALUES = 20
MAX_DATE_OCTETS = 200

T = TypeVar("T")

_MANY_MARKS = re.compile(r"([^\w\x00-\x7f]{31,})")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message: MIME type and file names, in lower case.

    There may be several names, since mail programs do not agree which of two places counts. Where they do not agree
    about its type either, it is there once for each. One around others counts where it may be seen as an attachment.
    """

    type: str
    names: tuple[str, ...] = ()


class MessageFacts:
    """One message, asked by any number of rules for any number of recipients."""

    def __init__(self, message: bytes) -> None:
        """Reads nothing yet. Asking raises MalformedMessage where the header has no end."""
        self.message = message
        self._values: dict[str, list[str] | None] = {}
        self._once: dict[object, object] = {}

    @property
    def size(self) -> int:
        """Octets."""
        return len(self.message)

    def once(self, what: Hashable, work: Callable[[], T]) -> T:
        """What `work` gives, which is done once for each `what`: many recipients ask the same of a message."""
        if what not in self._once:
            self._once[what] = work()
        return cast("T", self._once[what])

    @property
    def _fields(self) -> dict[bytes, list[bytes]]:
        """The raw fields by name in lower case."""
        return self.once("fields", self._by_name)

    def _by_name(self) -> dict[bytes, list[bytes]]:
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

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every part, that of a message without structure included."""
        return self._walked[0]

    @property
    def unclear(self) -> bool:
        """True where the structure could not be followed to its end."""
        return self._walked[1]

    @property
    def _walked(self) -> tuple[tuple[Part, ...], bool]:
        return self.once("parts", self._walk)

    def _walk(self) -> tuple[tuple[Part, ...], bool]:
        found, unclear = find_parts(self.message)
        return tuple([Part(kind, _names(names)) for kind, names in found]), unclear

    @property
    def authors(self) -> tuple[FoldedAddress, ...] | None:
        """Everybody whom From fields name; () without one, None where that cannot be read without doubt."""
        return self._addresses(b"from")

    @property
    def senders(self) -> tuple[FoldedAddress, ...] | None:
        """The same of Sender fields: mail programs show "Sender on behalf of From" (RFC 5322, 3.6.2)."""
        return self._addresses(b"sender")

    @property
    def sole_author_field(self) -> bool:
        """Whether there is one From field, as there must be."""
        return len(self._fields.get(b"from", [])) == 1

    def _addresses(self, name: bytes) -> tuple[FoldedAddress, ...] | None:
        return self.once(name, lambda: self._read_addresses(name))

    def _read_addresses(self, name: bytes) -> tuple[FoldedAddress, ...] | None:
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


def _names(found: tuple[str, ...]) -> tuple[str, ...]:
    """File names as they are compared (RFC 2047 is for other texts, and yet programs write names so)."""
    return tuple({plain(_words(name)) for name in found} - {""})
