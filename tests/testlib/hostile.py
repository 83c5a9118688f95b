"""Inputs that are made to cost their reader more than their size: one for each thing that grows.
Standard: sizes are in octets, and what a name promises fills them; messages (MAKERS) have CRLF and lines of any length.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

from relay.formats import cms
from relay.formats.cms.enveloped import MAX_PAD_KEYS

_FIELDS = "From: ann@alice.example", "To: ben@bob.example", "Date: Wed, 25 Nov 2026 10:00:00 +0000"
_ACUTE = "\u0301".encode()
_TWO_MARKS = "\u0327\u0301".encode()
"""Two that change places when they are put in order, so that each has to be moved past all others."""


def _message(header: bytes, body: bytes = b"hello\r\n", *, without: str = "") -> bytes:
    """A plain message with more header; `without` names a usual field that it has itself."""
    usual = "".join(f"{each}\r\n" for each in _FIELDS if not each.startswith(without or "-"))
    return usual.encode() + header + b"\r\n" + body


def _filled(piece: bytes, octets: int) -> bytes:
    return piece * max(1, octets // len(piece))


def _folded(piece: bytes, octets: int) -> bytes:
    """The piece over and over, a line each."""
    return _filled(b"\r\n " + piece, octets)


def _deep(octets: int) -> bytes:
    """Multiparts, each within the one before."""
    text = b""
    for number in range(octets // 90):
        text += b'Content-Type: multipart/mixed; boundary="%d"\r\n\r\n--%d\r\n' % (number, number)
    return text


def _multipart(part: bytes, octets: int, boundary: bytes = b"b", *, outer: bytes = b"") -> bytes:
    """A message of as many of these parts (fields, empty line, body) as there is room for; `outer` has more parameters."""
    delimited = b"--" + boundary + b"\r\n" + part + b"\r\n"
    kind = b'Content-Type: multipart/mixed; boundary="' + boundary + b'"' + outer + b"\r\n"
    return _message(kind, _filled(delimited, octets) + b"--" + boundary + b"--\r\n")


def _file(parameters: bytes) -> bytes:
    """A part whose two fields both end with these parameters."""
    return b"Content-Type: a/b" + parameters + b"\r\nContent-Disposition: attachment" + parameters + b"\r\n\r\nx"


def _nested_parts(octets: int, kinds: bytes = b"multipart/mixed; boundary=") -> bytes:
    """Parts nested as deep as is followed, around a body of so many octets that nearly has their delimiters."""
    names = [b"-" * 60 + b"%d" % number for number in range(8)]
    begins = b"".join(b"Content-Type: " + kinds + name + b"\r\n\r\n--" + name + b"\r\n" for name in names)
    return _message(b"", without="-")[:-9] + begins + b"\r\n" + _filled(b"\r\n--" + b"-" * 60, octets)


def _two_boundaries(octets: int) -> bytes:
    """At each depth parts between two delimiters, and two parameters that name one of them each."""
    text = _filled(b"The figures are 42 and 43.\r\n", octets // 3)
    for number in range(8):
        one, two = b"a%d" % number, b"b%d" % number
        within = b"--" + one + b"\r\n--" + two + b"\r\n" + text
        text = b"Content-Type: multipart/mixed; boundary=%b; boundary=%b\r\n\r\n" % (one, two) + within
    return _message(b"", without="-")[:-9] + text


def _everything(octets: int) -> bytes:
    """Long fields that rules ask for, and parts of each odd kind by turns."""
    words = _filled(b"=?utf-8?b?" + base64.b64encode(_TWO_MARKS * 6) + b"?=\r\n ", 15_000)
    fields = (
        b"Subject: " + words + b"x\r\n" + _filled(b"X-Secret: y" + _filled(_TWO_MARKS, 15_000) + b"\r\n", octets // 8)
    )
    kinds = (
        b';name="' + b";" * 1900 + b'"', b";name=(a" * 40 + b")" * 40, b';name="' + b'\\"' * 900 + b'"', b";name=" + b'"a' * 900,
        b";name*=utf-8''" + b"%CC%A7%CC%81" * 150, b";name=x" + _TWO_MARKS * 450, b';name="' + b"name=" * 380 + b'"',
        _parameters(1800), b';name="=?utf-8?q?' + b"=41" * 600 + b'?="', b';name="' + b"a*" * 900 + b'"',
    )  # fmt: skip
    parts = b"".join(b"--b\r\n" + _file(kind) + b"\r\n" for kind in kinds)
    return _message(
        fields + b"Content-Type: multipart/mixed; boundary=b\r\n", _filled(parts, octets - len(fields)) + b"--b--\r\n"
    )


def _parameters(octets: int) -> bytes:
    """A file name in as many pieces as there is room for (RFC 2231, 3)."""
    text, number = b"", 0
    while len(text) < octets:
        text += b";\r\n name*%d*=utf-8''%%41" % number
        number += 1
    return text


def _numbered_names(octets: int, name: bytes, number: int) -> bytes:
    """`number` parts whose distinct names begin with `name`, and a long one."""
    part = b'--b\r\nContent-Type: a/b; name="%b%06d"\r\n\r\nx\r\n'
    parts = b"".join([part % (name, count) for count in range(number)])
    return _message(b"Content-Type: multipart/mixed; boundary=b\r\n", parts.ljust(octets, b"x") + b"\r\n--b--\r\n")


def _many_readings(octets: int) -> bytes:
    """Fields that rules ask for and names, each with nearly as many readings as are looked at."""
    odd = b"=?us-ascii?q?=e4_= 4?= =?iso-8859-1?b?a-?= "
    fields = b"".join(
        b"%b: %b\r\n" % (name, text)
        for name in (b"X-Secret", b"Sensitivity", b"Subject")
        for text in (odd * 2, b"\xe4" * 120, b"=?gb2312?q?=81?= " * 20, "\ufdfa".encode() * 900)
    )
    parts = b"".join(b'--b\r\nContent-Type: a/b; name="%b%06d"\r\n\r\nx\r\n' % (odd, number) for number in range(400))
    body = parts + b"--b--\r\n"
    return _message(fields + b"Content-Type: multipart/mixed; boundary=b\r\n", body.ljust(octets - len(fields), b"x"))


Maker = Callable[[int], bytes]

MAKERS: dict[str, Maker] = {
    "marks in From": lambda n: _message(b"From: a" + _filled(_ACUTE, n) + b"@alice.example\r\n", without="From"),
    "marks in From's domain": lambda n: _message(b"From: a@b" + _filled(_TWO_MARKS, n) + b".example\r\n", without="From"),
    "marks in From's name": lambda n: _message(b"From: " + _filled(_TWO_MARKS, n) + b" <ann@alice.example>\r\n", without="From"),
    "marks in Subject": lambda n: _message(b"Subject: x" + _filled(_TWO_MARKS, n) + b"\r\n"),
    "marks in To": lambda n: _message(b"To: b" + _filled(_TWO_MARKS, n) + b"@bob.example\r\n", without="To"),
    "marks in a type": lambda n: _message(b"Content-Type: text/plain; name=x" + _filled(_TWO_MARKS, n) + b"\r\n"),
    "marks in any field": lambda n: _message(b"X-Secret: x" + _filled(_TWO_MARKS, n) + b"\r\n"),
    "marks in short fields": lambda n: _message(_filled(b"X-Secret: x" + _filled(_TWO_MARKS, 8000) + b"\r\n", n)),
    "marks in names of files": lambda n: _message(
        b"Content-Type: multipart/mixed; boundary=b\r\n",
        _filled(b"--b\r\nContent-Type: a/b; name=x" + _filled(_TWO_MARKS, 8000) + b"\r\n\r\nx\r\n", n) + b"--b--\r\n",
    ),
    "marks in encoded words": lambda n: _message(
        b"Subject: " + _filled(b"=?utf-8?b?" + base64.b64encode(_TWO_MARKS * 6) + b"?=\r\n ", n) + b"x\r\n"
    ),
    "encoded words": lambda n: _message(b"Subject:" + _folded(b"=?utf-8?q?x?=", n) + b"\r\n"),
    "empty encoded words": lambda n: _message(b"Subject: " + _filled(b"=?a?q??=", n) + b"\r\n"),
    "encoded words that do not end": lambda n: _message(b"Subject: " + _filled(b"=?a?q?", n) + b"\r\n"),
    "encoded words in From": lambda n: _message(b"From:" + _folded(b"=?utf-8?q?x?=", n) + b" <ann@alice.example>\r\n", without="From"),
    "one long encoded word": lambda n: _message(b"Subject: =?utf-8?q?" + _filled(b"=41", n) + b"?=\r\n"),
    "at signs in a Message-ID": lambda n: _message(b"Message-ID: <" + _filled(b"@", n) + b"\r\n"),
    "received": lambda n: _message(_filled(b"Received: by a; now\r\n", n)),
    "received in one": lambda n: _message(b"Received: by a" + _filled(b"(", n) + b";\r\n\t" + _filled(b" 1", n // 2) + b"\r\n"),
    "comments in From": lambda n: _message(b"From: " + _filled(b"(", n) + b"ann@alice.example\r\n", without="From"),
    "comments that end in From": lambda n: _message(b"From: " + _filled(b"(", n // 2) + _filled(b")", n // 2) + b"ann@alice.example\r\n", without="From"),
    "quotes in From": lambda n: _message(b"From: " + _filled(b'"a', n) + b" <ann@alice.example>\r\n", without="From"),
    "backslashes in From": lambda n: _message(b'From: "' + _filled(b"\\", n) + b'" <ann@alice.example>\r\n', without="From"),
    "authors": lambda n: _message(b"From: x@a.example" + _folded(b",ann@alice.example", n) + b"\r\n", without="From"),
    "other authors": lambda n: _message(
        b"From: " + b",\r\n ".join(b"a%d@d%d.example" % (number, number) for number in range(n // 24)) + b"\r\n", without="From"
    ),
    "groups in From": lambda n: _message(b"From: " + _filled(b"a:", n) + b"ann@alice.example;\r\n", without="From"),
    "routes in From": lambda n: _message(b"From: <" + _filled(b"@a,", n) + b":ann@alice.example>\r\n", without="From"),
    "From fields": lambda n: _message(_filled(b"From: ann@alice.example\r\n", n)),
    "recipients": lambda n: _message(b"To: x@b.example" + _folded(b",ben@bob.example", n) + b"\r\n", without="To"),
    "recipients in wide lines": lambda n: _message(
        b"To: x@b.example" + _folded(b"," + b"b" * 80 + b"@bob.example", n) + b"\r\n", without="To"
    ),
    "wide folds": lambda n: _message(b"X-Secret: y" + _folded(b"x" * 90, n) + b"\r\n"),
    "dates": lambda n: _message(b"Date: " + _filled(b"Wed, 25 Nov 2026 ", n) + b"\r\n", without="Date"),
    "parameters": lambda n: _message(b"Content-Type: multipart/mixed; boundary=b" + _filled(b";a=b", n) + b"\r\n"),
    "quoted parameters": lambda n: _message(b'Content-Type: multipart/mixed; boundary="' + _filled(b'\\"', n) + b'"\r\n'),
    "semicolons": lambda n: _message(b"Content-Type: application/pkcs7-mime" + _filled(b";", n) + b"\r\n"),
    "pieces of a file name": lambda n: _message(b"Content-Type: text/plain" + _parameters(n) + b"\r\n"),
    "types": lambda n: _message(_filled(b"Content-Type: application/pkcs7-mime;a;b;c;d;e;f;g;h\r\n", n)),
    "types nearly too long": lambda n: _message(
        _filled(b"Content-Type: application/pkcs7-mime" + _filled(b';a="', 60) + _filled(b"x", 8000) + b"\r\n", n)
    ),
    "boundaries": lambda n: _message(b"Content-Type: multipart/mixed; boundary=b\r\n", _filled(b"\r\n--b\r\n\r\nx", n)),
    "boundaries that are none": lambda n: _message(
        b"Content-Type: multipart/mixed; boundary=b\r\n", _filled(b"\r\n--bx", n) + b"\r\n--b--\r\n"
    ),
    "lines of dashes": lambda n: _message(b"Content-Type: multipart/mixed; boundary=-\r\n", _filled(b"\r\n---", n)),
    "parts in parts": lambda n: _message(b"", without="-")[:-9] + _deep(n),
    "messages in messages": lambda n: _message(b"Content-Type: message/rfc822\r\n", _filled(b"Content-Type: message/rfc822\r\n\r\n", n)),
    "digests": lambda n: _message(b"Content-Type: multipart/digest; boundary=b\r\n", _filled(b"\r\n--b\r\n\r\nX: y\r\n", n)),
    "parts with long headers": lambda n: _message(
        b"Content-Type: multipart/mixed; boundary=b\r\n", _filled(b"\r\n--b\r\n" + _filled(b"X: y\r\n", 16_000) + b"\r\nx", n)
    ),
    "everything that rules ask for": _everything,
    "semicolons in quotes": lambda n: _multipart(_file(b';name="' + b";" * 7900 + b'"'), n),
    "semicolons in quotes in small parts": lambda n: _multipart(_file(b';name="' + b";" * 500 + b'"'), n),
    "equal signs in quotes": lambda n: _multipart(_file(b';name="' + b"name=" * 1500 + b'"'), n),
    "escaped quotes": lambda n: _multipart(_file(b';name="' + b'\\"' * 3900 + b'"'), n),
    "quotes that do not end": lambda n: _multipart(_file(b';name="\\"' * 700), n),
    "quotes between characters": lambda n: _multipart(_file(b";name=" + b'"a' * 3900), n),
    "comments in parameters": lambda n: _multipart(_file(b";name=(a" * 90 + b")" * 90 + b';name="(a)"' * 100), n),
    "many names": lambda n: _multipart(_file(b';name="\\"\\a"(\\b)x%ff\'\'%fe' * 110), n),
    "percent signs in names": lambda n: _multipart(_file(b";name*=utf-8''" + b"%CC%A7%CC%81" * 600), n),
    "sections of names": lambda n: _multipart(_file(_parameters(7500)), n),
    "many readings": _many_readings,
    "names of one reading": lambda n: _numbered_names(n, b"plan", 245),
    "names of raw octets": lambda n: _numbered_names(n, b"pl\xe4n", 12),
    "names of encoded words": lambda n: _numbered_names(n, b"=?iso-2022-jp?b?GyRCNktIaxsoQg==?= ", 50),
    "names of clean words": lambda n: _numbered_names(n, b"=?utf-8?q?pl=C3=A4n?= ", 120),
    "names of letters of eighteen": lambda n: _numbered_names(n, "\ufdfa".encode() * 20, 120),
    "letters of eighteen": lambda n: _message(b"Subject: " + _filled("\ufdfa".encode(), min(n, 8000)) + b"\r\n", b"x" * n),
    "slow charsets": lambda n: _multipart(_file(b";name*=punycode''" + b"a-b" * 2500), n),
    "unknown charsets": lambda n: _multipart(_file(b"".join(b";name*=x%d''a" % each for each in range(90))), n),
    "small parts": lambda n: _message(
        b"Content-Type: multipart/mixed; boundary=b\r\n",
        b"".join(b"--b\r\n" + _file(b";name=a%d" % each) + b"x" * (n // 240 - 80) + b"\r\n" for each in range(240)) + b"--b--\r\n",
    ),
    "nearly boundaries": lambda n: _multipart(b"\r\n" + _filled(b"\r\n--" + b"-" * 60, n), n, b"-" * 61),
    "nearly boundaries at each depth": _nested_parts,
    "two boundaries at each depth": _two_boundaries,
    "news in news": lambda n: _message(b"Content-Type: message/news\r\n", _filled(b"Content-Type: message/news\r\n\r\n", n)),
    "short fields": lambda n: _message(_filled(b"a:\r\n", n)),
    "folds": lambda n: _message(b"X-Secret: y" + _filled(b"\r\n ", n) + b"\r\n"),
    "folds in To": lambda n: _message(b"To: y" + _filled(b"\r\n ", n) + b"\r\n", without="To"),
    "one long line": lambda n: _message(b"X-Secret: " + _filled(b"y", n) + b"\r\n"),
    "blanks": lambda n: _message(b"X-Secret:" + _filled(b" ", n) + b"x\r\n"),
    "a name without an end": lambda n: _message(_filled(b"a", n) + b"\r\n"),
    "a name and blanks": lambda n: _message(b"a" + _filled(b" ", n) + b"\r\n"),
    "blind recipients": lambda n: _message(_filled(b"Bcc: x@y.example\r\n", n)),
    "marks of ours": lambda n: _message(_filled(b"X-QuMail-Protection: aes; peer=bob\r\n", n)),
    "results": lambda n: _message(_filled(b"Authentication-Results: relay.bob.example; dkim=pass\r\n", n)),
    "results in comments": lambda n: _message(b"Authentication-Results: " + _filled(b"(", n) + b"relay.bob.example\r\n"),
    "signatures": lambda n: _message(
        _filled(b"DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; h=from:to; bh=AAAA; b=AAAA\r\n", n)
    ),
    "a signature of many tags": lambda n: _message(b"DKIM-Signature: v=1" + _filled(b"; x=y", n) + b"\r\n"),
    "a signature of many fields": lambda n: _message(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; bh=AAAA; b=AAAA; h=from" + _filled(b":to", n) + b"\r\n"
    ),
    "a signature of blanks": lambda n: _message(
        b"DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; h=from; bh=" + _filled(b"\r\n ", n) + b"; b=AAAA\r\n"
    ),
    "chains": lambda n: _message(_filled(b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=a.example; s=s; b=AAAA\r\n", n)),
    "dots": lambda n: _message(b"", _filled(b".\r\n", n)),
    "blank lines": lambda n: _message(b"", _filled(b"\r\n", n)),
    "blanks in lines": lambda n: _message(b"", _filled(b" \t", n) + b"\r\n"),
    "sealed base64": lambda n: _sealed(_filled(b"QUFB\r\n", n)),
    "sealed blanks": lambda n: _sealed(_filled(b" \r\n", n)),
    "sealed nesting": lambda n: _sealed(base64.encodebytes(_filled(b"\x30\x80", n * 3 // 4)).replace(b"\n", b"\r\n")),
    "sealed pieces": lambda n: _sealed(
        base64.encodebytes(b"\x30\x80\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17\xa0\x80\x24\x80" + _filled(b"\x04\x01A", n * 3 // 4))
        .replace(b"\n", b"\r\n")
    ),
    "sealed recipients": lambda n: _sealed(base64.encodebytes(_many_recipients(n * 3 // 4)).replace(b"\n", b"\r\n")),
    "sealed under pads": lambda n: _sealed(base64.encodebytes(_many_pads(n * 3 // 4)).replace(b"\n", b"\r\n")),
    "sealed under pads that it needs": lambda n: _sealed(
        base64.encodebytes(_many_pads(n * 3 // 4, 40)).replace(b"\n", b"\r\n")
    ),
    "sealed keys": lambda n: _sealed(base64.encodebytes(_many_keys(n * 3 // 4)).replace(b"\n", b"\r\n")),
}  # fmt: skip


def _sealed(body: bytes) -> bytes:
    return _message(
        b"Content-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\nContent-Transfer-Encoding: base64\r\n",
        body,
    )


def _der(tag: int, *content: bytes) -> bytes:
    whole = b"".join(content)
    size = len(whole)
    length = bytes([size]) if size < 128 else bytes([0x84]) + size.to_bytes(4, "big")
    return bytes([tag]) + length + whole


def _many_recipients(octets: int) -> bytes:
    """AuthEnvelopedData under as many quantum keys as there is room for, named as Bob's peer Alice names them."""
    attribute = cms.QKDKeyAttribute("2", "1", "alice-bob")
    recipients = tuple(
        cms.KEKRecipient(b"%d" % number, bytes(40), attribute) for number in range(min(octets // 150, 100))
    )
    return cms.encode_enveloped(cms.AuthEnveloped(recipients, cms.GCMContent(bytes(12)), bytes(100), bytes(16)))


def _many_pads(octets: int, for_each: int = 0) -> bytes:
    """A one-time pad of as many keys, from Alice to Bob, with so many octets of content for each key."""
    names = tuple(f"{number:036}" for number in range(min(MAX_PAD_KEYS, max(2, octets // (38 + for_each)))))
    content = cms.PadContent("2", "1", "alice-bob", 0, names)
    rest = bytes(100 + for_each * len(names))
    return cms.encode_enveloped(cms.AuthEnveloped((cms.PadRecipient(),), content, rest, bytes(16)))


def _many_keys(octets: int) -> bytes:
    return _der(0x30, _filled(_der(0x0C, b"0" * 36), octets))


def _nested(octets: int) -> bytes:
    """SEQUENCEs, each within the one before, of definite length."""
    whole = b""
    while len(whole) < octets:
        whole = _der(0x30, whole) if len(whole) < 2000 else b"\x30\x80" * ((octets - len(whole)) // 2 + 1) + whole
    return whole


_CONTENT_INFO = b"\x30\x80\x06\x0b\x2a\x86\x48\x86\xf7\x0d\x01\x09\x10\x01\x17\xa0\x80"

STRUCTURES: dict[str, Maker] = {
    "nesting without lengths": lambda n: _filled(b"\x30\x80", n),
    "nesting in a content": lambda n: _CONTENT_INFO + _filled(b"\x30\x80", n),
    "nesting with lengths": _nested,
    "pieces": lambda n: _CONTENT_INFO + b"\x24\x80" + _filled(b"\x04\x01A", n),
    "pieces of pieces": lambda n: _CONTENT_INFO + _filled(b"\x24\x80\x04\x01A", n),
    "empty pieces": lambda n: _CONTENT_INFO + b"\x24\x80" + _filled(b"\x04\x00", n),
    "ends of contents": lambda n: _filled(b"\x00\x00", n),
    "recipients": _many_recipients,
    "pads": _many_pads,
    "key names": _many_keys,
    "an object identifier": lambda n: _CONTENT_INFO[:2] + _der(0x06, b"\x2a" + _filled(b"\x81", n) + b"\x01"),
    "an integer": lambda n: _CONTENT_INFO + _der(0x30, _der(0x02, b"\x7f" + _filled(b"\xff", n))),
    "a length of many octets": lambda n: b"\x30\xff" + _filled(b"\xff", n),
    "a tag of many octets": lambda n: b"\x3f" + _filled(b"\xff", n),
    "a set": lambda n: _CONTENT_INFO + _der(0x30, b"\x02\x01\x00", _der(0x31, _filled(b"\x30\x00", n))),
    "attributes": lambda n: _CONTENT_INFO + _der(0xA1, _filled(_der(0x30, b"\x06\x01\x2a\x31\x00"), n)),
}

_KEY = b'{"key_ID": "%d", "key": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="}'

REPLIES: dict[str, Maker] = {
    "keys": lambda n: b'{"keys": [' + b",".join(_KEY % number for number in range(n // 75)) + b"]}",
    "keys of one name": lambda n: b'{"keys": [' + b",".join([_KEY % 7] * (n // 75)) + b"]}",
    "one long key": lambda n: b'{"keys": [{"key_ID": "a", "key": "' + _filled(b"QUFB", n) + b'"}]}',
    "one long name": lambda n: b'{"keys": [{"key_ID": "' + _filled(b"a", n) + b'", "key": "QUFB"}]}',
    "lists in lists": lambda n: _filled(b"[", n),
    "objects in objects": lambda n: _filled(b'{"keys":', n),
    "members": lambda n: b"{" + b",".join(b'"k%d": 1' % number for number in range(n // 12)) + b"}",
    "a number": lambda n: b'{"key_size": ' + _filled(b"9", n) + b"}",
    "a fraction": lambda n: b'{"key_size": 0.' + _filled(b"9", n) + b"}",
    "an exponent": lambda n: b'{"key_size": 1e' + _filled(b"9", n) + b"}",
    "escapes": lambda n: b'{"message": "' + _filled(b"\\u0301", n) + b'"}',
    "marks": lambda n: b'{"message": "' + _filled(_TWO_MARKS, n) + b'"}',
    "details": lambda n: b'{"message": "x", "details": [' + b",".join([b'{"key_ID": "a"}'] * (n // 16)) + b"]}",
    "no JSON": lambda n: b"<html>" + _filled(b"<p>", n),
}


def _rules(octets: int) -> bytes:
    rule = '[[when]]\nsubject_tag = ["[a{0}]", "[b{0}]"]\nheader = "X-{0}: *a*b*c*"\nlevels = ["otp"]\n\n'
    return ('levels = ["aes"]\n\n' + "".join(rule.format(number) for number in range(octets // 96))).encode()


FILES: dict[str, Maker] = {
    "rules": _rules,
    "texts": lambda n: b'levels = ["aes"]\n[[when]]\nlevels = ["otp"]\nsubject_tag = [' + _filled(b'"x", ', n) + b"]\n",
    "a long text": lambda n: b'levels = ["aes"]\n[[when]]\nlevels = ["otp"]\nsubject_tag = "' + _filled(b"x", n) + b'"\n',
    "stars": lambda n: b'levels = ["aes"]\n[[when]]\nlevels = ["otp"]\nsender = "' + _filled(b"*a", n) + b'@x"\n',
    "levels": lambda n: b"levels = [" + _filled(b'"aes", ', n) + b"]\n",
    "lists in lists": lambda n: b"levels = " + _filled(b"[", n) + b"\n",
    "tables in tables": lambda n: b"levels = " + _filled(b"{a=", n) + b"\n",
    "dots in a name": lambda n: _filled(b"a.", n) + b"a = 1\n",
    "names": lambda n: b"".join(b"k%d = 1\n" % number for number in range(n // 12)),
    "headers": lambda n: b"".join(b"[t%d]\n" % number for number in range(n // 9)),
    "dotted headers": lambda n: b"".join(b"[a.b.c.d.e%d]\n" % number for number in range(n // 17)),
    "empty rules": lambda n: b'levels = ["aes"]\n' + _filled(b"[[when]]\n", n),
    "a number": lambda n: b"until = " + _filled(b"9", n) + b"\n",
    "a date": lambda n: b"until = 1979-05-27T07:32:00." + _filled(b"9", n) + b"\n",
    "comments": lambda n: b'levels = ["aes"]\n' + _filled(b"#\n", n),
    "blanks": lambda n: b'levels = ["aes"]\n' + _filled(b" ", n) + b"\n",
    "escapes": lambda n: b'peer = "' + _filled(b"\\u0301", n) + b'"\n',
    "marks": lambda n: b'peer = "' + _filled(_TWO_MARKS, n) + b'"\n',
    "quotes": lambda n: b'peer = """' + _filled(b'"" ', n) + b'"""\n',
}  # fmt: skip
"""Policy files, and what may stand in any file of settings."""
