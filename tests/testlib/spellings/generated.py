"""Spellings put together at random: tags and file names cut into pieces, each written in another way, with faults.
Standard: none; parsers of mail programs say what they show of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.testlib.spellings.names import DISPOSITIONS, TYPES, with_part
from tests.testlib.spellings.spelling import Spelling, b64, mail
from tests.testlib.spellings.structure import messages

TAGS = ("[secret]", "[secret]", "[top secret]", "[größe]", "[секретно]", "[極秘]", "[绝密]")
CHARSETS = (
    "utf-8", "UTF-8", "utf-8*en", "utf8", "us-ascii", "iso-8859-1", "latin1", "windows-1252", "koi8-r", "windows-1251", "iso-2022-jp",
    "shift_jis", "euc-jp", "gb2312", "gb18030", "utf-16", "utf-16be", "unicode", "utf-7", "x-none", "unknown-8bit", "", "cp932", "mac",
)  # fmt: skip
CODECS = {
    "koi8-r": "koi8-r", "windows-1251": "cp1251", "iso-2022-jp": "iso-2022-jp", "shift_jis": "cp932", "cp932": "cp932", "euc-jp": "euc-jp",
    "gb2312": "gbk", "gb18030": "gb18030", "utf-16": "utf-16", "utf-16be": "utf-16-be", "unicode": "utf-16-le", "utf-7": "utf-7",
    "iso-8859-1": "latin-1", "latin1": "latin-1", "windows-1252": "cp1252", "us-ascii": "cp1252", "mac": "mac-roman",
}  # fmt: skip
BETWEEN = (b" ", b" ", b" ", b"", b"\r\n ", b"\r\n\t", b"  ", b"\t")
AROUND = (
    b"", b"", b"plan ", b"Re: ", b'"', b"(", "Pläne ".encode(), b"pl\xe4ne ", b"=?", b"=?utf-8?Q?x", b"=?utf-8?B?!?= ", b"=?x?Q?=E4?= ", b"?= ",
    b"=?utf-8?Q?=E4?= ", b"\xff", b"=", b"=?utf-8?Q??= ", b"=?utf-8?B?AA?= ",
)  # fmt: skip
MESSAGES = tuple(message for _, message in messages() if len(message) < 4000)
UNSEEN = ("", "", "", "\u200b", "\u00ad", "\u2060", "\ufe0f", "\x07", "\0")


def _faulty(octets: bytes, chance: random.Random) -> bytes:
    """The payload with a fault, mostly none."""
    at = chance.randrange(len(octets) + 1)
    faults: tuple[Callable[[], bytes], ...] = (
        lambda: octets[:at] + b" " + octets[at:], lambda: octets[:at] + b"\r\n " + octets[at:], lambda: octets[:at] + b"=" + octets[at:],
        lambda: octets + b"=", lambda: octets.rstrip(b"="), lambda: octets[:at] + b"?" + octets[at:], lambda: octets[:at] + b"!" + octets[at:],
        lambda: octets + b"A", lambda: octets[:-1], lambda: octets.replace(b"+", b"-").replace(b"/", b"_"), lambda: octets + b"=41",
    )  # fmt: skip
    return chance.choice(faults)() if chance.random() < 0.15 else octets


def _word(text: str, chance: random.Random) -> bytes:
    charset = chance.choice(CHARSETS) if chance.random() < 0.5 else "utf-8"
    try:
        octets = text.encode(CODECS.get(charset, "utf-8"))
    except UnicodeEncodeError:
        octets, charset = text.encode(), "utf-8"
    if chance.random() < 0.5:
        return b"=?%s?%s?%s?=" % (charset.encode(), chance.choice((b"B", b"b")), _faulty(b64(octets), chance))
    often = chance.random()
    payload = b"".join(
        b"_" if each == 32 else b"=%02X" % each if each >= 127 or each < 32 or each in b"=?_" or chance.random() < often else bytes([each])
        for each in octets
    )  # fmt: skip
    return b"=?%s?%s?%s?=" % (charset.encode(), chance.choice((b"Q", b"q")), _faulty(payload, chance))


def value(text: str, chance: random.Random) -> bytes:
    """The text as one to four encoded words or raw pieces, between things that confuse."""
    unseen = chance.choice(UNSEEN)
    if unseen:
        at = chance.randrange(1, len(text))
        text = text[:at] + unseen + text[at:]
    cuts = sorted(chance.sample(range(1, len(text)), chance.choice((0, 0, 1, 1, 2, 3))))
    pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    raw = 0.2 if "\0" not in text else 0.0
    written = [piece.encode() if chance.random() < raw else _word(piece, chance) for piece in pieces]
    joined = written[0]
    for piece in written[1:]:
        word = joined.endswith(b"?=") and piece.startswith(b"=?")
        joined += (chance.choice(BETWEEN) if word else b"") + piece
    return chance.choice(AROUND) + joined + chance.choice((b"", b"", b" plan", b"plan", b'"', b"?=", b" =?", b"="))


EDITS = (
    b";", b'"', b"\\", b"(", b")", b"=", b" ", b"\t", b"\r\n ", b"*", b"'", b"%", b",", b"/", b"x", b"\xe4", b"\xa0", b"\xe2\x80\x8b", b"?", b"=?", b"?=",
    b"*0", b"*0*", b"*1", b"utf-8''", b"%2E", b"; x", b"; x=", b'; x="', b"(x)", b'\\"', b"<", b">", b"[", b"@", b":", b"name=", b"filename=",
)  # fmt: skip


def edited(octets: bytes, chance: random.Random) -> bytes:
    """The octets with one to three pieces put in, taken out or doubled."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        at = chance.randrange(len(octets) + 1)
        kind = chance.random()
        if kind < 0.6:
            octets = octets[:at] + chance.choice(EDITS) + octets[at:]
        elif kind < 0.85:
            octets = octets[:at] + octets[at + chance.choice((1, 1, 2, 5)) :]
        else:
            octets = octets[:at] + octets[chance.randrange(len(octets) + 1) :][:12] + octets[at:]
    return _carriable(octets)


def of_structure(chance: random.Random) -> Spelling:
    """A file name or a boundary from the tables, edited."""
    kind = chance.randrange(3)
    if kind == 0:
        value = edited(chance.choice(list(DISPOSITIONS.values())), chance)
        return Spelling(
            "", "attachment_name", "*.docx*", with_part(b"Content-Type: a/b\r\nContent-Disposition: " + value)
        )
    if kind == 1:
        value = edited(chance.choice(list(TYPES.values())), chance)
        return Spelling("", "attachment_name", "*.docx*", with_part(b"Content-Type: " + value))
    message = chance.choice(MESSAGES)
    header, _, body = message.partition(b"\r\n\r\n")
    if chance.random() < 0.5:
        at = header.lower().rfind(b"content-type")
        header = header[:at] + edited(header[at:], chance)
    else:
        at = chance.randrange(len(body) + 1)
        body = body[:at] + edited(body[at : at + 60], chance) + body[at + 60 :]
    return Spelling("", "attachment_name", "*.docx*", header + b"\r\n\r\n" + body)


def _carriable(message: bytes) -> bytes:
    """Without ends of lines that no mail has which is taken (mime.check_carriable)."""
    return b"\r\n".join(line.replace(b"\r", b"").replace(b"\n", b"") for line in message.split(b"\r\n"))


def generated(number: int, seed: int) -> list[Spelling]:
    """`number` subjects, and as many file names and structures."""
    chance = random.Random(seed)
    found = []
    for count in range(number):
        tag = chance.choice(TAGS)
        subject = value(tag, chance)
        found.append(Spelling(f"generated {count}", "subject_tag", tag, mail(b"Subject: " + subject)))
        name = chance.choice(("plan.docx", "my plan.docx", "Größe.docx", "план.docx"))
        quoted = value(name, chance).replace(b'"', b"")
        form = chance.choice(
            (
                b'attachment; filename="%s"',
                b"attachment; filename=%s",
                b"attachment; filename*=utf-8''x; filename=\"%s\"",
            )
        )
        part = b"Content-Type: a/b\r\nContent-Disposition: " + form % quoted
        found.append(Spelling(f"generated {count}", "attachment_name", "*.docx*", with_part(part)))
        found.append(of_structure(chance))
    return found
