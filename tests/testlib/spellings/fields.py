"""Ways to write the value of a header field that a rule names, whole or with a star.
Standard: RFC 5322 (2.2.3), RFC 2047; a rule's pattern covers the whole value.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.testlib.spellings.spelling import Spelling, b, b64, mail, q

VALUES = {
    "as it is": b" confidential",
    "without a blank": b"confidential",
    "in capitals": b" CONFIDENTIAL",
    "blanks around": b"   confidential   ",
    "tabs around": b"\tconfidential\t",
    "folded": b"\r\n confidential",
    "folded behind it": b" confidential\r\n ",
    "Q": b" " + q("confidential", every=True),
    "B": b" " + b("confidential"),
    "two words": b" " + q("confi") + b" " + q("dential"),
    "B, blanks around inside": b" " + b("  confidential  "),
    "an equals sign at the end": b" =?utf-8?Q?confidential=?=",
    "a soft break at the end": b" =?utf-8?Q?confidential= ?=",
    "half an escape at the end": b" =?utf-8?Q?confidential?= =?utf-8?Q??=",
    "a NUL at the end": b" " + q(b"confidential\0", every=True),
    "a NUL and more": b" " + q(b"confidential\0plan", every=True),
    "a NUL and more, B": b" " + b(b"confidential\0plan"),
    "a line's end and nothing": b" " + q("confidential\r\n", every=True),
    "a control character": b" confi\x07dential",
    "a no-break space behind": "\u00a0confidential\u00a0".encode(),
    "a zero width space behind": "confidential\u200b".encode(),
    "a byte order mark before": "\ufeffconfidential".encode(),
    "a byte order mark before, B": b(b"\xef\xbb\xbfconfidential"),
    "full-width letters": "\uff43\uff4f\uff4efidential".encode(),
    "a ligature": "con\ufb01dential".encode(),
    "octets that are no UTF-8": b" confi\xffdential",
    "octets that are no UTF-8, Q": b" =?utf-8?Q?confi=FFdential?=",
    "B, what follows padding is no more": b" =?utf-8?B?" + b64("confidentia") + b64("l") + b"?=",
    "B, what follows whole padding": b" =?utf-8?B?" + b64(b"confidential").rstrip(b"=") + b"====" + b64("plan") + b"?=",
    "B, characters behind padding": b" =?utf-8?B?" + b64("confidential") + b"=====A?=",
    "B, one character more than four": b" =?utf-8?B?" + b64("confidential") + b"A?=",
    "B, two characters more than four": b" =?utf-8?B?" + b64("confidential") + b"eA?=",
    "B, three characters more than four": b" =?utf-8?B?" + b64("confidential") + b"eHg?=",
    "an unknown charset": b" " + q("confidential", "x-none", every=True),
    "an unknown charset and raw octets": b" =?x-none?Q?confidential?=",
}

STARRED = {
    "as it is": b"Level: top secret",
    "behind a word": b"Level: =?utf-8?Q?=C3=A4?= secret!",
    "inside a word": b"Level: " + b("TOP SECRET"),
    "folded in the middle": b"Level: top\r\n secret",
    "folded name": b"Level\r\n : top secret",
    "second field of the name": b"Level: none\r\nLevel: very secret",
    "raw octets beside": b"Level: \xe4\xf6 secret",
    "zero width joiners": "Level: se\u200dc\u200dret".encode(),
    "inside a word with blanks": b"Level: =?utf-8?Q?very secret level?=",
    "cut": b"Level: " + q("very sec") + b"\r\n " + q("ret level"),
}


def spellings() -> Iterator[Spelling]:
    """All of them."""
    for name, value in VALUES.items():
        yield Spelling(name, "header", "X-Class: confidential", mail(b"X-Class:" + value))
    for name, field in STARRED.items():
        yield Spelling(f"starred: {name}", "header", "Level: *secret*", mail(field))
    for name, field in {
        "there": b"X-Secret: yes", "empty": b"X-Secret:", "empty and folded": b"X-Secret: \r\n ", "in capitals": b"X-SECRET: 1",
        "a blank before the colon": b"X-Secret : 1", "folded before the colon": b"X-Secret\r\n\t: 1",
        "a no-break space before the colon": b"X-Secret\xa0: 1", "a line of no field before": b"no field\r\nX-Secret: 1",
    }.items():  # fmt: skip
        yield Spelling(f"is there: {name}", "header", "X-Secret", mail(b"From: a@b.example", field))
