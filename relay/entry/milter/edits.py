"""The milter edits that turn one message into another: fields removed and added, body replaced.
Standard: milter protocol 6 with SMFIP_HDR_LEADSPC; values have LF for CRLF, and keep their blanks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from kilter.protocol import AddHeader, ChangeHeader, ReplaceBody
from kilter.protocol.core import EditMessage

from relay.formats import mime
from relay.formats.pieces import Octets

BODY_OCTETS = 65_535
"""Maximum size of a body packet (libmilter's MILTER_CHUNK_SIZE)."""

Field = tuple[str, bytes]
"""A header field of the milter protocol: name, and everything behind the colon."""


def message_of(fields: Sequence[Field], body: bytes) -> bytes:
    """The mail server's message, octet for octet."""
    header = b"".join(
        name.encode("ascii") + b":" + value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
        for name, value in fields
    )
    return header + b"\r\n" + body


def can_be_edited(message: bytes) -> bool:
    """Whether edits can produce exactly this message: its header has only fields, and no NUL."""
    end, begin = mime.bounds(message)
    header = message[:end]
    raw = list(mime.fields(header))
    whole = b"".join(each for _, each in raw) == header and b"\0" not in header
    plain = all(each[len(name) : len(name) + 1] == b":" and each.endswith(b"\r\n") for name, each in raw)
    return whole and plain and message.startswith(b"\r\n", end) and message.endswith(b"\r\n", begin - 2)


def edits(before: Sequence[Field], body: Octets, message: bytes, *, under_trace: bool) -> Iterator[EditMessage]:
    """The edits that turn the header fields `before` and the `body` into `message`; none if they are the same.

    With `under_trace`, Received fields that the new header lacks stay on top of it. Otherwise every field already in
    its place stays, since each edit costs the mail server time.
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
    """Whether each earlier field was put on top of the sealed message by a mail server.

    The Received fields below are the original's, shown by the sealed message; the new header has them again.
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
    """Whether each earlier field stays; those that stay begin the new header."""
    remaining = iter(after)
    expected = next(remaining, None)
    stay = []
    for each in before:
        stay.append(each == expected)
        if each == expected:
            expected = next(remaining, None)
    return stay


def _removals(before: Sequence[Field], stay: Sequence[bool]) -> Iterator[EditMessage]:
    """Removes fields by name and index among those of that name, the last one first, since indices shift."""
    numbers = Counter(name.lower() for name, _ in before)
    for (name, _), stays in zip(reversed(before), reversed(stay), strict=True):
        if not stays:
            yield ChangeHeader(numbers[name.lower()], name, b"")
        numbers[name.lower()] -= 1


def _field(raw: bytes) -> Field:
    name, _, value = raw.removesuffix(b"\r\n").partition(b":")
    return name.decode("ascii"), value.replace(b"\r\n", b"\n")
