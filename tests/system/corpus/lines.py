"""Line ends, dots, NULs, very long lines, and messages that are almost nothing.
Standard: RFC 5321 2.3.8 (only CRLF ends a line), 4.5.2 (dots), 4.5.3.1.6 (1,000 octets a line).
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.system.corpus.case import FROM_TO, HEADER, Case, carried, mail, octets, refused

BARE_LF = "5.6.0 .*LF without CR"
BARE_CR = "5.6.0 .*CR stands alone"
BARE = {
    "bare-lf-in-the-body": (mail("", "one\ntwo\r\n"), BARE_LF),
    "bare-lf-at-the-beginning": (b"\n" + mail(""), BARE_LF),
    "bare-lf-in-the-header": (mail("X-Folded: one\n two\r\n"), BARE_LF),
    "bare-lf-everywhere": (mail("", "").replace(b"\r\n", b"\n") + b"\r\n", BARE_LF),
    "bare-lf-ends-the-header": (octets(HEADER + "\nText\r\n"), BARE_LF),
    "bare-lf-dot-bare-lf": (mail("", "one\n.\ntwo\r\n"), BARE_LF),
    "bare-lf-dot-crlf": (mail("", "one\n.\r\nMAIL FROM:<x@x.example>\r\n"), BARE_LF),
    "crlf-dot-bare-lf": (mail("", "one\r\n.\nMAIL FROM:<x@x.example>\r\n"), BARE_LF),
    "lf-cr": (mail("", "one\n\rtwo\r\n"), f"{BARE_LF}|{BARE_CR}"),
    "bare-cr-in-the-body": (mail("", "one\rtwo\r\n"), BARE_CR),
    "bare-cr-in-the-header": (mail("X-Folded: one\r two\r\n"), BARE_CR),
    "bare-cr-everywhere": (mail("", "").replace(b"\r\n", b"\r") + b"\r\n", BARE_CR),
    "bare-cr-hides-a-field": (mail("X-One: 1\rBcc: eve@bob.example\r\n"), BARE_CR),
    "bare-cr-dot-bare-cr": (mail("", "one\r.\rtwo\r\n"), BARE_CR),
    "cr-cr-lf": (mail("", "one\r\r\ntwo\r\n"), BARE_CR),
    "cr-cr-lf-dot": (mail("", "one\r\r\n.\r\r\ntwo\r\n"), BARE_CR),
    "bare-cr-last": (mail("", "the end\r"), f"{BARE_LF}|{BARE_CR}"),
    "bare-lf-after-a-large-body": (mail("", "A line of text.\r\n" * 20_000 + "and\nthis\r\n"), BARE_LF),
}

BODIES = {
    "dot-first": ".hidden\r\n",
    "dots-at-line-starts": ".one\r\n..two\r\n...three\r\n",
    "lines-of-one-dot": ".\r\n.\r\n.\r\n",
    "lines-of-dots": "..\r\n...\r\n" + "." * 998 + "\r\n",
    "dots-only-10000": ".\r\n" * 10_000,
    "dot-last": "the end\r\n.\r\n",
    "dot-and-blank": ". \r\n.\t\r\n",
    "end-of-data-as-text": "\r\n.\r\nQUIT\r\n\r\n.\r\n",
    "nuls": "a\0b\0\0\r\n\0\r\n",
    "nul-before-a-dot": "\0.\r\n.\0\r\n",
    "nul-only": "\0\r\n",
    "control-characters": "\x01\x07\x08\x0b\x0c\x1b[31m\x1a\x7f\r\n",
    "unicode-line-ends": "one\x85two\r\n",
    "line-of-998": "x" * 998 + "\r\n",
    "line-of-999": "x" * 999 + "\r\n",
    "line-of-1000": "x" * 1000 + "\r\n",
    "line-of-2048": "x" * 2048 + "\r\n",
    "line-of-65536": "x" * 65536 + "\r\n",
    "line-of-100-kb": "x" * 100_000 + "\r\n",
    "line-of-100-kb-of-dots": "." * 100_000 + "\r\n",
    "blanks-at-line-ends": "one \r\ntwo\t\r\n   \r\n",
    "blanks-only": " \r\n\t\r\n",
    "empty-lines-only": "\r\n" * 100,
    "empty-lines-at-the-end": "Text\r\n" + "\r\n" * 50,
    "from-at-a-line-start": "From here on\r\n>From there\r\n>>From\r\n",
    "a-signature-line": "Text\r\n-- \r\nAnn\r\n",
    "dashes-like-a-boundary": "--\r\n----\r\n--b--\r\n",
    "looks-like-a-header": "Bcc: this is text\r\nReturn-Path: <x>\r\n\r\nResent-Bcc: too\r\n",
    "ends-in-a-dot-and-no-text": "\r\n.",
    "separators-of-other-systems": "one\x1etwo\x1fthree\r\n",
    "200-kb-of-short-lines": "0123456789\r\n" * 17_000,
}


def cases() -> Iterator[Case]:
    """What must be refused, what must be carried, and what is hardly a message."""
    for name, (message, why) in BARE.items():
        yield refused(name, message, why)
    for name, body in BODIES.items():
        message = mail("", body)
        yield carried(name, message, arrives=message if message.endswith(b"\r\n") else message + b"\r\n")
    yield carried("utf-8-line-separators", mail("", "one\u2028two\u2029three\u0085four\r\n".encode()))
    yield from _hardly_a_message()


def _hardly_a_message() -> Iterator[Case]:
    yield carried("empty", "")
    yield carried("one-empty-line", "\r\n")
    yield carried("two-empty-lines", "\r\n\r\n")
    yield carried("one-dot", ".", arrives=".\r\n")
    yield carried("one-line-of-a-dot", ".\r\n")
    yield carried("one-octet", "x", arrives="x\r\n")
    yield refused("one-nul", "\0", "5.6.0 .*a NUL in the header")
    yield carried("no-header-one-line", "Hello Ben\r\n")
    yield carried("no-header-but-text", "Hello Ben\r\n\r\nthis is text\r\n")
    yield carried("no-header-empty-line-first", "\r\nHello Ben\r\n")
    yield carried("body-only-that-looks-like-a-header", "\r\nBcc: this is text\r\n")
    yield carried("header-only", HEADER)
    yield carried("header-only-without-the-last-line-end", HEADER[:-2], arrives=HEADER)
    yield carried("header-and-empty-line-only", HEADER + "\r\n")
    yield carried("no-final-line-end", mail("", "the end"), arrives=mail("", "the end\r\n"))
    yield carried("one-field", "Subject: alone\r\n\r\nText\r\n")
    yield refused("a-blank-in-the-first-line", " \r\n" + FROM_TO + "\r\nText\r\n", "5.6.0 .*begins with a blank")
    yield carried("a-tab-in-the-line-after-the-header", FROM_TO + "\t\r\nText\r\n")
