"""Ways to hide an attachment in the structure of a message: boundaries, nested messages, encodings of what has parts.
Standard: RFC 2046 (5.1, 5.2), RFC 2045 (5), RFC 6532; what mail programs make of the rest.
"""

from __future__ import annotations

import base64
import quopri
from collections.abc import Iterator

from tests.testlib.spellings.spelling import Spelling, mail

PART = b"Content-Type: image/png\r\nContent-Disposition: attachment; filename=plan.docx\r\n\r\nx"
INNER = b"Subject: inside\r\nContent-Type: image/png; name=plan.docx\r\n\r\nx"

BOUNDARIES = {
    "as it is": b'boundary="b"',
    "without quotes": b"boundary=b",
    "in single quotes": b"boundary='b'",
    "in capitals": b'BOUNDARY="b"',
    "blanks around =": b'boundary = "b"',
    "a blank at its end": b'boundary="b "',
    "a comment behind": b'boundary="b" (x)',
    "a comment behind, no quotes": b"boundary=b (x)",
    "a comment before": b'(x) boundary="b"',
    "text behind the quotes": b'boundary="b"x',
    "a backslash": rb'boundary="\b"',
    "a quoted text that does not end": b'boundary="b',
    "folded": b'\r\n boundary="b"',
    "folded behind =": b'boundary=\r\n "b"',
    "twice, the first": b"boundary=b; boundary=c",
    "twice, the second": b"boundary=c; boundary=b",
    "RFC 2231": b"boundary*=utf-8''b",
    "RFC 2231, escaped": b"boundary*=utf-8''%62",
    "RFC 2231, no charset": b"boundary*=''b",
    "RFC 2231, charset unknown": b"boundary*=x-none''b",
    "RFC 2231 beside a plain one": b"boundary=c; boundary*=utf-8''b",
    "a plain one beside RFC 2231": b"boundary=b; boundary*=utf-8''c",
    "cut": b'boundary*0=""; boundary*1="b"',
    "cut, only one": b'boundary*0="b"',
    "an encoded word": b'boundary="=?utf-8?Q?b?="',
    "a quoted text before, with a backslash": rb'x="\\"; boundary=b',
    "a quoted text before, with a semicolon": b'x="a; y=z"; boundary=b',
    "a quoted text before with another": b'x="; boundary=c"; boundary=b',
    "a parameter without =": b"x; boundary=b",
    "no semicolon before": b"charset=utf-8 boundary=b",
    "a semicolon behind": b"boundary=b;",
}
"""Parameters of multipart/mixed whose boundary is b for some program."""

MULTIPARTS = {
    "mixed": b"multipart/mixed; boundary=b",
    "in capitals": b"MULTIPART/MIXED; boundary=b",
    "alternative": b"multipart/alternative; boundary=b",
    "related": b"multipart/related; boundary=b; type=text/html",
    "parallel": b"multipart/parallel; boundary=b",
    "signed": b"multipart/signed; boundary=b",
    "report": b"multipart/report; boundary=b; report-type=delivery-status",
    "of no known kind": b"multipart/x-none; boundary=b",
    "of no kind": b"multipart/; boundary=b",
    "with a comment": b"multipart/mixed (x); boundary=b",
    "with a comment before": b"(x) multipart/mixed; boundary=b",
    "with a blank before the slash": b"multipart /mixed; boundary=b",
    "with text behind": b"multipart/mixed x; boundary=b",
}

LINES = {
    "blanks behind a boundary": b"--b  \r\n\r\ntext\r\n--b \t\r\n" + PART + b"\r\n--b-- \r\n",
    "no end": b"--b\r\n\r\ntext\r\n--b\r\n" + PART + b"\r\n",
    "no line's end at the end": b"--b\r\n\r\ntext\r\n--b\r\n" + PART,
    "behind the end": b"--b\r\n\r\ntext\r\n--b--\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
    "two ends": b"--b\r\n\r\ntext\r\n--b--\r\n--b--\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
    "text before": b"This is MIME.\r\n\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
    "no empty line before the boundary": b"--b\r\nContent-Type: text/plain\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
    "an empty part before": b"--b\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
    "text behind a boundary": b"--b\r\n\r\ntext\r\n--b x\r\n" + PART + b"\r\n--b--\r\n",
    "a boundary that begins like it": b"--b\r\n\r\ntext\r\n--b1\r\n\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
    "only one part": b"--b\r\n" + PART + b"\r\n--b--\r\n",
    "the last of many": b"--b\r\n\r\nx\r\n" * 300 + b"--b\r\n" + PART + b"\r\n--b--\r\n",
    "behind a text with uuencode": b"--b\r\n\r\nbegin 644 x\r\n#86)C\r\n`\r\nend\r\n--b\r\n" + PART + b"\r\n--b--\r\n",
}


def multipart(kind: bytes, body: bytes) -> bytes:
    """A message of this Content-Type."""
    return mail(b"MIME-Version: 1.0", b"Content-Type: " + kind, body=body)


def messages() -> Iterator[tuple[str, bytes]]:
    """Messages by name, each with an attachment plan.docx of type image/png."""
    body = b"--b\r\n\r\ntext\r\n--b\r\n" + PART + b"\r\n--b--\r\n"
    for name, parameters in BOUNDARIES.items():
        yield f"boundary {name}", multipart(b"multipart/mixed; " + parameters, body)
    for name, kind in MULTIPARTS.items():
        yield f"multipart {name}", multipart(kind, body)
    for name, lines in LINES.items():
        yield name, multipart(b"multipart/mixed; boundary=b", lines)
    right, wrong = b"Content-Type: multipart/mixed; boundary=b", b"Content-Type: multipart/mixed; boundary=c"
    yield "two types, the boundary of the first", mail(right, wrong, body=body)
    yield "two types, the boundary of the second", mail(wrong, right, body=body)
    yield (
        "two types, text first",
        mail(b"Content-Type: text/plain", b"Content-Type: multipart/mixed; boundary=b", body=body),
    )
    yield (
        "two types, text second",
        mail(b"Content-Type: multipart/mixed; boundary=b", b"Content-Type: text/plain", body=body),
    )
    yield "type folded before the colon", mail(b"X: y", b"Content-Type\r\n : multipart/mixed; boundary=b", body=body)
    yield (
        "type with a no-break space before the colon",
        mail(b"X: y", b"Content-Type\xa0: multipart/mixed; boundary=b", body=body),
    )
    yield (
        "type behind a line of no field",
        mail(b"X: y", b"no field", b"Content-Type: multipart/mixed; boundary=b", body=body),
    )
    yield "no MIME-Version", mail(b"Content-Type: multipart/mixed; boundary=b", body=body)
    long = b"b" * 200
    yield "a long boundary", multipart(b"multipart/mixed; boundary=" + long, body.replace(b"--b", b"--" + long))
    umlaut = "b\u00e4".encode()
    yield (
        "a boundary of UTF-8",
        multipart(b'multipart/mixed; boundary="' + umlaut + b'"', body.replace(b"--b", b"--" + umlaut)),
    )
    yield "a boundary of Latin-1", multipart(b'multipart/mixed; boundary="b\xe4"', body.replace(b"--b", b"--b\xe4"))
    for subtype in ("rfc822", "RFC822", "global", "news", "x-none", "partial; id=x; number=1; total=1"):
        yield f"in message/{subtype}", multipart(b"message/" + subtype.encode(), INNER)
        part = b"--b\r\nContent-Type: message/" + subtype.encode() + b"\r\n\r\n" + INNER + b"\r\n--b--\r\n"
        yield f"in a part of message/{subtype}", multipart(b"multipart/mixed; boundary=b", part)
    attached = (
        b"--b\r\nContent-Type: message/rfc822\r\nContent-Disposition: attachment\r\n\r\n" + INNER + b"\r\n--b--\r\n"
    )
    yield "in an attached message", multipart(b"multipart/mixed; boundary=b", attached)
    yield "in a digest", multipart(b"multipart/digest; boundary=b", b"--b\r\n\r\n" + INNER + b"\r\n--b--\r\n")
    yield "in a digest, of a type", multipart(b"multipart/digest; boundary=b", b"--b\r\n" + PART + b"\r\n--b--\r\n")
    for encoding, octets in (
        (b"base64", base64.encodebytes(INNER).replace(b"\n", b"\r\n")), (b"quoted-printable", quopri.encodestring(INNER).replace(b"\n", b"\r\n")),
        (b"x-none", INNER), (b"8bit", INNER), (b"BASE64", base64.encodebytes(INNER).replace(b"\n", b"\r\n")),
        (b"base64 (x)", base64.encodebytes(INNER).replace(b"\n", b"\r\n")),
    ):  # fmt: skip
        for kind in (b"rfc822", b"global"):
            yield f"in message/{kind.decode()}, {encoding.decode()}", mail(
                b"Content-Type: message/" + kind, b"Content-Transfer-Encoding: " + encoding, body=octets)  # fmt: skip
    yield "in a message in a message", multipart(b"message/rfc822", b"Content-Type: message/rfc822\r\n\r\n" + INNER)
    deep = PART
    for depth in range(6):
        deep = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n%s\r\n--b%d--" % (
            depth,
            depth,
            deep,
            depth,
        )
    yield "six deep", deep + b"\r\n"
    for depth in range(6, 40):
        deep = b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n%s\r\n--b%d--" % (
            depth,
            depth,
            deep,
            depth,
        )
    yield "forty deep", deep + b"\r\n"
    nested = b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + PART + b"\r\n--b--"
    yield (
        "the boundary of what is around",
        multipart(b"multipart/mixed; boundary=b", b"--b\r\n" + nested + b"\r\n--b--\r\n"),
    )
    yield "a boundary that begins like that around", multipart(
        b"multipart/mixed; boundary=b", b"--b\r\nContent-Type: multipart/mixed; boundary=b1\r\n\r\n--b1\r\n" + PART + b"\r\n--b1--\r\n--b--\r\n")  # fmt: skip
    yield "the boundary around within, not ended", multipart(
        b"multipart/mixed; boundary=b", b"--b\r\nContent-Type: multipart/mixed; boundary=i\r\n\r\n--i\r\n\r\nx\r\n--b\r\n" + PART + b"\r\n--b--\r\n")  # fmt: skip
    yield "a header of more than 16 KiB", multipart(
        b"multipart/mixed; boundary=b", b"--b\r\nX: " + b"x" * 20_000 + b"\r\n" + PART + b"\r\n--b--\r\n")  # fmt: skip


def _der(tag: int, *contents: bytes) -> bytes:
    octets = b"".join(contents)
    return bytes([tag, 0x82]) + len(octets).to_bytes(2, "big") + octets


SIGNED_DATA, DATA = (b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07" + last for last in (b"\x02", b"\x01"))
OPAQUE = _der(
    0x30, SIGNED_DATA,
    _der(0xA0, _der(
        0x30, b"\x02\x01\x01", _der(0x31),
        _der(0x30, DATA, _der(0xA0, _der(0x04, b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n" + PART + b"\r\n--b--\r\n"))),
        _der(0x31),
    )),
)  # fmt: skip
"""A message within SignedData (RFC 8551, 3.5.2), which needs no key to be read."""


def signed() -> Iterator[tuple[str, bytes]]:
    """Messages with an attachment within what is signed and not encrypted."""
    encoded = base64.encodebytes(OPAQUE).replace(b"\n", b"\r\n")
    for name, kind in (
        ("as it is", b"application/pkcs7-mime; smime-type=signed-data; name=smime.p7m"),
        ("said to be encrypted", b"application/pkcs7-mime; smime-type=enveloped-data; name=smime.p7m"),
        ("x-pkcs7-mime", b"application/x-pkcs7-mime"),
        ("by its file name", b"application/octet-stream; name=smime.p7m"),
    ):
        for encoding, octets in ((b"base64", encoded), (b"quoted-printable", quopri.encodestring(OPAQUE))):
            yield f"signed, {name}, {encoding.decode()}", mail(
                b"Content-Type: " + kind, b"Content-Transfer-Encoding: " + encoding, body=octets.replace(b"\n", b"\r\n")
            )  # fmt: skip


def called() -> Iterator[tuple[str, bytes]]:
    """Messages in which a part has no file name, and is called plan.docx all the same."""
    for kind in (b"message/rfc822", b"message/global", b"message/news"):
        part = b"Content-Type: " + kind + b"\r\n\r\nSubject: =?utf-8?Q?my_pl=C3=A4n=2Edocx?=\r\n\r\ntext\r\n"
        yield (
            f"{kind.decode()} by its subject",
            multipart(b"multipart/mixed; boundary=b", b"--b\r\n\r\ntext\r\n--b\r\n" + part + b"--b--\r\n"),
        )
    for field in (b"Content-Description: plan.docx", b"Content-Location: http://x.example/a/plan.docx"):
        part = b"Content-Type: application/octet-stream\r\n" + field + b"\r\n\r\ntext\r\n"
        yield (
            f"by {field.partition(b':')[0].decode()}",
            multipart(b"multipart/mixed; boundary=b", b"--b\r\n\r\ntext\r\n--b\r\n" + part + b"--b--\r\n"),
        )


def spellings() -> Iterator[Spelling]:
    """All of them, looked for by name."""
    for name, message in signed():
        yield Spelling(name, "attachment_name", "*.docx", message)
    for name, message in called():
        yield Spelling(name, "attachment_name", "*.docx", message)
    for name, message in messages():
        yield Spelling(name, "attachment_name", "*.docx", message)
