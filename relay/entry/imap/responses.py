"""Parses server responses about messages and namespaces; encodes folder names.
Standard: RFC 3501 7.4.2 (FETCH), 7.2.5 (SEARCH), 5.1.3 (modified UTF-7), 9 (syntax); RFC 2342 (NAMESPACE).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from relay.entry.imap.aioimaplib_base import Untagged

MAX_DEPTH = 8
_TOKEN = re.compile(rb'\s*(?:([()])|"((?:[^"\\]|\\.)*)"|([^\s()"{\[]+(?:\[[^\]]*\](?:<\d+>)?)?))', re.DOTALL)
_LITERAL = re.compile(rb"\{\d+\}$")
_FETCH = re.compile(rb"\* \d+ FETCH ", re.IGNORECASE)
_NAMESPACE = re.compile(rb"\* NAMESPACE ", re.IGNORECASE)
_FLAG = re.compile(r"\\?[!#$&'+-\[^-z|}~]+")
_DATE = re.compile(r"[ \d]\d-[A-Za-z]{3}-\d{4} \d\d:\d\d:\d\d [+-]\d{4}")


@dataclass(frozen=True, slots=True)
class Fetched:
    """The requested data of a message in a folder.

    `date` is its INTERNALDATE as sent by the server, `size` is in octets, `content` the body section.
    """

    uid: int
    flags: tuple[str, ...] = ()
    date: str = ""
    size: int = 0
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Prefixes of folder names, in modified UTF-7: personal namespaces, and all namespaces."""

    own: tuple[str, ...] = ()
    every: tuple[str, ...] = ()

    def placed(self, name: str) -> str:
        """A folder's name on the wire; if no namespace matches, it is in the personal one."""
        wire = encoded(name)
        if not self.own or name.upper() == "INBOX" or wire.startswith(self.every):
            return wire
        return self.own[0] + wire


def fetched(responses: Iterable[Untagged]) -> Iterator[Fetched]:
    """The messages in responses to UID FETCH, without unsolicited ones (which have no UID).

    Raises ValueError for an invalid response.
    """
    for response in responses:
        match = _FETCH.match(response[0])
        if match is None:
            continue
        items = _items(response, match.end())
        if "UID" in items:
            yield _fetched(items)


def searched(responses: Iterable[Untagged]) -> list[int]:
    """The UIDs in the responses to UID SEARCH, ascending. Raises ValueError."""
    uids: set[int] = set()
    for [line, *_] in responses:
        name, *numbers = line[2:].split()
        if name.upper() == b"SEARCH":
            uids.update(map(_number, numbers))
    return sorted(uids)


def namespaces(responses: Iterable[Untagged]) -> Namespaces:
    """The namespaces in the response to NAMESPACE. Raises ValueError."""
    for response in responses:
        if match := _NAMESPACE.match(response[0]):
            kinds = [_prefixes(kind) for kind in _tree(response, match.end())[:3]]
            return Namespaces(kinds[0] if kinds else (), tuple(prefix for kind in kinds for prefix in kind))
    return Namespaces()


def _prefixes(kind: object) -> tuple[str, ...]:
    """The prefixes of one kind of namespace: NIL or a list of (prefix, delimiter, extensions)."""
    listed = kind if isinstance(kind, list) else []
    prefixes = [each[0] for each in listed if isinstance(each, list) and each]
    return tuple(prefix.decode("ascii") for prefix in prefixes if isinstance(prefix, bytes))


def status_code(responses: Iterable[Untagged], name: str) -> str | None:
    """The value of a response code such as `* OK [UIDVALIDITY 3]`, or None."""
    pattern = re.compile(rb"\* OK \[%s ([^\]]*)\]" % name.encode(), re.IGNORECASE)
    for [line, *_] in responses:
        if match := pattern.match(line):
            return match[1].decode("ascii", "replace")
    return None


def number_of(value: str | None) -> int | None:
    """The number in a response code, None if it is no nz-number (RFC 3501, 9)."""
    try:
        number = _number(value.encode() if value is not None else b"")
    except ValueError:
        return None
    return number if 0 < number < 2**32 else None


def uid_set(uids: Iterable[int]) -> str:
    """UIDs as a sequence set: `3:5,9`."""
    ranges: list[list[int]] = []
    for uid in sorted(uids):
        if ranges and uid == ranges[-1][1] + 1:
            ranges[-1][1] = uid
        else:
            ranges.append([uid, uid])
    return ",".join(f"{first}:{last}" if first != last else str(first) for first, last in ranges)


def quoted(text: str) -> str:
    """A quoted string (RFC 3501, 9)."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def encoded(name: str) -> str:
    """A folder's name in modified UTF-7."""
    return re.sub(r"[^\x20-\x7e]+|&", lambda match: _shifted(match[0]), name)


def _shifted(text: str) -> str:
    if text == "&":
        return "&-"
    return f"&{base64.b64encode(text.encode('utf-16-be')).decode().rstrip('=').replace('/', ',')}-"


def _fetched(items: dict[str, object]) -> Fetched:
    flags, date = items.get("FLAGS", []), items.get("INTERNALDATE", b"")
    sections = [value for name, value in items.items() if name.startswith("BODY[")]
    content = sections[0] if sections else b""
    if not isinstance(flags, list) or not isinstance(date, bytes) or not isinstance(content, bytes):
        raise ValueError("a FETCH response has lists and strings in the wrong places")  # noqa: TRY004 - not ours
    when = date.decode("ascii")
    if when and not _DATE.fullmatch(when):
        raise ValueError("an INTERNALDATE is not a date")
    names = [flag.decode("ascii", "replace") for flag in flags if isinstance(flag, bytes)]
    return Fetched(
        uid=_number(items["UID"]),
        flags=tuple(flag for flag in names if _FLAG.fullmatch(flag)),
        date=when,
        size=_number(items.get("RFC822.SIZE", b"0")),
        content=content,
    )


def _number(value: object) -> int:
    if not isinstance(value, bytes) or not value.isdigit() or len(value) > 10:
        raise ValueError("a number is none")
    return int(value)


def _items(response: Untagged, begin: int) -> dict[str, object]:
    """The names and values of one FETCH response; a value is octets, or a list of values."""
    tree = _tree(response, begin)
    pairs = tree[0] if len(tree) == 1 else None
    if not isinstance(pairs, list) or len(pairs) % 2:
        raise ValueError("a FETCH response is not one list of names and values")
    names = [name.decode("ascii").upper() if isinstance(name, bytes) else "" for name in pairs[::2]]
    return dict(zip(names, pairs[1::2], strict=True))


def _tree(response: Untagged, begin: int) -> list[object]:
    """Parses a response from `begin` on into octets and nested lists."""
    lists: list[list[object]] = [[]]
    for token, is_text in _tokens(response, begin):
        if is_text and token == b"(":
            lists.append([])
            if len(lists) > MAX_DEPTH:
                raise ValueError("lists in lists in lists")
        elif is_text and token == b")":
            if len(lists) < 2:
                raise ValueError("a list ends that has not begun")
            ended = lists.pop()
            lists[-1].append(ended)
        else:
            lists[-1].append(token)
    if len(lists) != 1:
        raise ValueError("a list does not end")
    return lists[0]


def _tokens(response: Untagged, begin: int) -> Iterator[tuple[bytes, bool]]:
    """The tokens, each with whether it is an atom or parenthesis (not a string or literal)."""
    for number, part in enumerate(response):
        if number % 2:
            yield part, False
            continue
        text = part[begin:] if number == 0 else part
        text = _LITERAL.sub(b"", text) if number < len(response) - 1 else text
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                if text[at:].strip():
                    raise ValueError("a response has a character that nothing begins with")
                break
            at = match.end()
            if match[2] is not None:
                yield re.sub(rb"\\(.)", rb"\1", match[2]), False
            else:
                word = match[1] or match[3]
                yield (b"", False) if word.upper() == b"NIL" else (word, True)
