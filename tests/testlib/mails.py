"""Messages of the kinds that gateways have broken before.
Standard: RFC 5322 and MIME; every one ends in CRLF and has no bare CR or LF.
"""

from __future__ import annotations

import base64
import random
import re
import textwrap


def plain(subject: str = "Quarterly figures", body: str = "The figures are 42 and 43.\r\n") -> bytes:
    """A short text message."""
    header = (
        "From: Ann <ann@alice.example>\r\nTo: Ben <ben@bob.example>\r\n"
        f"Subject: {subject}\r\nDate: Wed, 25 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@alice.example>\r\n"
    )
    return (header + "\r\n" + body).encode()


def eight_bit() -> bytes:
    """UTF-8 in the body, unencoded, with dots at line starts and trailing blanks."""
    body = "Grüße aus Köln \r\n.\r\n..zwei\r\n\tTab \r\n" + "é" * 400 + "\r\n"
    header = (
        "From: Ann <ann@alice.example>\r\nTo: Ben <ben@bob.example>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n"
    )
    return (header + "\r\n" + body).encode()


def random_attachment(size: int = 300_000, seed: int = 1) -> bytes:
    """Multipart with `size` random octets in base64."""
    data = base64.encodebytes(random.Random(seed).randbytes(size)).replace(b"\n", b"\r\n")
    header = textwrap.dedent("""\
        From: Ann <ann@alice.example>
        To: Ben <ben@bob.example>
        Cc: carol@bob.example
        Subject: Confidential attachment
        MIME-Version: 1.0
        Content-Type: multipart/mixed; boundary="b1"

        This is MIME.
        --b1
        Content-Type: text/plain

        See the attachment.
        --b1
        Content-Type: application/octet-stream; name="secret.bin"
        Content-Transfer-Encoding: base64

        """).replace("\n", "\r\n")  # fmt: skip
    return header.encode() + data + b"--b1--\r\n"


_PROOF = re.compile(rb"(X-QuMail-Protection: [^\r\n]*); site=[0-9a-f]{32}\r\n")


def unproven(message: bytes) -> bytes:
    """The message without the proof in the mark that its relay gave it."""
    return _PROOF.sub(rb"\1\r\n", message, count=1)


def untraced(message: bytes) -> bytes:
    """The message without the proof, and what the last relay has put on top: a Received field and its mark if sealed."""
    message = unproven(message)
    name, _, _ = message.partition(b":")
    assert name == b"Received", message[:100]
    lines = message.splitlines(keepends=True)
    end = next(place for place, line in enumerate(lines[1:], 1) if line[:1] not in b" \t")
    return re.sub(rb"\AX-QuMail-Sealed: [^\r\n]*\r\n", b"", b"".join(lines[end:]))
