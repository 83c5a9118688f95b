"""Parses replies of KMEs: tolerant of the formats of real KMEs, strict about every key.
Standard: ETSI GS QKD 014 V1.1.1, clause 6 (data formats).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from relay.errors import KMEBadReply
from relay.formats.characters import casefold, is_printable
from relay.keys.types import Key

MAX_KEY_ID_CHARS = 256

MAX_REPLY_OCTETS = 32 * 1024 * 1024
"""Maximum size of any reply, in bytes."""
MAX_ERROR_OCTETS = 512 * 1024
"""Maximum size in bytes of a reply that is an error: it has a reason, and names keys that are missing."""
REPLY_MARGIN_OCTETS, KEY_MARGIN_OCTETS = 64 * 1024, 4096
"""Margins of a reply, in bytes: one for all of it, one for the key_ID and the extensions of each key."""
LARGEST_KEY_BITS = 2**20
"""Maximum key size in a dec_keys reply, in bits: a request does not state it."""
VALUES, VALUES_OF_KEY = 4096, 64
"""Maximum number of JSON values in a reply: in total, and in addition for each requested key."""

RANDOM_OCTETS = 8
"""Key length, in bytes, from which all-equal bytes count as a fault: the probability is 2^-56 by chance."""

USUAL_KEY_BITS = 256
"""Default key size, in bits."""


@dataclass(frozen=True, slots=True)
class KeyStatus(Mapping[str, Any]):
    """Status of the keys between two SAEs (GS QKD 014, 6.1); key sizes in bits, None if missing.

    The names are the standard's own.
    """

    source_KME_ID: str
    target_KME_ID: str
    master_SAE_ID: str
    slave_SAE_ID: str
    key_size: int | None = None
    stored_key_count: int | None = None
    max_key_count: int | None = None
    max_key_per_request: int | None = None
    max_key_size: int | None = None
    min_key_size: int | None = None
    max_SAE_ID_count: int | None = None
    status_extension: Any = None

    def __getitem__(self, name: str) -> Any:
        """A field by its name. Raises KeyError."""
        return dataclasses.asdict(self)[name]

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in dataclasses.fields(self))

    def __len__(self) -> int:
        return len(dataclasses.fields(self))

    @property
    def stored_bits(self) -> int | None:
        """The KME's stored bits for the pair; None if unknown."""
        return None if self.stored_key_count is None else self.stored_key_count * (self.key_size or USUAL_KEY_BITS)


_OF_A_STATUS = frozenset(field.name.lower() for field in dataclasses.fields(KeyStatus)) - {"status_extension"}


def max_reply_octets(number: int, bits: int) -> int:
    """Maximum size in bytes of a reply with `number` keys of `bits` each, in base64 or hexadecimal digits."""
    return min(MAX_REPLY_OCTETS, REPLY_MARGIN_OCTETS + number * (KEY_MARGIN_OCTETS + bits // 4))


def json_body(source: str, body: bytes | bytearray, number: int = 0) -> Any:
    """The JSON in the body of a reply to a request for `number` keys; raises KMEBadReply."""
    try:
        return _parsed(body, number)
    except _TooMany as error:
        raise KMEBadReply(f"{source}: the reply {error}") from None
    except (ValueError, RecursionError):
        # Without an excerpt and the parser's error, which could show a key.
        raise KMEBadReply(f"{source}: the reply is not JSON ({len(body)} bytes)") from None


def status_from_reply(reply: Any) -> KeyStatus:
    """A KeyStatus from the parsed reply; limits of 0 or missing mean unknown. Raises KMEBadReply."""
    fields = _lowered(reply)
    if not fields.keys() & _OF_A_STATUS:
        raise KMEBadReply("the reply is no status: it has none of its fields")

    def count(name: str) -> int | None:
        value = fields.get(name.lower())
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
            value = int(value)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    values: dict[str, Any] = {"status_extension": fields.get("status_extension")}
    for each in dataclasses.fields(KeyStatus)[:-1]:
        if each.default is dataclasses.MISSING:
            values[each.name] = "" if (value := fields.get(each.name.lower())) is None else str(value)
        else:
            number = count(each.name)
            values[each.name] = number if each.name in ("stored_key_count", "max_SAE_ID_count") else number or None
    return KeyStatus(**values)


def keys_from_container(reply: Any, *, at_most: int, size: int | None = None, numbers: bool = False) -> list[Key]:
    """The keys of a fresh key container, each with a valid ID and `size` bits, if given.

    IDs may be `numbers` only if configured: other KMEs with numbers find no key by a string. Raises KMEBadReply for
    more than `at_most` keys, a duplicate ID, invalid base64, or another key length. Then none of them may be used.
    """
    items = _items(reply)
    if len(items) > at_most:
        raise KMEBadReply(f"{len(items)} keys came, at most {at_most} were asked for")
    keys = [_key(item, size, numbers=numbers) for item in items]
    if len({key.key_ID for key in keys}) != len(keys):
        raise KMEBadReply("the same key_ID came twice in one reply")
    return keys


def keys_asked_for(reply: Any, key_IDs: Collection[str]) -> tuple[dict[str, Key], int]:
    """The requested keys in a dec_keys reply, by ID, and the number of unusable entries.

    An invalid entry does not affect the others, since no key is delivered twice. An ID with two different keys is
    dropped. IDs are compared ignoring case, since a KME may treat them as UUIDs. Otherwise a forged request in another
    case would waste a key that no KME delivers again. Raises KMEBadReply without any list of keys.
    """
    asked: dict[str, list[str]] = {}
    for key_ID in key_IDs:
        asked.setdefault(casefold(key_ID), []).append(key_ID)
    found: dict[str, Key] = {}
    doubtful: set[str] = set()
    refused = 0
    for item in _items(reply):
        try:
            key = _key(item, None, numbers=True)
        except KMEBadReply:
            refused += 1
            continue
        spelt = asked.get(casefold(key.key_ID), [])
        refused += not spelt
        # For an ID requested in several spellings, an exact match takes precedence.
        for key_ID in [key.key_ID] if key.key_ID in spelt else spelt:
            if found.setdefault(key_ID, Key(key_ID, key.key)).key != key.key:
                doubtful.add(key_ID)
    return {key_ID: key for key_ID, key in found.items() if key_ID not in doubtful}, refused + len(doubtful)


class OtherSize(KMEBadReply):
    """A fresh key has another size, `bits`, than requested."""

    def __init__(self, cause: str, bits: int) -> None:
        super().__init__(cause)
        self.bits = bits


def is_worn(octets: bytes) -> bool:
    """Whether these are no key: one repeated byte, as from a failed source."""
    return len(octets) >= RANDOM_OCTETS and octets.count(octets[0]) == len(octets)


def count_of_keys(body: bytes | bytearray, number: int) -> int | None:
    """The number of keys in a rejected reply to a request for `number`; None if unreadable."""
    try:
        return len(_items(_parsed(body, number)))
    except (ValueError, RecursionError, KMEBadReply):
        return None


def _items(reply: Any) -> list[Any]:
    """The entries of a key container; some KMEs send an object for one key, or one with a member for each."""
    items = _lowered(reply).get("keys")
    if isinstance(items, dict):
        single = any(str(name).lower() == "key" for name in items)
        items = [items] if single or not items else list(items.values())
    if not isinstance(items, list):
        raise KMEBadReply("the reply has no list of keys")
    return items


def _key(item: Any, size: int | None, *, numbers: bool) -> Key:
    fields = _lowered(item)
    key_ID = fields.get("key_id")
    if isinstance(key_ID, int) and not isinstance(key_ID, bool):
        if not numbers:
            raise KMEBadReply("a key_ID is a number: if both KMEs use numbers, set integer_key_ids at both sites")
        key_ID = str(key_ID)
    if not isinstance(key_ID, str) or not 0 < len(key_ID) <= MAX_KEY_ID_CHARS or not is_printable(key_ID):
        raise KMEBadReply(f"a key_ID is not 1 to {MAX_KEY_ID_CHARS} printable characters")
    try:
        octets = base64.b64decode(fields.get("key") or "", validate=True)
    except (TypeError, ValueError, binascii.Error):
        # Without the cause, which would show the key.
        raise KMEBadReply(f"key {key_ID}: not base64") from None
    if not octets:
        raise KMEBadReply(f"key {key_ID}: empty")
    if size is not None and len(octets) * 8 != size:
        raise OtherSize(f"key {key_ID}: {len(octets) * 8} bits came, {size} were asked for", len(octets) * 8)
    if size is not None and is_worn(octets):
        raise KMEBadReply(f"key {key_ID}: all bytes are the same, which no source of keys gives by chance")
    return Key(key_ID, octets)


_SAYS = (
    "message", "title", "detail", "details", "error", "errors", "error_description", "msg", "reason", "description"
)  # fmt: skip
"""Names (in lower case) of the error text in the standard, RFC 9457 and common frameworks."""

_TAGS = re.compile(r"(?s)<(script|style)\b.*?</\1\s*>|<[^>]*>")
_UUID = re.compile(r"(?i)\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
_TOKEN = re.compile(r"\0|[^\W_]+")
_WORD = re.compile(
    r"[aAI]|(?=[^\W\d_]*[aeiouyAEIOUY])(?:[A-Z][a-z]|[a-z]{2,24}|[A-Z]?[a-z]{2,23}(?:[A-Z][a-z]{2,23}){0,4}"
    r"|[^\W\d_]?[^\W\dA-Z_]{3,24})"
)
_HALF_WORD = re.compile(r"[0-9]{1,4}|[A-Z]{2,12}|[a-z]{2,5}|\w")
_WINDOW, _MOST_DOUBT = 8, 5
"""Number of tokens in a row, and how much of them may be no word: numbers, capitals, no vowel count 1, all else 2."""
_READ_CHARS, _SHOWN_CHARS = 4000, 200


class ErrorText(NamedTuple):
    """The text of an error reply, in one line without possible keys.

    `sentences`: the texts of a JSON message (6.5), as they are; none if it is the page of a proxy.
    """

    text: str
    sentences: tuple[str, ...] = ()


def text_of_error(body: bytes | bytearray, number: int = 0) -> ErrorText:
    """The text of an error reply to a request for `number` keys, also from HTML."""
    try:
        reply = _parsed(body, number)
    except (ValueError, RecursionError):
        text = bytes(body[:_READ_CHARS]).decode("utf-8", "replace")
        return ErrorText(without_keys(_TAGS.sub(" ", text)) or "empty")
    fields = {str(name).lower(): value for name, value in reply.items()} if isinstance(reply, dict) else {}
    parts = [part for name in _SAYS if (part := fields.get(name))]
    text = " ".join(str(part) for part in parts or [reply] if part)
    return ErrorText(without_keys(text) or "no message", tuple(part for part in parts if isinstance(part, str)))


def without_keys(text: str) -> str:
    """The text of another program, in one line, bounded, and without what could be a part of a key in any spelling.

    Only words are shown, and numbers that are few among them.
    """
    shown = " ".join("".join(c if c.isprintable() else " " for c in text[:_READ_CHARS]).split())
    shown = _UUID.sub("\0", shown)
    tokens = list(_TOKEN.finditer(shown))
    doubts = [_doubt(token.group()) for token in tokens]
    hidden = [doubt > 1 or sum(doubts) > max(_MOST_DOUBT, len(tokens) // 3) for doubt in doubts]
    for first in range(len(tokens)):
        if sum(doubts[first : first + _WINDOW]) > _MOST_DOUBT:
            hidden[first : first + _WINDOW] = [True] * len(hidden[first : first + _WINDOW])
    pieces, end = [], 0
    for token, hide in zip(tokens, hidden, strict=True):
        pieces += [shown[end : token.start()], "\0" if hide else token.group()]
        end = token.end()
    return re.sub(r"\0(?:[^\w]*\0)*", "[...]", "".join([*pieces, shown[end:]]))[:_SHOWN_CHARS].strip()


def _doubt(token: str) -> int:
    if _WORD.fullmatch(token):
        return 0
    return 1 if _HALF_WORD.fullmatch(token) else 2


def key_IDs_in_error(body: bytes | bytearray, asked: Collection[str]) -> set[str]:
    """The requested key_IDs that an error reply names in its `details`, as some KMEs do."""
    try:
        reply = _parsed(body, len(asked))
    except (ValueError, RecursionError):
        return set()
    named: set[str] = set()
    waiting: list[tuple[Any, int]] = [(reply.get("details") if isinstance(reply, dict) else None, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list) and depth < 8:
            inside = value.values() if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in inside]
        elif isinstance(value, str | int) and str(value) in asked:
            named.add(str(value))
    return named


class _TooMany(ValueError):
    """The text has more JSON values than the request allows."""


def _parsed(body: bytes | bytearray, number: int) -> Any:
    """The JSON in it. Raises ValueError and RecursionError.

    Values are counted by their commas before parsing. An empty object takes 3 bytes here and 64 in memory, and the
    parser blocks all other threads.
    """
    if body.count(b",") > VALUES + VALUES_OF_KEY * number:
        raise _TooMany("has more values than the keys asked for can need")
    return json.loads(body)


def _lowered(reply: Any) -> dict[str, Any]:
    """An object with its field names in lower case, as some KMEs send them; raises KMEBadReply."""
    if not isinstance(reply, dict):
        raise KMEBadReply("the reply is not a JSON object")
    return {str(name).lower(): value for name, value in reply.items()}
