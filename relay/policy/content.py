"""The facts of one message for rules: subject, header fields and attachments, read lazily and at most once.
Standard: RFC 5322, RFC 2045 to 2047, RFC 2231; time and memory are bounded, and what is unclear counts as matching.

A rule that looks into a message can only raise the level, so counting the unclear as matching is the safe side.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar, cast

from relay.formats import mime
from relay.formats.addresses import MAX_ADDRESSES, MAX_OCTETS, read_addresses
from relay.formats.doubt import InDoubt
from relay.formats.parameters import parse
from relay.policy import texts
from relay.policy.names import FoldedAddress, fold_address
from relay.policy.structure import find_names

MAX_FIELD_OCTETS = 16 * 1024
"""Maximum length of all fields of one name together, in octets."""
MAX_VALUES = 20
MAX_NAMES = 32 * 1024
"""Maximum length of all file names together, in octets: thousands of patterns are searched for in them."""
MAX_CHARSETS = 3
MAX_DATE_OCTETS = 200
ATTACHMENTS = "the attachments"
"""What is in doubt where the parts of a message are; a field is called by its name."""

T = TypeVar("T")


def text_of(name: str) -> str:
    """What the text of a field is called in `doubts`; "From" and "Sender" are for the addresses in them."""
    return f"the text of {name.title()}" if name in ("from", "sender") else name.title()


@dataclass(slots=True, eq=False)
class MessageFacts:
    """One message, for any number of rules and recipients.

    Reads lazily. Raises MalformedMessage if the header has no end. `login` is the name under which the client has
    authenticated, "" for none; None if unknown. What was read and is in doubt is None, and `doubts` says why, by what
    it is.
    """

    message: bytes = field(repr=False)
    login: str | None = None
    doubts: dict[str, str] = field(default_factory=dict, init=False)
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

    def _read(self, what: str, work: Callable[[], T]) -> T | None:
        """What `work` gives, once for each `what`; None if it raises InDoubt."""

        def certain() -> T | None:
            try:
                return work()
            except InDoubt as error:
                self.doubts[what] = str(error)
                return None

        return self.once(("read", what), certain)

    def doubt(self, what: str) -> str:
        """Why something that was read is in doubt, as a sentence without its end."""
        verb = "are" if what == ATTACHMENTS else "is"
        return f"{what} {verb} in doubt ({self.doubts[what]})"

    @property
    def _by_name(self) -> dict[bytes, list[bytes]]:
        """The raw fields by name in lower case; the name is b"" for lines that are no field."""
        return self.once("fields", self._read_header)

    def _read_header(self) -> dict[bytes, list[bytes]]:
        fields: dict[bytes, list[bytes]] = {}
        header = mime.searched_header(self.message[: mime.MAX_HEADER_OCTETS + 4])
        for place, (name, raw) in enumerate(mime.lines_by_field(header)):
            if name or place or not raw.startswith((b"From ", b">From ")):  # as in mailbox files
                fields.setdefault(name, []).append(raw)
        return fields

    def _fields(self, name: bytes, max_octets: int) -> list[bytes]:
        """The values of the fields of this name. Raises InDoubt."""
        if b"" in self._by_name:
            raise InDoubt("a line of the header is no field")
        fields = self._by_name.get(name, [])
        if len(fields) > MAX_VALUES:
            raise InDoubt(f"it is there more than {MAX_VALUES} times")
        if sum(map(len, fields)) > max_octets:
            raise InDoubt(f"it is longer than {max_octets} octets")
        return [each.partition(b":")[2] for each in fields]

    def values(self, name: str) -> list[str] | None:
        """All values of a field (name in lower case) in comparable form; [] if it is missing, None if in doubt.

        There are several of a field that is there several times, or about whose octets programs guess.
        """
        return self._read(text_of(name), lambda: self._read_values(name))

    def _read_values(self, name: str) -> list[str]:
        found = self._fields(name.encode("ascii", "replace"), MAX_FIELD_OCTETS)
        near = () if all(each.isascii() for each in found) else self._charsets
        return sorted({text for each in found for text in texts.values(each, near)})

    @property
    def _charsets(self) -> tuple[bytes, ...]:
        """The character sets that the outermost Content-Type names. Raises InDoubt."""
        types = self._fields(b"content-type", MAX_FIELD_OCTETS)
        named = [charset for each in types for charset in parse(each).values("charset")]
        return tuple(dict.fromkeys(named[:MAX_CHARSETS]))

    @property
    def names(self) -> frozenset[str] | None:
        """The names of all attachments, in comparable form; None if in doubt.

        One may have several names, since mail programs disagree which of two places counts. A container is one where it
        may be shown as an attachment.
        """
        return self._read(ATTACHMENTS, self._read_names)

    def _read_names(self) -> frozenset[str]:
        written = find_names(self.message)
        if sum(map(len, written)) > MAX_NAMES:
            raise InDoubt(f"their names are longer than {MAX_NAMES} octets")
        return frozenset(name for each in written for name in texts.file_names(each))

    @property
    def all_names(self) -> str:
        """The names of all attachments, joined for Glob.occurs_in."""
        return self.once("all names", lambda: "\0".join(self.names or ()))

    @property
    def authors(self) -> tuple[FoldedAddress, ...] | None:
        """All addresses in From fields; () without one, None if in doubt."""
        return self._read("From", lambda: self._read_addresses(b"from"))

    @property
    def senders(self) -> tuple[FoldedAddress, ...] | None:
        """The same for Sender fields: mail programs show "Sender on behalf of From" (RFC 5322, 3.6.2)."""
        return self._read("Sender", lambda: self._read_addresses(b"sender"))

    @property
    def sole_authors(self) -> tuple[FoldedAddress, ...] | None:
        """The authors for what they permit: those of the only From field, by the standard alone; None if in doubt."""
        if len(self._by_name.get(b"from", [])) != 1:
            return None
        return self._read("the only From", lambda: self._read_addresses(b"from", by_standard=True))

    def _read_addresses(self, name: bytes, *, by_standard: bool = False) -> tuple[FoldedAddress, ...]:
        addresses: set[FoldedAddress] = set()
        for value in self._fields(name, MAX_OCTETS):
            try:
                addresses |= {fold_address(*each) for each in read_addresses(value, by_standard=by_standard)}
            except InDoubt:
                raise
            except ValueError as error:
                raise InDoubt("it has an address that is none") from error
        if len(addresses) > MAX_ADDRESSES:
            raise InDoubt(f"it has more than {MAX_ADDRESSES} addresses")
        return tuple(sorted(addresses))

    def read(self) -> None:
        """Reads in advance what is slow to read in a large message."""
        _ = self.names

    def waited(self, now: datetime) -> float | None:
        """Seconds since the previous mail server received this message, by its Received field.

        None if there is no readable field.
        """
        received = self._by_name.get(b"received", [b""])[0][-MAX_DATE_OCTETS:]
        return _seconds_since(received.decode("ascii", "replace").rpartition(";")[2].strip(), now)


def _seconds_since(date: str, now: datetime) -> float | None:
    try:
        timestamp = parsedate_to_datetime(date)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    timestamp = timestamp if timestamp.tzinfo else timestamp.replace(tzinfo=UTC)
    return max(0.0, (now - timestamp).total_seconds())
