"""The facts of one message for rules: subject, header fields and attachments, read lazily and at most once.
Standard: RFC 5322, RFC 2045 to 2047, RFC 2231; time and memory are bounded, and what is unclear counts as matching.

A rule that looks into a message can only raise the level, so counting the unclear as matching is the safe side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar, cast

from relay.formats import mime
from relay.formats.addresses import MAX_ADDRESSES, MAX_OCTETS, read_addresses
from relay.formats.parameters import parse
from relay.policy import texts
from relay.policy.extensions import GENERIC, types_of
from relay.policy.names import FoldedAddress, fold_address
from relay.policy.structure import find_parts

MAX_FIELD_OCTETS = 16 * 1024
"""A longer header field counts as matching any text: decoding it takes too long."""
MAX_VALUES = 20
MAX_TEXT_WORK = 16 * 1024
"""Maximum work on the fields of one name, in octets (words.readings)."""
MAX_NAME_WORK, NAME_WORK_SHARE = 32 * 1024, 16
"""Maximum work on all file names, in octets: a base, and one for each 16 octets of the message."""
MAX_NAMES = 32 * 1024
"""Maximum length of all file names together, in characters: thousands of patterns are searched for in them."""
MAX_CHARSETS = 3
MAX_DATE_OCTETS = 200

T = TypeVar("T")


class Part(NamedTuple):
    """One part of a message: MIME type and file names, in lower case.

    There may be several names, since mail programs disagree which of two places counts. Where they disagree about the
    type, there is one part for each. A container counts where it may be shown as an attachment.
    """

    type: str
    names: tuple[str, ...] = ()


@dataclass(slots=True, eq=False)
class MessageFacts:
    """One message, for any number of rules and recipients.

    Reads lazily. Raises MalformedMessage if the header has no end. `login` is the name under which the client has
    authenticated, "" for none; None if unknown.
    """

    message: bytes = field(repr=False)
    login: str | None = None
    _once: dict[object, object] = field(default_factory=dict, init=False, repr=False)

    @property
    def size(self) -> int:
        """Octets."""
        return len(self.message)

    @property
    def sealed_size(self) -> int:
        """Octets that would be sealed: without fields that are never carried, such as Bcc."""
        hidden = self.once("hidden", lambda: len(self.message) - len(mime.without_hidden_fields(self.message)))
        return self.size - hidden

    def once(self, key: Hashable, work: Callable[[], T]) -> T:
        """What `work` gives, which is done once for each `key`: many recipients ask the same of a message."""
        if key not in self._once:
            self._once[key] = work()
        return cast("T", self._once[key])

    @property
    def _fields(self) -> dict[bytes, list[bytes]]:
        """The raw fields by name in lower case."""
        return self.once("fields", self._by_name)

    def _by_name(self) -> dict[bytes, list[bytes]]:
        fields: dict[bytes, list[bytes]] = {}
        last = b""
        for name, raw in mime.lines_by_field(mime.searched_header(self.message[: mime.MAX_HEADER_OCTETS + 4])):
            if name := name or _lenient_name(raw):
                fields.setdefault(name, []).append(raw)
                last = name
            elif last and raw.startswith(_ODD_BLANKS) and len(fields[last]) <= MAX_VALUES:
                fields[last].append(fields[last][-1] + raw)
        return fields

    def values(self, name: str) -> list[str] | None:
        """All values of a field (name in lower case) in comparable form; [] if it is missing.

        A field that programs read in several ways has several values. None if it counts as matching any text: it is too
        long, has too many values or readings, or cannot be decoded.
        """
        return self.once(("values", name), lambda: self._read_values(name))

    def _read_values(self, name: str) -> list[str] | None:
        fields = self._fields.get(name.encode("ascii", "replace"), [])
        if len(fields) > MAX_VALUES or any(len(each) > MAX_FIELD_OCTETS for each in fields):
            return None
        values: set[str] = set()
        left = MAX_TEXT_WORK
        for raw in fields:
            readings, work = texts.values(raw.partition(b":")[2], left, self._charsets)
            if readings is None:
                return None
            values |= readings
            left -= work
        return sorted(values)

    @property
    def _charsets(self) -> tuple[str, ...]:
        """The charsets that the outermost Content-Type names."""
        return self.once("charsets", self._read_charsets)

    def _read_charsets(self) -> tuple[str, ...]:
        types = self._fields.get(b"content-type", [])[:MAX_CHARSETS]
        named = {name for each in types for name in parse(each.partition(b":")[2]).readings("charset")}
        return tuple(sorted(named)[:MAX_CHARSETS])

    @property
    def parts(self) -> tuple[Part, ...]:
        """All parts; a message without structure is one part."""
        return self._walked[0]

    @property
    def all_names(self) -> str:
        """The names of all parts, joined for Glob.occurs_in."""
        return self.once("all names", lambda: "\0".join({name for part in self.parts for name in part.names}))

    @property
    def unclear(self) -> bool:
        """True if the structure could not be parsed completely."""
        return self._walked[1]

    @property
    def _walked(self) -> tuple[tuple[Part, ...], bool]:
        return self.once("parts", self._walk)

    def _walk(self) -> tuple[tuple[Part, ...], bool]:
        found_parts, unclear = find_parts(self.message)
        if unclear:
            return (), True
        names = _FileNames(MAX_NAME_WORK + len(self.message) // NAME_WORK_SHARE)
        parts = []
        for kind, written in found_parts:
            compared = names.of(written)
            parts.append(Part(kind, compared))
            if kind in GENERIC:
                parts += [Part(each, compared) for each in types_of(compared)]
        return tuple(parts), names.unclear or sum(map(len, names.all)) > MAX_NAMES

    @property
    def authors(self) -> tuple[FoldedAddress, ...] | None:
        """All addresses in From fields; () without one, None if in doubt."""
        return self._addresses(b"from")

    @property
    def senders(self) -> tuple[FoldedAddress, ...] | None:
        """The same for Sender fields: mail programs show "Sender on behalf of From" (RFC 5322, 3.6.2)."""
        return self._addresses(b"sender")

    @property
    def sole_author_field(self) -> bool:
        """Whether there is exactly one From field, as required."""
        return len(self._fields.get(b"from", [])) == 1

    def _addresses(self, name: bytes) -> tuple[FoldedAddress, ...] | None:
        return self.once(name, lambda: self._read_addresses(name))

    def _read_addresses(self, name: bytes) -> tuple[FoldedAddress, ...] | None:
        fields = self._fields.get(name, [])
        if sum(map(len, fields)) > MAX_OCTETS:
            return None
        try:
            addresses = {fold_address(*each) for raw in fields for each in read_addresses(raw.partition(b":")[2])}
        except ValueError:
            return None
        return tuple(sorted(addresses)) if len(addresses) <= MAX_ADDRESSES else None

    def read(self) -> None:
        """Reads in advance what is slow to read in a large message."""
        _ = self._walked

    def waited(self, now: datetime) -> float | None:
        """Seconds since the previous mail server received this message, by its Received field.

        None if there is no readable field.
        """
        received = self._fields.get(b"received", [b""])[0][-MAX_DATE_OCTETS:]
        return _seconds_since(received.decode("ascii", "replace").rpartition(";")[2].strip(), now)


_ODD_BLANKS = tuple(bytes([octet]) for octet in b"\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0")
"""First octets of lines that some programs take for continuations."""
_NO_NAME = bytes(each for each in range(256) if not 33 <= each <= 126)


def _lenient_name(line: bytes) -> bytes:
    """The lower-case name that lenient programs read in a line that is no field, or b"".

    They drop what surrounds it: blanks, even folded, a byte order mark, the no-break space of Latin-1.
    """
    name, colon, _ = line.partition(b":")
    name = name.strip(_NO_NAME)
    return name.lower() if colon and name.translate(None, _NO_NAME) == name else b""


def _seconds_since(date: str, now: datetime) -> float | None:
    try:
        timestamp = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    timestamp = timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
    return max(0.0, (now - timestamp).total_seconds())


class _FileNames:
    """Reads the file names of one message; `unclear` if there may be others."""

    def __init__(self, max_work: int) -> None:
        self.unclear = False
        self._left = max_work
        self._known: dict[str, tuple[str, ...]] = {}

    @property
    def all(self) -> frozenset[str]:
        """All names read so far."""
        return frozenset().union(*self._known.values())

    def of(self, written: tuple[str, ...]) -> tuple[str, ...]:
        """All names under which some program may save a part with these names."""
        if len(written) == 1:
            return self._saved(written[0])
        return tuple(dict.fromkeys([saved for name in written for saved in self._saved(name)]))

    def _saved(self, name: str) -> tuple[str, ...]:
        if name not in self._known:
            names, work = texts.file_names(name.encode("utf-8", "replace"), self._left)
            self._left -= work
            self._known[name] = tuple(sorted(names or ()))
            self.unclear = self.unclear or names is None
        return self._known[name]
