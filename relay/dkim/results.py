"""The header field with the results of a message's signatures for later readers.
Standard: RFC 8601 (Authentication-Results), 5 (foreign fields under our name are removed).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from relay.formats import mime
from relay.formats.mailbox import MAX_ADDRESS, folded_domain

_NAME = b"authentication-results"
_TOKEN = re.compile(r"[A-Za-z0-9._@+/=-]+")
_OUTSIDE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[()]|[^"()]+', re.DOTALL)
_NO_DOMAIN = re.compile(r"[^A-Za-z0-9._\x80-\U0010ffff-]")
_IN_COMMENT = re.compile(rb"\\.|[()]|[^()\\]+|\\", re.DOTALL)


@dataclass(frozen=True, slots=True)
class AuthResult:
    """One method's result, in the words of RFC 8601, 2.7; `properties` are `header.d` and the like."""

    method: str
    result: str
    reason: str = ""
    properties: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        text = f"{self.method}={self.result}"
        if self.reason:
            text += f' reason="{_plain(self.reason)}"'
        return text + "".join(
            f" {name}={value}" for name, value in self.properties if _TOKEN.fullmatch(value) and len(value) <= 253
        )


def results_field(authserv_id: str, results: Sequence[AuthResult]) -> bytes:
    """The Authentication-Results field, one result a line."""
    value = ";\r\n ".join(map(str, results)) or "none"
    return f"Authentication-Results: {authserv_id};\r\n {value}\r\n".encode("ascii")


def without_forged(message: bytes, authserv_id: str) -> bytes:
    """The message without Authentication-Results that claim to be ours; else the same object."""
    header = mime.searched_header(message)
    if _NAME not in header.lower():
        return message
    ours = folded_domain(authserv_id)
    kept = [raw for _, raw in mime.lines_by_field(header) if not _is_forged(raw, ours)]
    return b"".join(kept) + message[len(header) :]


def _is_forged(raw: bytes, ours: str) -> bool:
    """Whether a field is an Authentication-Results that, to some reader, claims to be ours."""
    name, colon, value = raw.partition(b":")
    if not colon or name.strip().lower() != _NAME:
        return False
    words, domain = _words_of_id(value), ""
    # Some readers remove blanks and comments from a domain (obs-domain of RFC 5322), others end it there.
    for word in words:
        domain += word
        if _domain_of(domain) == ours:
            return True
        if len(domain) > MAX_ADDRESS:
            break
    return not words


def _domain_of(word: str) -> str:
    """The domain at the beginning, folded, without a trailing dot: readers differ about a version after it."""
    return folded_domain(_NO_DOMAIN.split(word, maxsplit=1)[0].rstrip("."))


def _words_of_id(value: bytes) -> list[str]:
    """The words before the first semicolon, without comments; empty if unclear (RFC 8601, 2.2)."""
    depth, position, word = 0, 0, b""
    while position < len(value):
        match = (_IN_COMMENT if depth else _OUTSIDE).match(value, position)
        if match is None:
            return []  # an unclosed quotation mark
        piece, position = match[0], match.end()
        if piece in (b"(", b")"):
            depth += 1 if piece == b"(" else -1
            if depth < 0:
                return []
            word += b" "
        elif not depth:
            quoted = len(piece) > 1 and piece.startswith(b'"')
            word += piece[1:-1].replace(b"\\", b"") if quoted else piece
            if b";" in piece:
                break
        if len(word) > mime.MAX_STRUCTURED_FIELD_OCTETS:
            break
    return [] if depth else word.partition(b";")[0].decode("utf-8", "replace").split()


def _plain(text: str) -> str:
    """The text made safe for a quoted string."""
    return re.sub(r"[^A-Za-z0-9 ._:=/,-]", "", text)[:120]
