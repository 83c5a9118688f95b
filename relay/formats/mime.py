"""Parses messages and builds sealed ones, on raw bytes: carried content is never rewritten.
Standard: RFC 5322 (header), RFC 2045 (MIME), RFC 8551 3.2 (application/pkcs7-mime), RFC 2046 5.2.1 (rfc822).

**Where the header ends**: before the first line that is neither a field nor the continuation of one. Usually that is
the empty line; any other is the body's first line, as Postfix and Python's email read it. Only a first line that begins
with "From " is skipped (mailbox files have it, and Postfix makes a field of it). Some readers, such as Dovecot,
continue to the empty line. So checks that can only make things stricter look as far as that (`searched_header`). These
are the checks of fields that may not be carried, and of marks and results that only we may write. So are rules that
raise a level, and authors whose mail must be sealed.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import re
import struct
from collections.abc import Iterable, Iterator
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache, partial
from itertools import chain
from operator import itemgetter
from typing import Literal, NamedTuple

import pybase64

from relay.errors import BadStructure, MailLoop, MalformedMessage, MessageTooBig
from relay.formats import parameters
from relay.formats.doubt import InDoubt
from relay.formats.pieces import PIECE_OCTETS, Octets, Pieces, joined, part_of

MAX_HEADER_OCTETS = 2 * 1024 * 1024
"""Maximum size of a header, in octets: no real message has more, and each line takes memory."""
MAX_HEADER_LINES = 20_000
"""Maximum number of header lines, folded ones counted."""
ROOM_OCTETS, ROOM_LINES = 64 * 1024, 1000
"""Room left in a sealed message's header for fields that sealing and servers on the way add on top."""
HEADER_COSTS = 8
"""Cost of an octet of a header, as a multiple of one of a body: every few of them may be a field."""
MAX_STRUCTURED_FIELD_OCTETS = parameters.MAX_OCTETS
MAX_TYPES = 10
"""Maximum number of Content-Type fields checked; a second one is already a fault."""

VISIBLE_FIELDS = frozenset({b"from", b"to", b"cc", b"date", b"message-id", b"received", b"auto-submitted"})
"""The only fields of the original that a sealed message shows on the outside, in lower case."""
VISIBLE_TO_OTHERS = VISIBLE_FIELDS | {b"sender", b"reply-to", b"in-reply-to", b"references"}
"""The same at level smime: other programs answer by what is outside."""
OTHERS_KINDS = (b"authEnveloped-data", b"enveloped-data")
"""The smime-types of mail at level smime."""
NEVER_CARRIED = frozenset({b"bcc", b"resent-bcc", b"return-path"})
OUR_MARKS = frozenset({b"x-qumail-protection"})
"""Fields that only the relay that opened a mail may add."""
_MARKED = OUR_MARKS | {
    b"from", b"sender", b"reply-to", b"to", b"cc", b"subject", b"date", b"message-id", b"content-type",
    b"content-transfer-encoding",
}  # fmt: skip

_MESSAGE_TYPE = b"Content-Type: message/rfc822\r\n"
_ENVELOPE_FIELD = b"QuMail-Sealed-Envelope:\r\n"
_ENVELOPE_LINE_OCTETS = 54
"""Number of octets of the sealed envelope in a line: 72 characters after a blank."""
_CMS_TYPES = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime"})
_CMS_KINDS: dict[bytes, Literal["enveloped", "signed"]] = {
    b"authenveloped-data": "enveloped",
    b"authenticated-enveloped-data": "enveloped",
    b"signed-data": "signed",
}
"""Kinds of CMS by the parameter smime-type, in lower case (RFC 8551, 3.2.2)."""

_BINARY_HEADER = (
    b'Content-Type: application/pkcs7-mime; smime-type=%s; name="smime.p7m"\r\n'
    b"Content-Transfer-Encoding: binary\r\n\r\n"
)

_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n\t ]*+")
_FIELD_NAME = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_NO_FIELD = (re.compile(rb"\n(?![!-9;-~]++[ \t]*+:|[ \t])"), re.compile(rb"\r(?!\n|[!-9;-~]++[ \t]*+:|[ \t])"))
"""A line end not followed by a field or continuation; patterns that begin with one octet are fast."""
_MAILBOX_LINE = re.compile(rb">*From ")

_LINE_OCTETS = 57
_WHOLE = struct.Struct("76s" * (PIECE_OCTETS // _LINE_OCTETS) + "0s")
"""Splits the base64 of a whole piece; the empty rest ends the last line."""


def as_sent(saved: bytes) -> bytes:
    """The message in a file. One without any CR gets CRLF line ends, since mail programs save mail with LF."""
    return saved if b"\r" in saved else saved.replace(b"\n", b"\r\n")


def check_size(size: int, limit: int) -> None:
    """Raises MessageTooBig for a message of more octets than the limit."""
    if size > limit:
        raise MessageTooBig(f"the content has {size} octets, the limit is {limit}")


def check_carriable(message: bytes, max_hops: int) -> None:
    """Raises MalformedMessage for what cannot be carried byte for byte, and MailLoop for a loop.

    A bare CR or LF would be changed, or taken for an end of data, on the way (RFC 5321, 2.3.8). A first line that
    begins with a blank would continue any field added on top. At a NUL in the header mail servers cut the field, or
    the whole header; one in the body passes. More than `max_hops` Received fields mean a loop
    (RFC 5321, 6.3).
    """
    ends = _ends_of_lines(message)
    if "\n" in ends:
        raise MalformedMessage("a line ends in LF without CR")
    if "\r" in ends:
        raise MalformedMessage("a CR stands alone, without LF")
    check_first_line(message)
    end, _, searched = _bounds(message)
    if message.find(b"\0", 0, searched) >= 0:
        raise MalformedMessage("a NUL in the header")
    header = message[:end]
    if header.lower().count(b"received") <= max_hops:  # far faster than parsing all fields
        return
    hops = [name for name, _ in fields(header)].count(b"received")
    if hops > max_hops:
        raise MailLoop(f"{hops} Received fields, the mail is in a loop")


def check_first_line(message: bytes) -> None:
    """Raises MalformedMessage for a first line that would continue a field added before it."""
    if message.startswith((b" ", b"\t")):
        raise MalformedMessage("the first line begins with a blank, as if it continued another")


def split(message: bytes) -> tuple[bytes, bytes]:
    """Header with its last CRLF, and body. Raises MalformedMessage.

    An empty line between them belongs to neither.
    """
    end, body, _ = _bounds(message)
    return message[:end], message[body:]


def has_body(message: bytes, body: Octets) -> bool:
    """Whether this is the body that `split` returns, without copying. Raises MalformedMessage."""
    return len(message) - bounds(message)[1] == len(body) and message.endswith(body)


def header_of(message: bytes) -> bytes:
    """The header that `split` returns, without a copy of the body. Raises MalformedMessage."""
    return message[: _bounds(message)[0]]


_IN_ANGLES = re.compile(rb"<([^<>\s]+)>")
_FIRST_ID = re.compile(rb"[Mm][Ee][Ss][Ss][Aa][Gg][Ee]-[Ii][Dd]:[ \t]*(?:\r\n[ \t]+)?(<[^<>\s]{1,998}>)")
_LATER_ID = re.compile(rb"\n" + _FIRST_ID.pattern)
"""A fixed first octet makes it fifty times as fast."""
_NUMBERED = re.compile(rb"\bid\s+\S|;")


def is_like_no_other(message: bytes) -> bool:
    """Whether equal octets are the same mail: it has a unique field.

    That is a valid Message-ID (RFC 5322, 3.6.4), or a Received field with an id or a date.
    """
    try:
        header = header_of(message)
    except MalformedMessage:
        return False
    for name, raw in fields(header):
        # Text before and after an @. One pattern for all of that would take quadratic time.
        if name == b"message-id" and any(b"@" in message_id[1:-1] for message_id in _IN_ANGLES.findall(raw)):
            return True
        if name == b"received" and _NUMBERED.search(raw):
            return True
    return False


_ON_TOP = re.compile(rb"received:((?:[^\r\n]|\r\n[ \t]){1,2000})", re.IGNORECASE)
_COMMENT = re.compile(rb"\([^()]*\)")
_QUEUE_ID = re.compile(rb"[ \t]id[ \t\r\n]+([0-9A-Za-z-]{1,64})(?=[ \t\r\n;]|\Z)")


def queue_id(message: bytes) -> str:
    """The id in the topmost Received field (RFC 5321, 4.4), or "": that of the mail server that wrote it.

    Whether it can be trusted depends on the client.
    """
    on_top = _ON_TOP.match(message, 0, MAX_STRUCTURED_FIELD_OCTETS)
    ids = _QUEUE_ID.findall(_COMMENT.sub(b"", on_top[1].partition(b";")[0])) if on_top else []
    return ids[-1].decode("ascii") if ids else ""


def message_id_hash(message: bytes) -> str:
    """The hash of the Message-ID in log and audit record, equal at all sites: 16 hexadecimal digits; "" without one.

    They are the first digits of SHA-256 over the first Message-ID with its angle brackets (RFC 5322, 3.6.4).
    """
    end = message.find(b"\r\n\r\n", 0, MAX_HEADER_OCTETS)
    end = end if end >= 0 else min(len(message), MAX_HEADER_OCTETS)
    match = _FIRST_ID.match(message, 0, end) or _LATER_ID.search(message, 0, end)
    return hash_of_id(match[1].decode("utf-8", "surrogateescape")) if match else ""


def hash_of_id(message_id: str) -> str:
    """Returns the hash of a Message-ID, with or without angle brackets."""
    whole = message_id if message_id.startswith("<") else f"<{message_id}>"
    return hashlib.sha256(whole.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def searched_header(message: bytes) -> bytes:
    """All up to the first empty line, for checks that can only be stricter. Raises MalformedMessage."""
    return message[: _empty_line(message)]


def bounds(message: bytes) -> tuple[int, int]:
    """Returns the ends of the header and of the separator before the body. Raises MalformedMessage."""
    return _bounds(message)[:2]


def _bounds(message: bytes) -> tuple[int, int, int]:
    """As `bounds`, with the offset of the first empty line."""
    searched = end = _empty_line(message)
    if not (_FIELD_NAME.match(message) or _MAILBOX_LINE.match(message)):
        end = 0
    else:
        for pattern in _NO_FIELD:
            if match := pattern.search(message, 0, end):
                end = match.end()
    return end, min(end + 2, len(message)) if message.startswith(b"\r\n", end) else end, searched


def fields(header: bytes) -> list[tuple[bytes, bytes]]:
    """Each field as (name in lower case, raw field with folding and CRLF), without other lines."""
    return list(filter(itemgetter(0), lines_by_field(header)))


def lines_by_field(header: bytes) -> list[tuple[bytes, bytes]]:
    """All lines of the header, grouped by field as in `fields`; the name is b"" for other lines."""
    grouped: list[tuple[bytes, bytes]] = []
    name = b""
    raw: list[bytes] = []
    for line in header.splitlines(keepends=True):
        if raw and line[:1] not in (b" ", b"\t"):
            grouped.append((name, b"".join(raw)))
            raw = []
        if not raw:
            match = _FIELD_NAME.match(line)
            name = match[1].lower() if match else b""
        raw.append(line)
    if raw:
        grouped.append((name, b"".join(raw)))
    return grouped


def header_work(message: bytes) -> int:
    """Returns the cost of work on the header alone, in octets of a body (aio.off_loop)."""
    end = message.find(b"\r\n\r\n", 0, MAX_HEADER_OCTETS)
    return HEADER_COSTS * (end if end >= 0 else min(len(message), MAX_HEADER_OCTETS))


def work(message: bytes) -> int:
    """Returns the cost of work on all of the message, in octets of a body (aio.off_loop)."""
    return len(message) + header_work(message)


def without_fields(message: bytes, names: frozenset[bytes]) -> bytes:
    """The message without the fields of these names (lower case) up to the empty line; else the same object."""
    header = searched_header(message)
    lower = header.lower()
    for name in names:  # this fast check usually fails
        if name in lower:
            break
    else:
        return message
    lines = lines_by_field(header)
    if names.isdisjoint([name for name, _ in lines]):
        return message
    return b"".join([raw for name, raw in lines if name not in names]) + message[len(header) :]


without_hidden_fields = partial(without_fields, names=NEVER_CARRIED)
"""The message without Bcc, Resent-Bcc and Return-Path; the same object if it has none of them."""


without_marks = partial(without_fields, names=OUR_MARKS)
"""The message without marks of protection, which anybody can write; the same object if it has none of them."""


def marked_digest(message: bytes) -> bytes:
    """SHA-256 of the mark of protection and what it is about; b"" if it has no mark.

    That is the body, and fields that people see, answer to, or that say how the body is shown. Fields that servers add
    or fold do not change it. Two marks are none.
    """
    header = searched_header(message)
    found = [
        (name, b" ".join(raw.partition(b":")[2].split())) for name, raw in lines_by_field(header) if name in _MARKED
    ]
    if sum(name in OUR_MARKS for name, _ in found) != 1:
        return b""
    digest = hashlib.sha256(repr(sorted(found)).encode())
    end = len(message) - 2 * message.endswith(b"\r\n")  # servers end what has no end
    digest.update(memoryview(message)[len(header) : end])
    return digest.digest()


def marked(original: bytes, protection: str, peer: str, author: str, more: str = "") -> bytes:
    """The opened original with a field for its protection on top; such fields from outside are removed.

    `author` is "peer" if its From field is of the peer's domains, else "other"; `more` are further parameters, each
    after "; ".
    """
    mark = f"X-QuMail-Protection: {protection}; peer={peer}; author={author}{more}\r\n".encode()
    return mark + without_marks(original)


def with_mark(message: bytes, value: str) -> bytes:
    """The message, which has no marks, with this value of X-QuMail-Protection on top."""
    return f"X-QuMail-Protection: {value}\r\n".encode() + message


class Entity(NamedTuple):
    """A payload: `content`, and for a message the DER of its sealed envelope."""

    kind: Literal["message", "enveloped", "signed"]
    content: bytes
    envelope: bytes = b""


def wrap_payload(message: bytes, envelope: bytes) -> Pieces:
    """The payload to seal: the original, unchanged, as a message/rfc822 entity under its sealed envelope (DER)."""
    return Pieces.of(payload_header(envelope), message)


def payload_header(envelope: bytes) -> bytes:
    """The header of a payload with its empty line; there is one form for each envelope."""
    text = pybase64.b64encode(envelope)
    width = _ENVELOPE_LINE_OCTETS // 3 * 4
    lines = b"".join([b" " + text[start : start + width] + b"\r\n" for start in range(0, len(text), width)])
    return _MESSAGE_TYPE + _ENVELOPE_FIELD + lines + b"\r\n"


def wrap_enveloped(der: Octets | Pieces) -> Pieces:
    """An AuthEnvelopedData as the payload of one more layer around it."""
    return Pieces.of(_BINARY_HEADER % b"authEnveloped-data", der)


def wrap_signed(der: Octets | Pieces) -> Pieces:
    """A SignedData as the payload of an AuthEnvelopedData."""
    return Pieces.of(_BINARY_HEADER % b"signed-data", der)


def unwrap(payload: bytes) -> Entity:
    """The kind and content of a payload. Raises BadStructure for any other kind.

    A message must have the header that `wrap_payload` writes, octet for octet.
    """
    if payload.startswith(_MESSAGE_TYPE):
        return _unwrap_message(payload)
    try:
        end, begin, _ = _bounds(payload)
    except MalformedMessage as error:
        raise BadStructure(f"the payload: {error}") from error
    if begin == end:
        raise BadStructure("the payload: no empty line ends its header")
    fields = mime_fields(payload[:end])
    kind = _cms_kind(fields.get(b"content-type", b""))
    if kind is None:
        raise BadStructure("the payload is neither message/rfc822 with a sealed envelope nor CMS")
    return Entity(kind, _decoded(fields.get(b"content-transfer-encoding", b"binary"), payload, begin))


def _unwrap_message(payload: bytes) -> Entity:
    start = len(_MESSAGE_TYPE) + len(_ENVELOPE_FIELD)
    if payload[len(_MESSAGE_TYPE) : start] != _ENVELOPE_FIELD:
        raise BadStructure("the payload has no sealed envelope, as in format version 0: its sender must be upgraded")
    end = payload.find(b"\r\n\r\n", start - 2, MAX_HEADER_OCTETS)
    if end < 0:
        raise BadStructure("the header of the payload does not end")
    try:
        envelope = pybase64.b64decode(payload[start:end].replace(b"\r\n", b"").replace(b" ", b""), validate=True)
    except (ValueError, binascii.Error) as error:
        raise BadStructure(f"the sealed envelope is not clean base64: {error}") from error
    if payload[: end + 4] != payload_header(envelope):
        raise BadStructure("the header of the payload is not as it is written")
    return Entity("message", payload[end + 4 :], envelope)


def shown_header(original: bytes, names: frozenset[bytes] = VISIBLE_FIELDS) -> bytes:
    """The fields of the original that a sealed message shows (`names`), octet for octet, each with a line end.

    Raises MalformedMessage if they would make the header too long for its receiver.
    """
    shown = b"".join([raw for name, raw in fields(header_of(original)) if name in names])
    if shown and not shown.endswith(b"\r\n"):
        shown += b"\r\n"
    if len(shown) > MAX_HEADER_OCTETS - ROOM_OCTETS or shown.count(b"\n") > MAX_HEADER_LINES - ROOM_LINES:
        raise MalformedMessage("its visible fields leave no room in the header for what is added on its way")
    return shown


def sealed_message(
    original: bytes, der: Octets | Pieces, *, kind: bytes = b"authEnveloped-data", shown: bytes | None = None
) -> bytes:
    """The outer message around sealed `der` of this smime-type (RFC 8551, 3.3): few header fields, one base64 body.

    `shown` are its fields; by default the fewest of the original, and no subject.
    """
    header = b"".join(
        (
            shown_header(original) + b"Subject: [...]\r\n" if shown is None else shown,
            b"MIME-Version: 1.0\r\nContent-Type: application/pkcs7-mime; smime-type=",
            kind,
            b';\r\n name="smime.p7m"\r\nContent-Transfer-Encoding: base64\r\n',
            b'Content-Disposition: attachment; filename="smime.p7m"\r\n\r\n',
        )
    )
    body = -(-len(der) // 3) * 4 + -(-len(der) // _LINE_OCTETS) * 2
    return joined(len(header) + body, chain((header,), _base64_lines(part_of(der))))


def sealed_for_others(message: bytes) -> bytes:
    """A message that has left at level smime, with nothing but the fields that it had then.

    Raises BadStructure for any other message, and MalformedMessage.
    """
    end, begin, _ = _bounds(message)
    structured = mime_fields(message[:end])
    content_type = structured.get(b"content-type", b"")
    kind = next((each for each in OTHERS_KINDS if b"smime-type=" + each + b";" in content_type), None)
    if kind is None:
        raise BadStructure("it is not enveloped data")
    content = _decoded(structured.get(b"content-transfer-encoding", b"7bit"), message, begin)
    shown = shown_header(message, VISIBLE_TO_OTHERS) + b"Subject: [...]\r\n"
    return sealed_message(message, content, kind=kind, shown=shown)


def base64_text(octets: bytes) -> bytes:
    """Base64 in lines of 76 characters that end in CRLF (RFC 2045, 6.8)."""
    return b"".join(_base64_lines((octets,)))


def is_sealed(message: bytes) -> bool:
    """Whether a Content-Type announces authenticated enveloped data; does not check the body."""
    if b"pkcs7-mime" not in searched_header(message).lower():
        return False
    types = [raw for name, raw in fields(header_of(message)) if name == b"content-type"]
    return any(_cms_kind(raw.partition(b":")[2]) == "enveloped" for raw in types[:MAX_TYPES])


@lru_cache(maxsize=64)
def _cms_kind(content_type: bytes) -> Literal["enveloped", "signed"] | None:
    """The kind of CMS that a Content-Type announces; None also if some program may read it differently.

    Cached, since one program writes the same field each time.
    """
    # Some programs take octets that are not ASCII for blanks, others for part of a name. An asterisk is RFC 2231's.
    if not content_type.isascii() or b"*" in content_type or content_type.lower().count(b"smime-type") != 1:
        return None
    try:
        structured = parameters.parse(content_type)
    except InDoubt:
        return None
    kinds = structured.values("smime-type")
    if structured.value not in _CMS_TYPES or len(kinds) != 1:
        return None
    return _CMS_KINDS.get(kinds[0].lower())


def sealed_content(message: bytes) -> bytes:
    """The DER inside a message that is_sealed(); raises BadStructure where the body is not clean base64."""
    end, begin, _ = _bounds(message)
    fields = mime_fields(message[:end])
    return _decoded(fields.get(b"content-transfer-encoding", b"7bit"), message, begin)


def has_in_body(message: bytes, names: Iterable[bytes]) -> bool:
    """Whether one of these octet strings stands in the body, as it is or in as much of it as is base64."""
    begin, wanted = _bounds(message)[1], tuple(names)
    overlap = max(map(len, wanted), default=0)
    text, decoded, ended = b"", b"", False
    for start in range(begin, len(message), PIECE_OCTETS):
        end = min(start + PIECE_OCTETS, len(message))
        if not ended and (match := _BASE64.match(message, start, end)):
            text += match[0].translate(None, b"\r\n\t ")
            ended = match.end() < end or end == len(message)
        whole = len(text) - len(text) % 4
        # At the end as much as there is: one character alone is nothing.
        last = text[whole:] + b"=" * (-len(text) % 4) if ended and len(text) % 4 > 1 else b""
        decoded = decoded[-overlap:] + pybase64.b64decode(text[:whole] + last)
        text = b"" if ended else text[whole:]
        if any(name in decoded or message.find(name, start, end + overlap) >= 0 for name in wanted):
            return True
    return False


def received_field(*, client: str, hostname: str, protocol: str, mail_id: str, when: datetime) -> bytes:
    """The trace field that a relay adds on top (RFC 5321, 4.4); without recipients, so that it reveals no Bcc."""
    by = f"by {hostname} with {protocol} id {mail_id}"
    return f"Received: from {client}\r\n\t{by};\r\n\t{_date(when.replace(microsecond=0))}\r\n".encode()


_date = lru_cache(maxsize=1)(format_datetime)
"""Cached, since most calls are for the same second."""


def _decoded(encoding: bytes, entity: bytes, begin: int) -> bytes:
    """The decoded body of an entity, from offset `begin`; raises BadStructure if it is not clean base64."""
    if encoding.lower() == b"binary":
        return entity[begin:]
    if encoding.lower() != b"base64":
        raise BadStructure("the transfer encoding of CMS is not base64")
    decoded = io.BytesIO()
    rest, ended = b"", False
    try:
        for start in range(begin, len(entity), PIECE_OCTETS):
            text = rest + entity[start : start + PIECE_OCTETS].translate(None, b"\r\n\t ")
            if ended and text:
                raise BadStructure("the sealed body is not clean base64: it goes on after its end")
            whole = len(text) - len(text) % 4
            decoded.write(pybase64.b64decode(text[:whole], validate=True))
            ended = ended or text.endswith(b"=", 0, whole)
            rest = text[whole:]
        decoded.write(pybase64.b64decode(rest, validate=True))
    except (ValueError, binascii.Error) as error:
        raise BadStructure(f"the sealed body is not clean base64: {error}") from error
    return decoded.getvalue()


def _base64_lines(pieces: Iterable[Octets]) -> Iterator[bytes]:
    """Base64 in lines of 76 characters that end in CRLF (RFC 2045, 6.8).

    Splitting lines with `struct` takes half the time of `encodebytes` and adds CRLF directly.
    """
    rest = b""
    for piece in pieces:
        octets = rest + piece
        end = len(octets) - len(octets) % _LINE_OCTETS
        yield from _cut(pybase64.b64encode(memoryview(octets)[:end]))
        rest = octets[end:]
    yield from _cut(pybase64.b64encode(rest))


def _cut(text: bytes) -> Iterator[bytes]:
    """Lines of 76 characters with CRLF; the last may be shorter."""
    whole, rest = divmod(len(text), 76)
    # Functions of the module would cache a hundred formats.
    cut = _WHOLE if len(text) == _WHOLE.size else struct.Struct(f"{'76s' * whole}{rest}s")
    yield b"\r\n".join(cut.unpack(text))
    if rest:
        yield b"\r\n"


def _empty_line(message: bytes) -> int:
    """Returns the offset of the first empty line, or of the message's end. Raises MalformedMessage."""
    if message.startswith(b"\r\n"):
        return 0
    offset = message.find(b"\r\n\r\n", 0, MAX_HEADER_OCTETS + 4)
    end = offset + 2 if offset >= 0 else len(message)
    if end > MAX_HEADER_OCTETS + 2:
        raise MalformedMessage(f"the header is longer than {MAX_HEADER_OCTETS} octets")
    if message.count(b"\n", 0, end) + message.count(b"\r", 0, end) > 2 * MAX_HEADER_LINES:
        raise MalformedMessage(f"the header has more than {MAX_HEADER_LINES} lines")
    return end


def _ends_of_lines(message: bytes) -> tuple[str, ...]:
    """Which of CRLF, a lone CR and a lone LF are in the message; takes a third of the time of counting."""
    decoder = io.IncrementalNewlineDecoder(None, translate=False)
    for piece in part_of(message):
        decoder.decode(str(piece, "latin-1"))
    decoder.decode("", final=True)
    newlines = decoder.newlines
    return (newlines,) if isinstance(newlines, str) else newlines or ()


def mime_fields(header: bytes) -> dict[bytes, bytes]:
    """Content-Type and Content-Transfer-Encoding of a header (RFC 2045): values, unfolded, by name in lower case.

    Raises BadStructure for a duplicate field, since two readers could then see two messages.
    """
    values: dict[bytes, bytes] = {}
    for name, raw in fields(header):
        if name in _MIME_FIELDS:
            if len(raw) > MAX_STRUCTURED_FIELD_OCTETS:
                raise BadStructure(f"{name.decode()} is longer than {MAX_STRUCTURED_FIELD_OCTETS} octets")
            if name in values:
                raise BadStructure(f"{name.decode()} is there twice")
            values[name] = raw.split(b":", 1)[1].replace(b"\r\n", b"").strip()
    return values


_MIME_FIELDS = frozenset({b"content-type", b"content-transfer-encoding"})
