"""One way to write what a rule names, and the pieces that the tables of such spellings are written with.
Standard: RFC 2047 for encoded words; most spellings break it, as programs do, and mail programs show them all the same.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

BODY = b"text\r\n"


@dataclass(frozen=True)
class Spelling:
    """A message that has what `condition = "wanted"` names, if a mail program shows it so."""

    name: str
    condition: str
    wanted: str
    message: bytes

    def __str__(self) -> str:
        return f"{self.condition}: {self.name}"


def mail(*header: bytes, body: bytes = BODY) -> bytes:
    """A message of these header lines."""
    return b"".join(line + b"\r\n" for line in header) + b"\r\n" + body


def q(octets: bytes | str, charset: str = "utf-8", every: bool = False) -> bytes:
    """An encoded word in the Q encoding, with as few octets encoded as the syntax needs, or all of them."""
    octets = octets.encode() if isinstance(octets, str) else octets
    plain = (
        b""
        if every
        else b"[]()<>@,;:./!'*+-&#$%{}|~^" + bytes(range(48, 58)) + bytes(range(65, 91)) + bytes(range(97, 123))
    )
    text = b"".join(
        b"_" if each == 32 and not every else bytes([each]) if each in plain else b"=%02X" % each for each in octets
    )
    return b"=?%s?Q?%s?=" % (charset.encode(), text)


def b(octets: bytes | str, charset: str = "utf-8") -> bytes:
    """An encoded word in the B encoding."""
    octets = octets.encode() if isinstance(octets, str) else octets
    return b"=?%s?B?%s?=" % (charset.encode(), base64.b64encode(octets))


def b64(octets: bytes | str) -> bytes:
    """Base64 in one line."""
    return base64.b64encode(octets.encode() if isinstance(octets, str) else octets)


def b64url(octets: bytes | str) -> bytes:
    """The same in the alphabet for URLs."""
    return b64(octets).replace(b"/", b"_").replace(b"+", b"-")
