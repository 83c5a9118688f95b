"""Every charset that mail is written in, and every transfer encoding, right and wrong ones.
Standard: RFC 2045 6 (transfer encodings), RFC 2047 (encoded words), RFC 1468 and others (charsets).
"""

from __future__ import annotations

import base64
import binascii
import quopri
from collections.abc import Iterator

from tests.system.corpus.case import HEADER, Case, carried, mail, mime, octets, refused

TEXTS = {
    "us-ascii": "Plain text.",
    "utf-8": "Grüße aus Köln, привет, こんにちは, 😀",
    "utf-7": "Grüße, привет",
    "utf-16": "Grüße, привет",
    "utf-16le": "Grüße",
    "utf-16be": "Grüße",
    "utf-32": "Grüße",
    "iso-8859-1": "Grüße aus Köln",
    "iso-8859-2": "Zażółć gęślą jaźń",
    "iso-8859-3": "Ĝis revido, ĉiuj",
    "iso-8859-4": "Ēriks, Žanis",
    "iso-8859-5": "Привет",
    "iso-8859-6": "مرحبا",
    "iso-8859-7": "Καλημέρα",
    "iso-8859-8": "שלום",
    "iso-8859-9": "İyi günler, ağaç",
    "iso-8859-10": "Þórr, ŋ",
    "iso-8859-13": "Ačiū, paldies",
    "iso-8859-14": "Ŵyth, Ẁ",
    "iso-8859-15": "10 € für Œuvre",
    "iso-8859-16": "Bună ziua, țară",
    "windows-1250": "Zażółć",
    "windows-1251": "Здравствуйте",
    "windows-1252": "“Quotes” … 10 €",
    "windows-1253": "Καλημέρα",
    "windows-1254": "Ağaç",
    "windows-1255": "שלום",
    "windows-1256": "مرحبا",
    "windows-1257": "Ačiū",
    "windows-1258": "Đà",
    "koi8-r": "Привет, мир",
    "koi8-u": "Привіт, світе, ґ",
    "ibm437": "Grüße ╔═╗",
    "ibm850": "Grüße",
    "ibm866": "Привет",
    "macintosh": "Grüße “quotes”",
    "tis-620": "สวัสดี",
    "viscii": "Vi\xdct",
    "gb2312": "你好",
    "gbk": "你好、镕",
    "gb18030": "你好、𠀀",
    "hz-gb-2312": "你好",
    "big5": "你好",
    "big5-hkscs": "你好",
    "shift_jis": "こんにちは、表示",
    "euc-jp": "こんにちは",
    "iso-2022-jp": "こんにちは",
    "iso-2022-jp-2": "こんにちは",
    "iso-2022-kr": "안녕하세요",
    "euc-kr": "안녕하세요",
    "ks_c_5601-1987": "안녕하세요",
    "johab": "안녕하세요",
    "x-unknown": "Grüße",
    "unknown-8bit": "Grüße",
}
"""A text in each; shift_jis has 表, whose second octet is a backslash."""

CODECS = {"tis-620": "iso8859-11", "macintosh": "mac-roman", "hz-gb-2312": "hz", "ks_c_5601-1987": "euc-kr"}
"""What Python calls some of them; those that it does not know are taken for iso-8859-1."""
UNKNOWN = {"viscii", "x-unknown", "unknown-8bit"}

BROKEN = {
    "quoted-printable-in-the-middle-of-an-octet": ("quoted-printable", b"Gr=C3=B\r\n"),
    "quoted-printable-soft-break-at-the-end": ("quoted-printable", b"the end=\r\n"),
    "quoted-printable-lower-case-and-8-bit": ("quoted-printable", b"Gr=c3=bc\xc3\x9fe=20 \t\r\n"),
    "quoted-printable-says-it-has-bare-line-ends": ("quoted-printable", b"one=0Atwo=0Dthree=00\r\n"),
    "base64-without-padding": ("base64", b"R3LDvMOfZQ\r\n"),
    "base64-with-garbage-between": ("base64", b"R3LD!vM Of\tZQ==\r\nand text\r\n"),
    "base64-on-one-long-line": ("base64", base64.b64encode(bytes(6000)) + b"\r\n"),
    "base64-of-nothing": ("base64", b""),
    "an-encoding-that-nobody-knows": ("x-nobody-knows", b"\x01\x02\x7f\xff\r\n"),
    "7bit-that-is-8bit": ("7bit", "Grüße\r\n".encode()),
    "an-empty-encoding": ("", b"Text\r\n"),
    "an-encoding-with-a-comment": ("(really) base64 (yes)", b"VGV4dA==\r\n"),
}


def cases() -> Iterator[Case]:
    """Each charset as it is and in base64, each encoding for three of them, then what is wrong or strange."""
    for charset, text in TEXTS.items():
        encoded = _encoded(charset, text)
        yield _as_it_is(charset, encoded)
        word = base64.b64encode(encoded).decode()
        header = (
            f"Subject: =?{charset}?B?{word}?=\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset={charset}\r\n"
        )
        body = base64.encodebytes(encoded).replace(b"\n", b"\r\n")
        base64_header = f"{HEADER}{header}Content-Transfer-Encoding: base64\r\n\r\n"
        yield carried(f"charset-{charset}-base64", octets(base64_header) + body)
    for charset in ("utf-8", "koi8-r", "iso-2022-jp"):
        yield from _every_encoding(charset, _encoded(charset, TEXTS[charset]))
    for name, (encoding, body) in BROKEN.items():
        yield carried(name, mime("text/plain; charset=utf-8", body, encoding))
    yield carried("yenc", _yenc())
    yield carried("every-octet-but-cr-and-lf", mime("application/octet-stream", _all_octets(), "binary"))
    yield refused(
        "every-octet", mime("application/octet-stream", bytes(range(256)) + b"\r\n", "binary"), "5.6.0 .*(LF|CR)"
    )
    yield refused(
        "utf-16-with-a-line-end",
        mime("text/plain; charset=utf-16le", "a\r\nb\r\n".encode("utf-16le") + b"\r\n", "binary"),
        "5.6.0 .*(LF|CR)",
    )


def _encoded(charset: str, text: str) -> bytes:
    return text.encode("iso-8859-1" if charset in UNKNOWN else CODECS.get(charset, charset))


def _as_it_is(charset: str, encoded: bytes) -> Case:
    """The text in a body and, without any encoding, in a header field, where no charset may have NULs."""
    header = b"X-Raw: " + encoded + b"\r\nMIME-Version: 1.0\r\n"
    kind = f"Content-Type: text/plain; charset={charset}\r\nContent-Transfer-Encoding: 8bit\r\n"
    message = mail(header + kind.encode(), encoded + b"\r\n")
    if b"\0" in encoded:
        return refused(f"charset-{charset}-8bit", message, "5.6.0 .*a NUL in the header")
    return carried(f"charset-{charset}-8bit", message)


def _every_encoding(charset: str, encoded: bytes) -> Iterator[Case]:
    lines = encoded + b"\r\n.\r\n..\r\n" + encoded + b" \r\n"
    bodies = {
        "7bit": lines,
        "binary": lines,
        "quoted-printable": quopri.encodestring(lines, quotetabs=True).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"),
        "x-uuencode": _uuencoded(lines),
        "QUOTED-PRINTABLE": b"=20" * 25 + b"=\r\n" + quopri.encodestring(encoded).replace(b"\n", b"\r\n") + b"\r\n",
    }
    for encoding, body in bodies.items():
        yield carried(f"encoding-{charset}-{encoding}", mime(f'text/plain; charset="{charset}"', body, encoding))


def _uuencoded(content: bytes) -> bytes:
    pieces = [content[start : start + 45] for start in range(0, len(content), 45)]
    lines = [b"begin 644 text.txt", *(binascii.b2a_uu(piece).rstrip(b"\n") for piece in pieces), b"`", b"end", b""]
    return b"\r\n".join(lines)


def _yenc() -> bytes:
    """yEnc leaves almost every octet as it is; the four that it must not are escaped."""
    shifted = ((octet + 42) % 256 for octet in range(256))
    body = b"".join(b"=" + bytes([(o + 64) % 256]) if o in b"\0\r\n=" else bytes([o]) for o in shifted)
    return mime(
        "application/octet-stream",
        b"=ybegin line=256 size=256 name=all.bin\r\n" + body + b"\r\n=yend size=256 crc32=29058c73\r\n",
        "8bit",
    )


def _all_octets() -> bytes:
    return bytes(set(range(256)) - set(b"\r\n")) + b"\r\n"
