"""MIME structure: parts in parts, boundaries that deceive, messages in messages, and what gateways treat specially.
Standard: RFC 2046 (multipart, message), RFC 3462 to 3464 (reports), RFC 5545 and 6047 (calendar), RFC 5147 and others.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator

from tests.system.corpus.case import Case, carried, mail, mime

PART = "Content-Type: text/plain\r\n\r\nText\r\n"
HTML = "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n<p>Gr\xc3\xbc\xc3\x9fe</p>\r\n"


def multipart(subtype: str, boundary: str, parts: list[str], *, before: str = "", after: str = "--\r\n") -> bytes:
    """A multipart message; `before` is the preamble, `after` what follows the last delimiter."""
    body = before + "".join(f"--{boundary}\r\n{part}" for part in parts) + f"--{boundary}{after}"
    return mail(f'MIME-Version: 1.0\r\nContent-Type: multipart/{subtype}; boundary="{boundary}"\r\n', body)


BOUNDARIES = {
    "blanks-in-it": 'multipart/mixed; boundary="a b  c"\r\n\r\n--a b  c\r\n{part}--a b  c--\r\n',
    "specials-in-it": "multipart/mixed; boundary=\"'()+_,-./:=?\"\r\n\r\n--'()+_,-./:=?\r\n{part}--'()+_,-./:=?--\r\n",
    "quotes-in-it": 'multipart/mixed; boundary="a\\"b"\r\n\r\n--a"b\r\n{part}--a"b--\r\n',
    "no-quotes-needed": "multipart/mixed; boundary=a=b\r\n\r\n--a=b\r\n{part}--a=b--\r\n",
    "of-70": f"multipart/mixed; boundary={'b' * 70}\r\n\r\n--{'b' * 70}\r\n{{part}}--{'b' * 70}--\r\n",
    "of-500": f"multipart/mixed; boundary={'b' * 500}\r\n\r\n--{'b' * 500}\r\n{{part}}--{'b' * 500}--\r\n",
    "of-one-dash": "multipart/mixed; boundary=-\r\n\r\n---\r\n{part}-----\r\n",
    "empty": 'multipart/mixed; boundary=""\r\n\r\n--\r\n{part}----\r\n',
    "missing": "multipart/mixed\r\n\r\n--b\r\n{part}--b--\r\n",
    "given-twice": "multipart/mixed; boundary=a; boundary=b\r\n\r\n--a\r\n{part}--a--\r\n--b\r\n{part}--b--\r\n",
    "in-pieces": "multipart/mixed; boundary*0=a; boundary*1=b\r\n\r\n--ab\r\n{part}--ab--\r\n",
    "in-a-charset": "multipart/mixed; boundary*=utf-8''a%20b\r\n\r\n--a b\r\n{part}--a b--\r\n",
    "8-bit": "multipart/mixed; boundary=\xc3\xbc\r\n\r\n--\xc3\xbc\r\n{part}--\xc3\xbc--\r\n",
    "followed-by-blanks": "multipart/mixed; boundary=b\r\n\r\n--b  \t\r\n{part}--b-- \t\r\n",
    "beginning-of-another": "multipart/mixed; boundary=b\r\n\r\n--b\r\n{part}--bb\r\n--b \r\n--b--\r\n",
    "used-but-never-ended": "multipart/mixed; boundary=b\r\n\r\n--b\r\n{part}",
    "never-used": "multipart/mixed; boundary=b\r\n\r\nText, and no part\r\n",
    "ended-at-once": "multipart/mixed; boundary=b\r\n\r\n--b--\r\n",
    "ended-twice": "multipart/mixed; boundary=b\r\n\r\n--b\r\n{part}--b--\r\n--b\r\n{part}--b--\r\n",
    "after-the-end": "multipart/mixed; boundary=b\r\n\r\n--b--\r\n--b\r\n{part}",
    "in-a-folded-field": 'multipart/mixed;\r\n\tboundary=\r\n\t"b"\r\n\r\n--b\r\n{part}--b--\r\n',
    "in-a-comment": "multipart/mixed (boundary=x); boundary=b (not c)\r\n\r\n--b\r\n{part}--b--\r\n",
    "part-without-a-header": "multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nText\r\n--b--\r\n",
    "part-without-a-body": "multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n--b--\r\n",
    "part-of-nothing": "multipart/mixed; boundary=b\r\n\r\n--b\r\n--b\r\n--b--\r\n",
    "same-inside": (
        "multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
        "--b\r\n{part}--b--\r\n--b--\r\n"
    ),
    "line-ending-in-it": "multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nText--b\r\n--b--\r\n",
}
"""What follows `Content-Type: `; {part} is a part with its header."""

SPECIAL = {
    "message-partial": (
        'message/partial; id="1@alice.example"; number=1; total=3',
        "From: x@y\r\n\r\nthe first piece\r\n",
    ),
    "message-external-body": (
        'message/external-body; access-type=URL; URL="https://files.example/x"',
        "Content-Type: image/png\r\n\r\nphantom body\r\n",
    ),
    "message-external-body-file": (
        'message/external-body; access-type=local-file; name="/etc/passwd"',
        "Content-Type: text/plain\r\n\r\n",
    ),
    "message-rfc822": ("message/rfc822", "From: x@y\r\nBcc: in the inner message stays\r\n\r\nText\r\n"),
    "message-rfc822-base64": ("message/rfc822\r\nX-Note: forbidden", "RnJvbTogeEB5DQoNClRleHQNCg==\r\n"),
    "message-global": ("message/global", "From: j\xc3\xbcrgen@alice.example\r\nSubject: \xc3\xbc\r\n\r\nText\r\n"),
    "calendar-invitation": (
        "text/calendar; method=REQUEST; charset=utf-8",
        "BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\nBEGIN:VEVENT\r\nSUMMARY:a\r\n  line\r\nEND:VEVENT\r\nEND:VCALENDAR\r\n",
    ),
    "format-flowed": (
        "text/plain; format=flowed; delsp=yes",
        "a line that goes \r\non here \r\n> quoted \r\n-- \r\nx\r\n",
    ),
    "apple-file": ("multipart/appledouble; boundary=b", f"--b\r\n{PART}--b\r\n{PART}--b--\r\n"),
    "tnef": (
        'application/ms-tnef; name="winmail.dat"\r\nX-MS-Has-Attach: yes',
        base64.encodebytes(bytes.fromhex("789f3e2200000006900800040000000000010001")).decode().replace("\n", "\r\n"),
    ),
    "uuencoded-in-text": ("text/plain", "Hello\r\n\r\nbegin 644 x.txt\r\n#0V%T\r\n`\r\nend\r\n\r\nBye\r\n"),
    "html-with-a-script": ("text/html", "<script>alert(1)</script><!-- --b-- -->\r\n"),
    "type-that-nobody-knows": ("x-a/x-b; x-c=x-d", "?\r\n"),
}


def cases() -> Iterator[Case]:
    """Parts and boundaries, messages in messages, reports, then deep, wide and large ones."""
    for name, text in BOUNDARIES.items():
        head, _, body = text.partition("\r\n\r\n")
        yield carried(
            f"boundary-{name}", mail(f"MIME-Version: 1.0\r\nContent-Type: {head}\r\n", body.replace("{part}", PART))
        )
    for name, (kind, body) in SPECIAL.items():
        yield carried(f"type-{name}", mime(kind, body, "8bit"))
    yield carried("multipart-alternative", multipart("alternative", "b", [PART, HTML]))
    yield carried("multipart-related", multipart("related", "b", [HTML, PART]))
    yield carried("multipart-digest", multipart("digest", "b", ["\r\nFrom: x@y\r\n\r\nText\r\n"]))
    yield carried("multipart-parallel-unknown", multipart("x-unknown", "b", [PART]))
    yield carried(
        "multipart-preamble-and-epilogue",
        multipart("mixed", "b", [PART], before="Before\r\n.\r\n", after="--\r\nAfter\r\n.\r\n"),
    )
    yield carried(
        "multipart-end-without-line-end",
        multipart("mixed", "b", [PART], after="--"),
        arrives=multipart("mixed", "b", [PART]),
    )
    yield carried("multipart-in-base64", mime("multipart/mixed; boundary=b", "LS1iDQoNCngNCi0tYi0tDQo=\r\n", "base64"))
    yield carried("multipart-of-1000-parts", multipart("mixed", "b", [PART] * 1000))
    yield carried("multipart-100-deep", _deep(100))
    yield carried("multipart-2000-deep", _deep(2000))
    yield carried("message-rfc822-50-deep", _messages(50))
    yield carried(
        "delivery-status", _report("delivery-status", "Reporting-MTA: dns; bob.example\r\n\r\nAction: failed\r\n")
    )
    yield carried(
        "disposition-notification", _report("disposition-notification", "Disposition: manual-action/x; displayed\r\n")
    )
    yield carried("feedback-report", _report("feedback-report", "Feedback-Type: abuse\r\nVersion: 1\r\n"))
    yield carried("attachment-of-1-mb", _attachment(750_000))


def _deep(levels: int) -> bytes:
    """Multiparts in multiparts, each the only part of the one around it."""
    heads = "".join(f"--b{n}\r\nContent-Type: multipart/mixed; boundary=b{n + 1}\r\n\r\n" for n in range(levels - 1))
    ends = "".join(f"--b{n}--\r\n" for n in reversed(range(levels)))
    body = f"{heads}--b{levels - 1}\r\n{PART}{ends}"
    return mail("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b0\r\n", body)


def _messages(levels: int) -> bytes:
    """Messages in messages."""
    return mail(
        "MIME-Version: 1.0\r\nContent-Type: message/rfc822\r\n", "Content-Type: message/rfc822\r\n\r\n" * levels + PART
    )


def _report(kind: str, fields: str) -> bytes:
    status = f"Content-Type: message/{kind}\r\n\r\n{fields}\r\n"
    original = "Content-Type: message/rfc822\r\n\r\nFrom: ann@alice.example\r\nSubject: the original\r\n\r\nText\r\n"
    return multipart(f"report; report-type={kind}", "b", [PART, status, original])


def _attachment(size: int) -> bytes:
    """Random octets; the seed makes them the same each time."""
    data = base64.encodebytes(random.Random(6).randbytes(size)).replace(b"\n", b"\r\n")
    name = "=?utf-8?Q?Gr=C3=BC=C3=9Fe?=.bin"
    head = f'Content-Type: application/octet-stream; name="{name}"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
    return multipart("mixed", "b", [PART, head + data.decode()])
