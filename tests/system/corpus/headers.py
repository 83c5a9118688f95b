"""Headers: missing, twice, folded in every way, obsolete, huge, in eight bits, with addresses nobody should see.
Standard: RFC 5322 2.2 (fields and folding), 3.6 (how often each), 4.5 (obsolete ones); RFC 6532 (UTF-8).
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.system.corpus.case import FROM_TO, HEADER, REST, Case, carried, mail, octets, refused

FIELDS = {
    "utf-8": "Subject: Grüße 😀\r\nX-Grüße: ja\r\n".encode(),
    "utf-8-from": "From: Jürgen <jürgen@alice.example>\r\n".encode(),
    "8-bit-in-no-charset": b"Subject: \xff\xfe\x80\x81\r\nTo: \xe4\xf6\xfc <x@bob.example>\r\n",
    "zero-width-subject": "Subject: in\u200bvi\u200dsi\ufeffble\r\n".encode(),
    "right-to-left-subject": "Subject: \u202egpj.exe\u202c \u2066x\u2069\r\n".encode(),
    "encoded-words-split-in-a-character": b"Subject: =?utf-8?B?w?=\r\n =?utf-8?B?w7w=?=\r\n",
    "encoded-words-that-lie": b"Subject: =?utf-8?B?!!!!?= =?nope?Q?=ZZ?= =?utf-8?X?x?= =?=?=?=\r\n",
    "encoded-word-of-a-line-end": b"Subject: =?utf-8?Q?one=0D=0ABcc:_eve@bob.example?=\r\n",
    "encoded-word-of-100-kb": b"Subject: =?utf-8?Q?" + b"=C3=BC" * 16_000 + b"?=\r\n",
    "empty-subject": b"Subject:\r\n",
    "blank-subject": b"Subject: \t \r\n",
    "no-blank-after-the-colon": b"X-One:1\r\nX-Two::2\r\n",
    "blanks-before-the-colon": b"X-One : 1\r\nX-Two\t:2\r\nX-Three \t :3\r\n",
    "a-line-without-colon": b"this is no field\r\nX-After: it\r\n",
    "a-line-without-name": b": no name\r\n:\r\n",
    "a-line-of-blanks-and-colon": b"X-One: 1\r\n : folded\r\n",
    "names-of-odd-characters": b'!#$%&\'*+-/=?^_`{|}~: odd\r\n(comment): odd\r\n"quoted": odd\r\n',
    "names-in-other-cases": b"mime-version: 1.0\r\nCONTENT-TYPE: TEXT/PLAIN\r\ncOnTeNt-TrAnSfEr-EnCoDiNg: 8BIT\r\n",
    "folded-with-tabs": b"X-Folded:\r\n\tone\r\n\ttwo\r\n\t\tthree\r\n",
    "folded-with-blanks-only": b"X-Folded: one\r\n  \r\n \r\n\t\r\n two\r\n",
    "folded-after-every-word": b"X-Folded:" + b"\r\n word" * 500 + b"\r\n",
    "folded-in-a-quoted-string": b'X-Folded: "one\r\n two"\r\n',
    "folded-to-998-octets": b"X-Folded:" + (b"\r\n " + b"x" * 997) * 20 + b"\r\n",
    "a-field-of-998": b"X-Long: " + b"x" * 990 + b"\r\n",
    "a-field-of-1000": b"X-Long: " + b"x" * 992 + b"\r\n",
    "a-name-of-2000": b"X-" + b"n" * 2000 + b": x\r\n",
    "comments-nested-1000-deep": b"X-Comment: " + b"(" * 1000 + b")" * 1000 + b"\r\n",
    "1000-recipients": b"Cc: " + b",\r\n ".join(b"c%d@bob.example" % n for n in range(1000)) + b"\r\n",
    "groups-and-no-recipients": b"Cc: undisclosed-recipients:;, friends: a@bob.example, b@bob.example;\r\n",
    "two-subjects": b"Subject: one\r\nSubject: two\r\n",
    "two-froms": b"From: mallory@elsewhere.example\r\n",
    "two-tos": b"To: carol@bob.example\r\nTo: dave@bob.example\r\n",
    "two-dates": b"Date: Thu, 1 Jan 1970 00:00:00 +0000\r\nDate: yesterday\r\n",
    "two-message-ids": b"Message-ID: <2@alice.example>\r\nMessage-ID: none\r\n",
    "two-content-types": b"Content-Type: text/plain\r\nContent-Type: text/html\r\n",
    "two-content-types-one-sealed": (
        b"Content-Type: text/plain\r\nContent-Type: application/pkcs7-mime; smime-type=authEnveloped-data\r\n"
    ),
    "two-transfer-encodings": b"Content-Transfer-Encoding: base64\r\nContent-Transfer-Encoding: 8bit\r\n",
    "two-mime-versions": b"MIME-Version: 1.0\r\nMIME-Version: 2.0 (no)\r\n",
    "sender-and-reply-to": b"Sender: s@alice.example\r\nReply-To: r@alice.example, r2@alice.example\r\n",
    "several-authors": b"From: a@alice.example, B <b@alice.example>\r\nSender: a@alice.example\r\n",
    "resent": (
        b"Resent-From: r@alice.example\r\nResent-To: t@bob.example\r\nResent-Date: Wed, 25 Nov 2026 11:00:00 +0000\r\n"
        b"Resent-Message-ID: <r@alice.example>\r\nResent-Cc: c@bob.example\r\n"
    ),
    "list-fields": b"List-Id: <l.alice.example>\r\nList-Unsubscribe: <mailto:u@alice.example>\r\nPrecedence: bulk\r\n",
    "auto-submitted": b"Auto-Submitted: auto-replied\r\nX-Auto-Response-Suppress: All\r\n",
    "49-received": b"Received: from a by b; Wed, 25 Nov 2026 10:00:00 +0000\r\n" * 49,
    "our-mark-by-somebody-else": b"X-Other-Protection: otp; peer=alice; author=peer\r\n",
    "obsolete-addresses": b"Cc: @relay.example,@other.example:c@bob.example, ,, d @ bob . example, (c) e@bob.example\r\n",
    "obsolete-date": b"Resent-Date: Wed , 25 Nov 26 10 : 00 (noon) GMT\r\n",
    "obsolete-phrase": b'Cc: Ben B. Example <c@bob.example>, "a\\"b"@bob.example\r\n',
    "a-domain-literal": b"Cc: c@[192.0.2.1], d@[IPv6:2001:db8::1]\r\n",
    "a-header-in-the-header": b"X-Spam: yes\r\n\tBcc: folded, so no field\r\n",
    "unix-from-in-the-middle": b"From ann@alice.example Wed Nov 25 10:00:00 2026\r\nX-After: it\r\n",
    "unix-from-quoted": b">From ann@alice.example Wed Nov 25 10:00:00 2026\r\n",
    "content-length": b"Content-Length: 1\r\nLines: 1\r\nStatus: RO\r\nX-UIDL: 1\r\n",
    "content-type-of-8192": b"Content-Type: text/plain; x=" + b"y" * 8192 + b"\r\n",
    "content-type-of-nothing": b"Content-Type:\r\n",
    "content-type-of-semicolons": b'Content-Type: ;;;;;=;==;"\r\n',
    "content-type-unfinished-quotes": b'Content-Type: text/plain; charset="utf-8\r\n',
    "content-type-continued-parameters": (
        b"Content-Type: application/pdf; name*0*=utf-8'de'Gr%C3%BC; name*1=\"sse\"; name*99999=x; name*=x'y\r\n"
    ),
    "smime-type-in-pieces": b"Content-Type: application/pkcs7-mime; smime-type*0=auth; smime-type*1*=Enveloped%2Ddata\r\n",
    "smime-type-in-a-charset": b"Content-Type: application/pkcs7-mime; smime-type*=nope'en'authEnveloped-data\r\n",
    "smime-type-numbered-oddly": b"Content-Type: application/pkcs7-mime; smime-type*x*=a; smime-type*-1=b; smime-type**=c\r\n",
    "disposition-with-a-path": b'Content-Disposition: attachment; filename="../../etc/passwd"\r\n',
}
"""Lines of header that stand between Ann's header and the empty line, and travel unchanged."""

HIDDEN = {
    "bcc": ("Bcc: eve@bob.example\r\n", ""),
    "bcc-twice": ("Bcc: eve@bob.example\r\nX-Between: stays\r\nbCC: mallory@bob.example\r\n", "X-Between: stays\r\n"),
    "bcc-empty": ("Bcc:\r\n", ""),
    "bcc-folded": ("Bcc: eve@bob.example,\r\n mallory@bob.example\r\nX-Next: stays\r\n", "X-Next: stays\r\n"),
    "bcc-folded-before-the-address": ("Bcc:\r\n\teve@bob.example\r\n", ""),
    "bcc-folded-over-blank-lines": ("Bcc:\r\n \r\n\t\r\n eve@bob.example\r\n", ""),
    "bcc-with-a-blank-before-the-colon": ("BCC \t: eve@bob.example\r\n", ""),
    "bcc-of-1000": ("Bcc: " + ",\r\n ".join(f"b{n}@bob.example" for n in range(1000)) + "\r\n", ""),
    "bcc-after-a-line-without-colon": ("no field\r\nBcc: eve@bob.example\r\n", "no field\r\n"),
    "bcc-last-without-a-body": ("X-First: stays\r\nBcc: eve@bob.example\r\n", "X-First: stays\r\n"),
    "resent-bcc": (
        "Resent-To: t@bob.example\r\nResent-Bcc: eve@bob.example,\r\n\tx@y\r\n",
        "Resent-To: t@bob.example\r\n",
    ),
    "return-path": ("Return-Path: <bounces@alice.example>\r\n", ""),
    "return-path-twice": ("Return-Path: <>\r\nX-Between: stays\r\nReturn-path:<x@y>\r\n", "X-Between: stays\r\n"),
    "bcc-like-names": ("X-Bcc: stays\r\nBcc-To: stays\r\nBcc: goes\r\n", "X-Bcc: stays\r\nBcc-To: stays\r\n"),
}
"""What is left out of the original: Bcc, Resent-Bcc and Return-Path, and nothing beside them."""

MISSING = {
    "no-from": f"To: Ben <ben@bob.example>\r\n{REST}",
    "no-to": f"From: Ann <ann@alice.example>\r\n{REST}",
    "no-date-and-no-message-id": FROM_TO,
    "only-unknown-fields": "X-One: 1\r\nX-Two: 2\r\n",
    "unix-from-first": f"From ann@alice.example Wed Nov 25 10:00:00 2026\r\n{HEADER}",
    "unix-from-quoted-first": f">From ann@alice.example Wed Nov 25 10:00:00 2026\r\n{HEADER}",
    "from-in-the-last-place": f"{REST}{FROM_TO}",
    "empty-from": f"From:\r\nTo:\r\n{REST}",
    "null-from": f"From: <>\r\nTo: undisclosed-recipients:;\r\n{REST}",
}
"""Whole headers."""


NULS = {
    "nul-in-a-field": b"X-Value: a\0b\r\n",
    "nul-in-a-folded-line": b"X-Value: a\r\n b\0\r\n",
    "nul-in-a-name": b"X-\0Name: c\r\n",
    "nul-alone-in-a-line": b"\0\r\n",
}
"""Mail servers cut a field at a NUL, and take a line whose name has one for the beginning of the body."""


def cases() -> Iterator[Case]:
    """The tables above, then what is large."""
    for name, lines in FIELDS.items():
        yield carried(f"header-{name}", mail(lines))
    for name, (hidden, stay) in HIDDEN.items():
        body = "" if name.endswith("without-a-body") else "Bcc: in the body stays\r\n"
        yield carried(f"hidden-{name}", mail(hidden, body), arrives=mail(stay, body))
    for name, header in MISSING.items():
        yield carried(f"header-{name}", octets(header) + b"\r\nText\r\n")
    for name, lines in NULS.items():
        yield refused(f"header-{name}", mail(lines), "5.6.0 .*a NUL in the header")
    yield refused(
        "header-folded-first-line", f" folded to nothing\r\n{HEADER}\r\nText\r\n", "5.6.0 .*begins with a blank"
    )
    yield carried("header-of-1-mb", mail(b"".join(b"X-Filler-%d: %s\r\n" % (n, b"x" * 980) for n in range(1050))))
    yield carried("header-of-one-line-of-1-mb", mail(b"X-Filler: " + b"x" * 1_048_576 + b"\r\n"))
    yield carried("header-of-15000-lines", mail(b"X-Line: 1\r\n" * 15_000))
    yield refused("header-of-100000-fields", mail(b"X-Line: 1\r\n" * 100_000), "5.6.0 .*more than 20000 lines")
    yield refused(
        "header-of-100000-folds", mail(b"X-Line: 1\r\n" + b" 1\r\n" * 100_000), "5.6.0 .*more than 20000 lines"
    )
    yield refused(
        "header-of-3-mb", mail((b"X-Filler: " + b"x" * 30_000 + b"\r\n") * 100), "5.6.0 .*longer than 2097152"
    )
    yield refused("header-that-never-ends", b"X-Filler: " + b"x" * 3_000_000 + b"\r\n", "5.6.0 .*longer than 2097152")
    received = b"Received: from a by b; Wed, 25 Nov 2026 10:00:00 +0000\r\n"
    yield refused("received-1000-times", received * 1000 + mail(""), "5.4.6 .*loop")
