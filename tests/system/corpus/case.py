"""One awkward message: its name, its octets, and what must become of it on the way through the relays.
Standard: RFC 5322 and RFC 2045 say what is valid; whatever can be carried octet for octet is carried so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FROM_TO = "From: Ann <ann@alice.example>\r\nTo: Ben <ben@bob.example>\r\n"
REST = "Date: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n"
HEADER = f"{FROM_TO}{REST}"


@dataclass(frozen=True)
class Case:
    """`message` is what is submitted, `arrives` the original at the far end, or None where it must be refused.

    `refusal` is a regular expression for the reply that says why.
    """

    name: str
    message: bytes = field(repr=False)
    arrives: bytes | None = field(repr=False)
    refusal: str = ""


def octets(text: str | bytes) -> bytes:
    """Text as octets: U+0000 to U+00FF stand for themselves, so that a table may show any octet."""
    return text if isinstance(text, bytes) else text.encode("latin-1")


def carried(name: str, message: str | bytes, *, arrives: str | bytes | None = None) -> Case:
    """A message that arrives: octet for octet, or as `arrives` says."""
    sent = octets(message)
    return Case(name, sent, sent if arrives is None else octets(arrives))


def refused(name: str, message: str | bytes, refusal: str) -> Case:
    """A message that is refused with a reply that matches."""
    return Case(name, octets(message), None, refusal)


def mail(header: str | bytes, body: str | bytes = "Text.\r\n") -> bytes:
    """Ann's ordinary header, then these lines of header (each with its CRLF), an empty line, the body."""
    return octets(HEADER) + b"Subject: corpus\r\n" + octets(header) + b"\r\n" + octets(body)


def mime(content_type: str, body: str | bytes, encoding: str = "7bit") -> bytes:
    """A MIME message of this type and transfer encoding; the body is taken as it is."""
    header = f"MIME-Version: 1.0\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: {encoding}\r\n"
    return mail(header, body)
