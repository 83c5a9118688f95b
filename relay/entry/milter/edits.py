"""What a mail server has to do so that its message becomes another one: fields away, fields and body new.
Standard: milter protocol 6 with SMFIP_HDR_LEADSPC; a value has LF where the message has CRLF, and keeps its blanks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from kilter.protocol import AddHeader, ChangeHeader, ReplaceBody
from kilter.protocol.core import EditMessage

from relay.formats import mime
from relay.formats.pieces import Octets

BODY_OCTETS = 65_535
"""The largest piece of a body in one packet (libmilter's MILTER_CHUNK_SIZE)."""

Field = tuple[str, bytes]
"""A header field as the milter protocol has it: name, and value with everything behind the colon."""


def message_of(fields: Sequence[Field], body: bytes) -> bytes:
    """The message that the mail server has: the same octets that went into it."""
    header = b"".join(
        name.encode("ascii") + b":" + value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
        for name, value in fields
    )
    return header + b"\r\n" + body


def can_be_told(message: bytes) -> bool:
    """Whether edits can make exactly this message: its header has nothing but fields, and no NUL."""
    end, begin = mime.bounds(message)
    header = message[:end]
    raw = list(mime.fields(header))
    whole = b"".join(each for _, each in raw) == header and b"\0" not in header
    plain = all(each[len(name) : len(name) + 1] == b":" and each.endswith(b"\r\n") for name, each in raw)
    return whole and plain and message.startswith(b"\r\n", end) and message.endswith(b"\r\n", begin - 2)


def edits(before: Sequence[Field], body: Octets, message: bytes, *, under_trace: bool) -> Iterator[EditMessage]:
    """Makes `message` of the header fields and the body before; nothing where it is the same.

    With `under_trace` those Received fields from before stay that the new header has not, on top of it. Otherwise
    every field stays that is in its place, since each edit costs the mail server time.
    """
    end, begin = mime.bounds(message)
    after = [_field(raw) for _, raw in mime.fields(message[:end])]
    stay = _since_sealed(before, after) if under_trace else _in_order(before, after)
    yield from _removals(before, stay)
    for name, value in after if under_trace else after[sum(stay) :]:
        yield AddHeader(name, value)
    if not mime.has_body(message, body):
        for start in range(begin, len(message), BODY_OCTETS):
            yield ReplaceBody(message[start : start + BODY_OCTETS])
        if begin == len(message):
            yield ReplaceBody(b"")


def _since_sealed(before: Sequence[Field], after: Sequence[Field]) -> list[bool]:
    """Says of each earlier field whether a mail server has put it on top of the sealed message.

    The Received fields below are the original's, which a sealed message shows; the new header brings them again.
    """
    inside = Counter(value for name, value in after if name.lower() == "received")
    stay = []
    for name, value in reversed(before):
        value = value.replace(b"\r\n", b"\n")
        told_again = name.lower() == "received" and inside[value] > 0
        inside[value] -= told_again
        stay.append(name.lower() == "received" and not told_again)
    return stay[::-1]


def _in_order(before: Sequence[Field], after: Sequence[Field]) -> list[bool]:
    """Says of each earlier field whether it stays; those that stay begin the new header."""
    remaining = iter(after)
    expected = next(remaining, None)
    stay = []
    for each in before:
        stay.append(each == expected)
        if each == expected:
            expected = next(remaining, None)
    return stay


def _removals(before: Sequence[Field], stay: Sequence[bool]) -> Iterator[EditMessage]:
    """Each field by its name and its number among those of that name; the last one first, since numbers move up."""
    numbers = Counter(name.lower() for name, _ in before)
    for (name, _), stays in zip(reversed(before), reversed(stay), strict=True):
        if not stays:
            yield ChangeHeader(numbers[name.lower()], name, b"")
        numbers[name.lower()] -= 1


def _field(raw: bytes) -> Field:
    name, _, value = raw.removesuffix(b"\r\n").partition(b":")
    return name.decode("ascii"), value.replace(b"\r\n", b"\n")
