"""Tags in the languages of the world, in the character sets that mail is written in and under the names that these have.
Standard: RFC 2047; the names are those of IANA and of what programs write and read besides.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.testlib.spellings.spelling import Spelling, b, mail, q

SETS: tuple[tuple[str, str, str], ...] = (
    ("[größe]", "iso-8859-1", "iso-8859-1 ISO_8859-1:1987 latin1 l1 iso8859-1 iso88591 csisolatin1 iso-ir-100 cp819 ibm819"),
    ("[größe]", "cp1252", "windows-1252 cp1252 x-cp1252 win-1252 windows1252 us-ascii ascii ansi_x3.4-1968"),
    ("[größe]", "iso-8859-15", "iso-8859-15 iso8859-15 latin9 l9 csisolatin9 iso_8859-15"),
    ("[größe]", "mac-roman", "macintosh mac x-mac-roman csmacintosh"),
    ("[größe]", "utf-8", "utf-8 UTF8 utf8 utf_8 unicode-1-1-utf-8 x-unicode20utf8 us-ascii unknown-8bit x-none"),
    ("[10 €]", "cp1252", "windows-1252 iso-8859-1 us-ascii"),
    ("[őrző]", "iso-8859-2", "iso-8859-2 latin2 l2 csisolatin2 iso8859-2"),
    ("[příkaz]", "cp1250", "windows-1250 cp1250 x-cp1250"),
    ("[gizli ış]", "iso-8859-9", "iso-8859-9 latin5 l5 windows-1254 cp1254 iso8859-9"),
    ("[slepeni ņ]", "iso-8859-13", "iso-8859-13 iso8859-13"),
    ("[slepeni ņ]", "cp1257", "windows-1257 cp1257"),
    ("[секретно]", "koi8-r", "koi8-r koi8_r koi8 koi cskoi8r"),
    ("[секретно]", "koi8-u", "koi8-u koi8-ru"),
    ("[секретно]", "cp1251", "windows-1251 cp1251 x-cp1251 win-1251"),
    ("[секретно]", "iso-8859-5", "iso-8859-5 cyrillic csisolatincyrillic iso8859-5"),
    ("[секретно]", "cp866", "ibm866 cp866 866 csibm866"),
    ("[секретно]", "mac-cyrillic", "x-mac-cyrillic"),
    ("[απόρρητο]", "iso-8859-7", "iso-8859-7 greek greek8 ecma-118 elot_928 iso8859-7"),
    ("[απόρρητο]", "cp1253", "windows-1253 cp1253"),
    ("[סודי]", "iso-8859-8", "iso-8859-8 iso-8859-8-i iso-8859-8-e hebrew visual logical windows-1255"),
    ("[سري]", "cp1256", "windows-1256 cp1256"),
    ("[سري]", "iso-8859-6", "iso-8859-6 arabic ecma-114 asmo-708"),
    ("[ลับ]", "cp874", "tis-620 windows-874 iso-8859-11 dos-874"),
    ("[mâ\u0323t]", "cp1258", "windows-1258 cp1258"),
    ("[極秘]", "iso-2022-jp", "iso-2022-jp us-ascii unknown-8bit csiso2022jp ISO-2022-JP iso-2022-jp-2"),
    ("[極秘]", "shift_jis", "shift_jis us-ascii unknown shift-jis sjis x-sjis ms_kanji csshiftjis ms932 windows-31j cp932"),
    ("[極秘]", "euc-jp", "euc-jp x-euc-jp cseucpkdfmtjapanese eucjp"),
    ("[绝密]", "gbk", "gb2312 unknown-8bit unknown default us-ascii gbk gb18030 x-gbk chinese csgb2312 gb_2312 cp936 ms936 iso-ir-58"),
    ("[絕密]", "big5", "big5 cn-big5 csbig5 x-x-big5 big5-hkscs cp950"),
    ("[기밀]", "euc-kr", "euc-kr ks_c_5601-1987 ks_c_5601-1989 korean cseuckr ksc5601 windows-949 cp949 uhc"),
    ("[secret]", "utf-16-be", "utf-16be unicodefffe"),
    ("[secret]", "utf-16-le", "utf-16le utf-16 unicode ucs-2 iso-10646-ucs-2 csunicode unicodefeff"),
    ("[secret]", "utf-16", "utf-16 utf-16le unicode ucs-2"),
    ("[secret]", "utf-16-be", "utf-16 ucs-2 unicode iso-10646-ucs-2"),
    ("[größe]", "utf-16-le", "utf-16le utf-16 ucs2"),
    ("[secret]", "utf-32-le", "utf-32le utf-32"),
    ("[secret]", "utf-32-be", "utf-32be utf-32 ucs-4 iso-10646-ucs-4"),
    ("[secret]", "utf-8-sig", "utf-8"),
)  # fmt: skip
"""A tag, the codec that it is written with, and the names under which it is."""

UTF_7 = "utf-7 UTF-7 utf7 unicode-1-1-utf-7 csunicode11utf7 x-unicode-2-0-utf-7"

RAW: tuple[tuple[str, str], ...] = (
    ("[größe]", "utf-8"), ("[größe]", "iso-8859-1"), ("[секретно]", "utf-8"), ("[секретно]", "koi8-r"),
    ("[секретно]", "windows-1251"), ("[極秘]", "shift_jis"), ("[極秘]", "euc-jp"), ("[極秘]", "iso-2022-jp"),
    ("[绝密]", "gb2312"), ("[絕密]", "big5"), ("[기밀]", "euc-kr"), ("[απόρρητο]", "iso-8859-7"),
)  # fmt: skip
"""Tags as raw octets, in a message whose text has this character set."""


def spellings() -> Iterator[Spelling]:
    """All of them."""
    for tag, codec, names in SETS:
        for name in names.split():
            for word in (q, b):
                subject = b"Subject: =?utf-8?Q?plan?= " + word(tag.encode(codec), name)
                yield Spelling(
                    f"charset {name}, {codec}, {tag}, {word.__name__.upper()}", "subject_tag", tag, mail(subject)
                )
    for name in UTF_7.split():
        for text in ("+AFs-secret+AF0-", "+AFsAcwBlAGMAcgBlAHQAXQ-", "[se+AGM-ret]"):
            yield Spelling(
                f"charset {name}, {text}", "subject_tag", "[secret]", mail(b"Subject: " + q(text, name, every=True))
            )
    eighth = bytes(octet | 0x80 for octet in b"[secret]")
    for word in (q, b):
        yield Spelling(
            f"charset us-ascii, the eighth bit of each octet set, {word.__name__.upper()}", "subject_tag", "[secret]",
            mail(b"Subject: " + word(eighth, "us-ascii")),
        )  # fmt: skip
    yield Spelling("charset iso-2022-jp, Roman letters", "subject_tag", "[secret]",
                   mail(b"Subject: " + b(b"\x1b(J[secret]\x1b(B", "iso-2022-jp")))  # fmt: skip
    yield Spelling(
        "charset hz-gb-2312", "subject_tag", "[绝密]", mail(b"Subject: " + b("[绝密]".encode("hz"), "hz-gb-2312"))
    )
    yield Spelling(
        "charset iso-2022-kr",
        "subject_tag",
        "[기밀]",
        mail(b"Subject: " + b("[기밀]".encode("iso-2022-kr"), "iso-2022-kr")),
    )
    for charset in ("cp037", "ibm500", "ebcdic-cp-us", "scsu", "bocu-1", "utf-ebcdic", "iso-2022-cn"):
        yield Spelling(f"charset {charset}, of programs with ICU or iconv", "subject_tag", "[secret]",
                       mail(b"Subject: " + b("[secret]".encode("cp500" if charset == "ibm500" else "cp037"), charset)))  # fmt: skip
    for tag, codec in RAW:
        kind = b"Content-Type: text/plain; charset=" + codec.encode()
        yield Spelling(f"raw {codec}, {tag}", "subject_tag", tag, mail(b"Subject: " + tag.encode(codec), kind))
        yield Spelling(f"raw {codec}, {tag}, beside an encoded word", "subject_tag", tag,
                       mail(b"Subject: =?utf-8?Q?=C3=A4?= " + tag.encode(codec), kind))  # fmt: skip
        yield Spelling(f"raw {codec}, {tag}, its charset in quotes", "subject_tag", tag,
                       mail(b'Content-Type: text/plain; format=flowed; charset="%s"' % codec.encode(), b"Subject: " + tag.encode(codec)))  # fmt: skip
    japanese = "[極秘書類]".encode("iso-2022-jp")
    for at in range(2, len(japanese) - 2):
        parts = (japanese[:at], japanese[at:])
        yield Spelling(f"charset iso-2022-jp, cut behind octet {at}", "subject_tag", "[極秘書類]",
                       mail(b"Subject: " + b" ".join(b(part, "iso-2022-jp") for part in parts)))  # fmt: skip
