"""The data that a DKIM or ARC signature covers: chosen header fields and the body hash, in canonical form.
Standard: RFC 6376 3.4 (canonicalisation), 3.7 (hashes), 5.4.2 (several fields of one name); time is linear.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dkim.canonicalization import CanonicalizationPolicy, Relaxed

from relay.formats import mime
from relay.formats.pieces import PIECE_OCTETS, Octets

_BLANKS = re.compile(rb"[\t ]{2,}|\t")
_SIGNATURE_TAG = re.compile(rb"((?:\A|;)[ \t\r\n]*b[ \t\r\n]*=)[^;]*")


@dataclass(frozen=True, slots=True)
class BodyHash:
    """SHA-256 of a canonical body or its beginning, and the length of the whole canonical body (octets)."""

    digest: bytes
    length: int


class Header:
    """The header fields of one message, by name."""

    def __init__(self, header: bytes) -> None:
        """`header` is that of `mime.split`."""
        self._fields: dict[bytes, list[bytes]] = {}
        for name, raw in mime.fields(header):
            self._fields.setdefault(name, []).append(raw)

    def named(self, name: bytes) -> list[bytes]:
        """The raw fields of this name (lower case), from top to bottom."""
        return self._fields.get(name, [])

    def chosen(self, names: Iterable[bytes], c: bytes = b"relaxed") -> Iterator[bytes]:
        """The canonical fields of these names (lower case), each the next one from the bottom, if any is left.

        `c` is the value of a c= tag (RFC 6376, 3.5). Raises InvalidCanonicalizationPolicyError.
        """
        policy = CanonicalizationPolicy.from_c_value(c)
        taken: dict[bytes, int] = {}
        for name in names:
            fields = self._fields.get(name, [])
            taken[name] = number = taken.get(name, 0) + 1
            if number <= len(fields):
                yield canonical(fields[-number], policy)


def canonical(raw: bytes, policy: CanonicalizationPolicy | type[Relaxed] = Relaxed) -> bytes:
    """One raw field in the canonical form of the policy, with its CRLF."""
    name, _, value = raw.partition(b":")
    [(name, value)] = policy.canonicalize_headers([(name, value)])
    return bytes(name + b":" + value)


def without_signature(raw: bytes) -> bytes:
    """A signature field with an empty b= tag, the form that is signed (RFC 6376, 3.7)."""
    name, _, value = raw.partition(b":")
    return name + b":" + _SIGNATURE_TAG.sub(rb"\1", value, count=1)


def body_hash(body: Octets, *, relaxed: bool = True, limit: int | None = None) -> BodyHash:
    """The hash of the canonical body (RFC 6376, 3.4.3 and 3.4.4), or of its first `limit` octets (l=).

    A missing CRLF at the end is added. The body is read in pieces, so that other threads can run.
    """
    hasher, length = hashlib.sha256(), 0
    for piece in _canonical_pieces(body, relaxed):
        hasher.update(piece if limit is None else piece[: max(0, limit - length)])
        length += len(piece)
    return BodyHash(hasher.digest(), length)


def _canonical_pieces(body: Octets, relaxed: bool) -> Iterator[bytes]:
    """The canonical body in pieces. Line ends, and with `relaxed` a blank, are delayed until more text follows."""
    kept_back = b" \r\n" if relaxed else b"\r\n"
    lines, blank, any_text = 0, b"", False
    for piece in _pieces(body):
        text = blank + piece
        if relaxed and (b" " in text or b"\t" in text):  # base64 has none
            text = _BLANKS.sub(b" ", text).replace(b" \r\n", b"\r\n")
        ready = text.rstrip(kept_back)
        rest = text[len(ready) :]
        if ready:
            yield b"\r\n" * lines
            yield ready
            lines, any_text = 0, True
        lines += rest.count(b"\r\n")
        blank = b" " if relaxed and rest.endswith(b" ") else b""
    if any_text or not relaxed:
        yield b"\r\n"


def _pieces(body: Octets) -> Iterator[bytes]:
    """The body and its last CRLF, in pieces that never end between CR and LF."""
    start = 0
    while start < len(body):
        end = start + PIECE_OCTETS
        if body[end - 1 : end + 1] == b"\r\n":
            end += 1
        yield bytes(body[start:end])
        start = end
    if body and body[-2:] != b"\r\n":
        yield b"\r\n"
