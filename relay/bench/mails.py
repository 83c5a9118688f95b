"""The mails of a benchmark: of an exact size, each different, ready to be sent.
Standard: RFC 5322 and MIME; lines of 76 characters that end in CRLF, no dot at the start of a line.
"""

from __future__ import annotations

import base64
import random
from dataclasses import dataclass

MARKER = b"this-line-is-not-for-the-wire"
"""Stands at the beginning of every body: where it is seen, a mail was not sealed."""

_HEADER = """\
From: Ann <ann@alice.example>\r
To: Ben <ben@bob.example>\r
Subject: Quarterly figures\r
Date: Wed, 25 Nov 2026 10:00:00 +0000\r
Message-ID: <%012d@alice.example>\r
MIME-Version: 1.0\r
Content-Type: application/octet-stream; name="figures.bin"\r
Content-Transfer-Encoding: base64\r
User-Agent: A mail program of the usual kind 102.4\r
\r
"""


@dataclass(frozen=True, slots=True)
class Template:
    """Mails of one size that differ in their Message-ID: `size` octets with the header."""

    size: int
    body: bytes

    def mail(self, serial: int) -> tuple[bytes, bytes]:
        """Header and body of one of them."""
        return (_HEADER % serial).encode(), self.body


def template(size: int) -> Template:
    """Mails of `size` octets, from 1000 on; the body is random base64."""
    room = size - len(_HEADER % 0) - len(MARKER) - 2
    data = base64.encodebytes(random.Random(1).randbytes(room)).replace(b"\n", b"\r\n")  # noqa: S311
    return Template(size, MARKER + b"\r\n" + data[: room - 2].rstrip(b"\r\n").ljust(room - 2, b"=") + b"\r\n")
