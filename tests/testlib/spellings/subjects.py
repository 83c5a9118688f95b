"""Ways to write a tag into a Subject, one by one: encoded words whole, broken and cut, folding, invisible characters.
Standard: RFC 5322 (2.2.3, 3.6.5), RFC 2047, RFC 2231 (5); what mail programs make of the rest.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from tests.testlib.spellings.spelling import Spelling, b, b64, b64url, mail, q

TAG = "[secret]"

PLAIN = {
    "as it is": b"[secret] plan",
    "in capitals": b"[SECRET] plan",
    "in mixed case": b"[SeCrEt] plan",
    "at the end": b"plan [secret]",
    "behind Re:": b"Re: AW: [secret] plan",
    "without blanks around": b"plan[secret]plan",
    "folded before it": b"plan\r\n [secret]",
    "folded behind it": b"[secret]\r\n\tplan",
    "on a line of its own": b"\r\n [secret]\r\n plan",
    "behind an empty line that is folded": b"plan\r\n \r\n [secret]",
    "in quotation marks": b'"[secret]" plan',
    "in a comment": b"plan ([secret])",
    "behind an encoded word": b"=?utf-8?q?pl=C3=A4ne?= [secret]",
    "before an encoded word": b"[secret] =?utf-8?q?pl=C3=A4ne?=",
    "between encoded words": b"=?utf-8?q?pl=C3=A4ne?= [secret] =?utf-8?q?pl=C3=A4ne?=",
    "behind raw Latin-1": b"pl\xe4ne [secret]",
    "behind raw UTF-8": "pläne [secret]".encode(),
    "behind octets of no character set": b"\xff\xfe [secret]",
}

WORDS = {
    "Q": q(TAG),
    "Q, every octet": q(TAG, every=True),
    "in an encoding that nobody knows": b"=?utf-8?X?[secret]?=",
    "Q, a small q": b"=?utf-8?q?[secret]?=",
    "Q, small hexadecimal digits": b"=?utf-8?q?=5bsecret=5d?=",
    "Q, one letter encoded": b"=?utf-8?q?[se=63ret]?=",
    "B": b(TAG),
    "B, a small b": b(TAG).replace(b"?B?", b"?b?"),
    "charset in capitals": q(TAG, "UTF-8"),
    "with a language": b"=?utf-8*en?Q?[secret]?=",
    "with a language and region, B": b"=?utf-8*de-DE?B?" + b64(TAG) + b"?=",
    "with an empty language": b"=?utf-8*?Q?[secret]?=",
    "in quotes": b'"' + q(TAG) + b'"',
    "in parentheses": b"(" + q(TAG) + b")",
    "against the text before": b"Re:" + q(TAG, every=True),
    "against the text behind": q(TAG, every=True) + b"plan",
    "against text on both sides, B": b"x" + b(TAG) + b"x",
    "longer than 75 octets": q("plan " * 40 + TAG, every=True),
    "longer than 75 octets, B": b("plan " * 40 + TAG),
    "blanks inside": b"=?utf-8?Q?my [secret] plan?=",
    "a tab inside": b"=?utf-8?Q?my\t[secret]?=",
    "blanks around the text": b"=?utf-8?Q? [secret] ?=",
    "blanks within the tag": b"=?utf-8?Q?[sec ret]?=",
    "folded within the tag": b"=?utf-8?Q?[sec\r\n ret]?=",
    "folded within an escape": b"=?utf-8?Q?=\r\n 5Bsecret]?=",
    "a blank within an escape": b"=?utf-8?Q?= 5Bsecret]?=",
    "folded between escapes": b"=?utf-8?Q?=5B=73=65=63\r\n =72=65=74=5D?=",
    "an escape that is none": b"=?utf-8?Q?=ZZ[secret]?=",
    "an equals sign at the end": b"=?utf-8?Q?[secret]=?=",
    "half an escape at the end": b"=?utf-8?Q?[secret]=5?=",
    "a question mark inside": b"=?utf-8?Q?what? =5Bsecret=5D?=",
    "a question mark behind": b"=?utf-8?Q?=5Bsecret=5D?plan?=",
    "raw UTF-8 inside": "=?utf-8?Q?pläne [secret]?=".encode(),
    "raw Latin-1 inside": b"=?iso-8859-1?Q?pl\xe4ne =5Bsecret=5D?=",
    "raw octets beside it": b"pl\xe4ne " + q(TAG, every=True) + b" pl\xc3\xa4ne",
    "an underscore inside": b"=?utf-8?Q?my_=5Bsecret=5D?=",
    "B without padding": b"=?utf-8?B?" + b64(TAG + "x").rstrip(b"=") + b"?=",
    "B without padding, two short": b"=?utf-8?B?" + b64(TAG + "xy").rstrip(b"=") + b"?=",
    "B with padding too much": b"=?utf-8?B?" + b64(TAG) + b"=?=",
    "B with much padding": b"=?utf-8?B?" + b64(TAG) + b"====?=",
    "B with one character too many": b"=?utf-8?B?" + b64(TAG + "x") + b"A?=",
    "B with characters of no alphabet": b"=?utf-8?B?!" + b64(TAG)[:6] + b"%*" + b64(TAG)[6:] + b"?=",
    "B with a blank inside": b"=?utf-8?B?" + b64(TAG)[:6] + b" " + b64(TAG)[6:] + b"?=",
    "B folded inside": b"=?utf-8?B?" + b64(TAG)[:6] + b"\r\n " + b64(TAG)[6:] + b"?=",
    "B with underscores inside": b"=?utf-8?B?" + b64(TAG)[:6] + b"_" + b64(TAG)[6:] + b"?=",
    "B padded in the middle": b"=?utf-8?B?" + b64("[sec") + b64("ret]") + b"?=",
    "B padded in the middle, one short": b"=?utf-8?B?" + b64("[secr") + b64("et]") + b"?=",
    "B padded before the tag": b"=?utf-8?B?" + b64("a") + b64(TAG) + b"?=",
    "B with = in the middle of four": b"=?utf-8?B?" + b64(TAG)[:5] + b"=" + b64(TAG)[5:] + b"?=",
    "B in the alphabet for URLs": b"=?utf-8?B?" + b64url("???>>>" + TAG) + b"?=",
    "B of an empty text before": b"=?utf-8?B??= " + q(TAG, every=True),
    "Q of an empty text before": b"=?utf-8?Q??= " + q(TAG, every=True),
}
"""Of one encoded word."""

SEVERAL = {
    "two words": q("[sec") + b" " + q("ret]"),
    "two words without a blank between": q("[sec") + q("ret]"),
    "two words with a tab between": q("[sec") + b"\t" + q("ret]"),
    "two words with much blank between": q("[sec") + b"  \t  " + q("ret]"),
    "two words, folded between": q("[sec") + b"\r\n " + q("ret]"),
    "two words, folded by a tab": q("[sec") + b"\r\n\t" + q("ret]"),
    "two words with an empty line that is folded between": q("[sec") + b"\r\n \r\n " + q("ret]"),
    "a word for each letter": b" ".join(q(each, every=True) for each in TAG),
    "a word for each letter, B": b" ".join(b(each) for each in TAG),
    "a word for each letter, folded": b"\r\n ".join(q(each, every=True) for each in TAG),
    "Q and B": q("[sec") + b" " + b("ret]"),
    "B and Q": b("[sec") + b" " + q("ret]"),
    "B and B": b("[sec") + b" " + b("ret]"),
    "B and B, padded": b("[secr") + b" " + b("et]"),
    "B and B, padded twice": b("[") + b" " + b("secret]"),
    "B cut within four characters": b"=?utf-8?B?" + b64(TAG)[:5] + b"?= =?utf-8?B?" + b64(TAG)[5:] + b"?=",
    "B cut within four characters, no blank between": b"=?utf-8?B?"
    + b64(TAG)[:6]
    + b"?==?utf-8?B?"
    + b64(TAG)[6:]
    + b"?=",
    "Q cut within an escape": b"=?utf-8?Q?=5?= =?utf-8?Q?Bsecret]?=",
    "two names of a charset": q("[sec") + b" " + q("ret]", "UTF-8"),
    "two charsets": q("[sec") + b" " + q("ret]", "iso-8859-1"),
    "two charsets, B": b("[sec", "us-ascii") + b" " + b("ret]", "windows-1252"),
    "an empty word between": q("[sec") + b" =?utf-8?Q??= " + q("ret]"),
    "with two languages": b"=?utf-8*en?Q?[sec?= =?utf-8*de?Q?ret]?=",
    "half of it plain": b"[sec" + q("ret]", every=True),
    "the other half plain": q("[sec", every=True) + b"ret]",
    "quoted one by one": b'"' + q("x") + b'" "' + q(TAG) + b'"',
    "behind half a UTF-8 character": b"=?utf-8?Q?=C3?= " + q(TAG, every=True),
    "behind half a UTF-8 character, B": b(b"\xc3") + b" " + b(TAG),
    "behind half a Shift_JIS character": q(b"\x81", "shift_jis", every=True) + b" " + q(TAG, "shift_jis", every=True),
    "two charsets of two octets": q("[sec".encode("utf-16-be"), "utf-16be")
    + b" "
    + q("ret]".encode("utf-16-le"), "unicode"),
    "two byte order marks": q("[sec".encode("utf-16"), "utf-16")
    + b" "
    + q(b"\xfe\xff" + "ret]".encode("utf-16-be"), "utf-16"),
    "behind half a GBK character": q(b"\x81", "gbk", every=True) + b" " + q(TAG, "gbk", every=True),
    "behind an escape that does not end": q(b"\x1b$B", "iso-2022-jp", every=True)
    + b" "
    + q(TAG, "iso-2022-jp", every=True),
}
"""Of more than one encoded word."""

BROKEN = {
    "behind a word of no base64": b"=?utf-8?B?!!!?= [secret]",
    "behind a word of one character of base64": b"=?utf-8?B?A?= " + q(TAG, every=True),
    "behind a word of no known encoding": b"=?utf-8?X?a?= " + q(TAG, every=True),
    "behind a word that does not end": b"=?utf-8?Q?plan " + q(TAG, every=True),
    "behind a word that ends in a blank": b"=?utf-8?Q?plan ?= " + q(TAG, every=True),
    "behind a word of no charset": b"=??Q?plan?= " + q(TAG, every=True),
    "behind a word of an unknown charset": q(b"\xe4", "x-none") + b" " + q(TAG, every=True),
    "behind a beginning": b"=?" + q(TAG, every=True),
    "behind many beginnings": b"=?" * 9 + q(TAG, every=True),
    "behind half a beginning": b"=?utf-8?" + q(TAG, every=True),
    "behind an end": b"?= " + q(TAG, every=True),
    "before a word of no base64": q(TAG, every=True) + b" =?utf-8?B?!!!?=",
    "before a word that does not end": q(TAG, every=True) + b" =?utf-8?Q?plan",
    "between broken words": b"=?utf-8?B?W?= " + q(TAG, every=True) + b" =?utf-8?B?W?=",
    "in a word of an unknown charset": b"=?x-none?Q?[secret]?=",
    "in a word of an unknown charset, B": b(TAG, "x-none"),
    "in a word of a charset in use nowhere": b(TAG, "utf-9"),
    "in a word of charset unknown-8bit": q(TAG, "unknown-8bit", every=True),
    "in a word of charset x-unknown": b(TAG, "x-unknown"),
    "in a word of charset binary": b(TAG, "binary"),
    "in a word of charset default": b(TAG, "default"),
    "in a word of no charset": b"=??B?" + b64(TAG) + b"?=",
    "in a word of a blank charset": b"=? ?Q?=5Bsecret=5D?=",
    "charset with blanks around": b"=? utf-8 ?Q?=5Bsecret=5D?=",
    "charset in quotes": b'=?"utf-8"?B?' + b64(TAG) + b"?=",
    "charset with odd characters": b"=?utf-8!?B?" + b64(TAG) + b"?=",
    "charset that names a slow codec of Python": b("[secret]", "punycode"),
    "text that a word has within": b"=?x-none?Q?=?= " + b(TAG),
    "a control character in it": b"=?utf-8?Q?=07=5Bsecret=5D?=",
    "a NUL before it": b"=?utf-8?Q?a=00=5Bsecret=5D?=",
    "a NUL that ends a word": b"=?utf-8?Q?=5Bsec=00?= =?utf-8?Q?ret=5D?=",
    "a line's end before it": b"=?utf-8?Q?a=0D=0A=5Bsecret=5D?=",
    "in the empty rest of a field": b" \r\n " + q(TAG),
}
"""Beside encoded words that are none, and in such."""

UNSEEN = {
    "a zero width space": "\u200b",
    "a zero width non-joiner": "\u200c",
    "a zero width joiner": "\u200d",
    "a word joiner": "\u2060",
    "an invisible plus": "\u2064",
    "a byte order mark": "\ufeff",
    "a soft hyphen": "\u00ad",
    "a left-to-right mark": "\u200e",
    "a right-to-left mark": "\u200f",
    "an Arabic letter mark": "\u061c",
    "an embedding": "\u202a",
    "the end of an embedding": "\u202c",
    "an isolate": "\u2066",
    "the end of an isolate": "\u2069",
    "a grapheme joiner": "\u034f",
    "a variation selector": "\ufe0f",
    "a variation selector of plane 14": "\U000e0100",
    "a tag of plane 14": "\U000e0041",
    "a Mongolian vowel separator": "\u180e",
    "a Hangul filler": "\u3164",
    "a half-width Hangul filler": "\uffa0",
    "a Khmer vowel of no form": "\u17b4",
    "an annotation": "\ufff9",
    "an old control of formatting": "\u206a",
    "a bell": "\u0007",
    "a DEL": "\u007f",
    "a control character of C1": "\u0084",
    "a NUL": "\u0000",
}
"""Characters that no program shows."""

LETTERS = {
    "full-width": "\uff3b\uff53\uff45\uff43\uff52\uff45\uff54\uff3d",
    "full-width, its brackets": "\uff3bsecret\uff3d",
    "bold of mathematics": "[\U0001d42c\U0001d41e\U0001d41c\U0001d42b\U0001d41e\U0001d42d]",
    "monospace of mathematics": "[\U0001d69c\U0001d68e\U0001d68c\U0001d69b\U0001d68e\U0001d69d]",
    "circled": "[\u24e2\u24d4\u24d2\u24e1\u24d4\u24e3]",
    "a long s": "[\u017fecret]",
    "a raised letter": "[se\u1d9cret]",
    "a letter of a number form": "[se\u217dret]",
}
"""The tag in other forms of the same letters (NFKC)."""

UMLAUT = "[größe]"
COMPOSED = {
    "composed": UMLAUT,
    "decomposed": unicodedata.normalize("NFD", UMLAUT),
    "with ss": "[grösse]",
    "in capitals": "[GRÖSSE]",
    "in capitals, a capital sharp s": "[GRÖ\u1e9eE]",
    "with a joiner before the mark": "[gro\u034f\u0308ße]",
}

BLANKS = {
    "a blank": b"[top secret]",
    "a tab": b"[top\tsecret]",
    "many blanks": b"[top   secret]",
    "a fold": b"[top\r\n secret]",
    "a fold by a tab": b"[top\r\n\tsecret]",
    "a fold and blanks": b"[top \r\n  secret]",
    "a no-break space": "[top\u00a0secret]".encode(),
    "an ideographic space": "[top\u3000secret]".encode(),
    "an em space": "[top\u2003secret]".encode(),
    "a narrow no-break space": "[top\u202fsecret]".encode(),
    "an empty pattern of Braille": "[top\u2800secret]".encode(),
    "a Hangul filler": "[top\u3164secret]".encode(),
    "a half-width Hangul filler": "[top\uffa0secret]".encode(),
    "an underscore in Q": b"=?utf-8?Q?[top_secret]?=",
    "=20 in Q": b"=?utf-8?Q?[top=20secret]?=",
    "=A0 in Q": b"=?iso-8859-1?Q?[top=A0secret]?=",
    "a raw blank in Q": b"=?utf-8?Q?[top secret]?=",
    "a line's end in Q": b"=?utf-8?Q?[top=0Asecret]?=",
    "a blank in the second of two words": q("[top") + b" " + q(" secret]"),
    "a blank before a word": b"[top " + q("secret]"),
    "a blank behind an empty word": q("[top") + b" =?utf-8?Q??= " + q("secret]"),
}

FIELDS = {
    "in capitals": mail(b"SUBJECT: [secret]"),
    "a blank before the colon": mail(b"Subject : [secret]"),
    "a tab before the colon": mail(b"Subject\t: [secret]"),
    "no blank behind the colon": mail(b"Subject:[secret]"),
    "a tab behind the colon": mail(b"Subject:\t[secret]"),
    "a fold before the colon": mail(b"Subject\r\n : [secret]"),
    "a no-break space before the colon": mail(b"From: a@b.example", b"Subject\xa0: [secret]"),
    "a form feed before the colon": mail(b"From: a@b.example", b"Subject\x0c: [secret]"),
    "a line that begins with a no-break space": mail(b"From: a@b.example", b"Subject:", b"\xa0[secret]"),
    "the second of two": mail(b"Subject: plan", b"Subject: [secret]"),
    "the first of two": mail(b"Subject: [secret]", b"Subject: plan"),
    "the last of four": mail(b"Subject:", b"Subject: a", b"Subject: b", b"Subject: " + q(TAG)),
    "the second behind an empty one": mail(b"Subject: ", b"Subject: [secret]"),
    "behind a long field": mail(b"X: " + b"x" * 60_000, b"Subject: [secret]"),
    "behind a long folded field": mail(b"References:" + b"\r\n <a@b.example>" * 400, b"Subject: [secret]"),
    "behind a line of mailbox files": b"From a@b Thu Nov 26 10:00:00 2026\r\n" + mail(b"Subject: [secret]"),
    "behind a line that is no field": mail(b"From: a@b.example", b"no field", b"Subject: [secret]"),
    "behind a byte order mark": b"\xef\xbb\xbf" + mail(b"Subject: [secret]"),
    "behind many fields": mail(*[b"X-%d: x" % number for number in range(500)], b"Subject: [secret]"),
    "at the end of a header without body": b"Subject: [secret]\r\n",
}


def spellings() -> Iterator[Spelling]:
    """All of them."""

    def of(name: str, subject: bytes, wanted: str = TAG) -> Spelling:
        return Spelling(name, "subject_tag", wanted, mail(b"Subject: " + subject))

    for table in (PLAIN, WORDS, SEVERAL, BROKEN):
        for name, subject in table.items():
            yield of(name, subject)
    for name, char in UNSEEN.items():
        if char != "\0":  # no mail with one in its header is taken
            yield of(f"{name} inside", f"[sec{char}ret]".encode())
        yield of(f"{name} inside, encoded", b(f"[sec{char}ret]"))
    for name, tag in LETTERS.items():
        yield of(f"letters: {name}", tag.encode())
        yield of(f"letters: {name}, encoded", b(tag))
    for name, tag in COMPOSED.items():
        yield of(f"umlaut: {name}", tag.encode(), UMLAUT)
        yield of(f"umlaut: {name}, encoded", q(tag, every=True), UMLAUT)
        yield of(f"umlaut: {name}, in the rule", q(UMLAUT, every=True), tag)
    yield of("an invisible character in the rule", b"[secret]", "[sec\u00adret]")
    yield of("full-width letters in the rule", b"[secret]", LETTERS["full-width"])
    for name, subject in BLANKS.items():
        yield of(f"its blank is {name}", subject, "[top secret]")
    tag = "[üö€]"
    octets = tag.encode()
    for at in range(2, len(octets) - 1):
        yield of(f"cut behind octet {at}", q(octets[:at], every=True) + b" " + q(octets[at:], every=True), tag)
        yield of(f"cut behind octet {at}, B", b(octets[:at]) + b" " + b(octets[at:]), tag)
    for name, message in FIELDS.items():
        yield Spelling(f"field: {name}", "subject_tag", TAG, message)
