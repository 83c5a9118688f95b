"""Reads octets of a named character set in every way that some mail program does.
Standard: RFC 2978 and IANA's names, the labels of the WHATWG Encoding Standard, and what programs accept besides.

Programs do not agree about charsets: us-ascii with 8 bits is Windows-1252 to some and UTF-8 to others, UTF-16 without a
byte order mark is read from either end, and an unknown name is passed over, guessed or left undecoded. Only codecs of
the table below are used: Python has others, which take the square of the length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MAX_LABEL = 80
"""Maximum length of a charset's name, in octets; a longer one is unknown."""

UTF_8 = "utf_8"
LEGACY = "cp1252"
"""What programs take for text of no known charset, if it is not UTF-8. Its superset of Latin-1 is what IANA calls so."""

_SEPARATORS = re.compile(r"[^0-9a-z]+")
_NUMBERED = re.compile(r"(?:x|ms|cs)*(?:cp|windows|win|ms|ibm|dos|codepage)0*([0-9]{2,5})")
_ISO = re.compile(r"(?:x|cs)*(?:iso)?8859([0-9]{1,2}?)(?:19[0-9]{2}|20[0-9]{2})?[ei]?")
_LATIN = re.compile(r"(?:cs)?(?:iso)?(?:latin|l)([0-9]{1,2})")

_LATIN_PARTS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 9, 6: 10, 7: 13, 8: 14, 9: 15, 10: 16}
"""The part of ISO 8859 that each Latin alphabet is."""
_WINDOWS_OF_ISO = {1: "cp1252", 9: "cp1254", 11: "cp874"}
"""Programs read these parts of ISO 8859 as what has more characters."""
_ISO_PARTS = frozenset(range(1, 17)) - {12}

_CODE_PAGES = {
    **{number: (f"cp{number:03d}",) for number in (
        37, 273, 424, 437, 500, 720, 737, 775, 850, 852, 855, 856, 857, 858, 860, 861, 862, 863, 864, 865, 866, 869, 874, 875,
        1006, 1026, 1125, 1140, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258,
    )},
    367: (LEGACY,), 819: (LEGACY,), 932: ("cp932",), 943: ("cp932",), 936: ("gb18030",), 1386: ("gb18030",), 54936: ("gb18030",),
    949: ("cp949",), 1361: ("johab",), 950: ("big5hkscs", "cp950"), 951: ("big5hkscs",), 1200: ("utf_16_le",), 1201: ("utf_16_be",),
    12000: ("utf_32_le",), 12001: ("utf_32_be",), 65000: ("utf_7",), 65001: (UTF_8,), 28591: (LEGACY,), 20127: (LEGACY,), 20866: ("koi8_r",),
    21866: ("koi8_u",), 20932: ("euc_jis_2004", "euc_jp"), 51932: ("euc_jis_2004", "euc_jp"), 50220: ("iso2022_jp_2", "iso2022_jp_ext"),
    50221: ("iso2022_jp_2", "iso2022_jp_ext"), 50222: ("iso2022_jp_2", "iso2022_jp_ext"), 50225: ("iso2022_kr",), 51949: ("cp949",),
    51936: ("gb18030",), 52936: ("hz",), 10000: ("mac_roman",), 10006: ("mac_greek",), 10007: ("mac_cyrillic",), 10029: ("mac_latin2",),
    10079: ("mac_iceland",), 10081: ("mac_turkish",),
}  # fmt: skip
"""Codecs by the number of a code page of Microsoft or IBM."""

_NAMED = {
    (UTF_8,): "utf8 unicode11utf8 unicode20utf8 xunicode20utf8 csutf8 utf8mb4 cesu8 utf8sig",
    (LEGACY, UTF_8): "usascii ascii ansix341968 ansix341986 iso646us iso646irv1991 isoir6 us csascii 646",
    (LEGACY,): "iso88591 isoir100 csisolatin1 ansi ansi1252",
    ("iso8859_2",): "isoir101", ("iso8859_3",): "isoir109", ("iso8859_4",): "isoir110",
    ("iso8859_5",): "isoir144 cyrillic csisolatincyrillic", ("iso8859_6",): "isoir127 arabic asmo708 ecma114 csisolatinarabic",
    ("iso8859_7",): "isoir126 greek greek8 ecma118 elot928 suneugreek csisolatingreek",
    ("iso8859_8",): "isoir138 hebrew visual logical csisolatinhebrew", ("cp1254",): "isoir148", ("iso8859_10",): "isoir157",
    ("cp874",): "tis620 iso885911 tis62025 iso8859thai",
    ("koi8_r",): "koi8r koi8 koi cskoi8r", ("koi8_u",): "koi8u koi8ru", ("koi8_t",): "koi8t", ("kz1048",): "kz1048 strk1048 rk1048",
    ("ptcp154",): "ptcp154 csptcp154 cp154 cyrillicasian pt154", ("cp866",): "866",
    ("mac_roman",): "macintosh mac xmacroman csmacintosh macroman", ("mac_cyrillic",): "xmaccyrillic xmacukrainian maccyrillic macukraine",
    ("mac_greek",): "xmacgreek macgreek", ("mac_turkish",): "xmacturkish macturkish", ("mac_latin2",): "xmacce maccentraleurope maccenteuro xmaccentraleurroman",
    ("mac_iceland",): "xmacicelandic maciceland", ("mac_croatian",): "xmaccroatian maccroatian", ("mac_romanian",): "xmacromanian macromania",
    ("gb18030",): "gb2312 gbk gb18030 xgbk chinese csgb2312 gb231280 csiso58gb231280 isoir58 cngb euccn gb180302000 gb180302022 csgbk csgb18030 xeuccn eucgb2312cn",
    ("big5hkscs", "cp950"): "big5 big5hkscs cnbig5 csbig5 xxbig5 xbig5 big5eten big5hk big5tw csbig5hkscs",
    ("hz",): "hzgb2312 hz hzgb",
    ("cp932",): "shiftjis sjis xsjis mskanji csshiftjis ms932 windows31j cswindows31j shiftjisx0213 shiftjis2004 xmsshiftjis pck",
    ("euc_jis_2004", "euc_jp"): "eucjp xeucjp cseucpkdfmtjapanese eucjpms extendedunixcodepackedformatforjapanese ujis eucjis2004 eucjisx0213",
    ("iso2022_jp_2", "iso2022_jp_ext"): "iso2022jp csiso2022jp iso2022jp1 iso2022jp2 csiso2022jp2 iso2022jpms iso2022jpext iso2022jp3 iso2022jp2004 jis jis7 junet",
    ("cp949",): "euckr xeuckr ksc56011987 ksc56011989 ksc5601 korean cseuckr csksc56011987 isoir149 uhc xwindows949 ks5601",
    ("johab",): "johab ksc56011992 xjohab", ("iso2022_kr",): "iso2022kr csiso2022kr",
    ("utf_16_be", "utf_16_le", "utf_16"): "utf16 csutf16",
    ("utf_16_le", "utf_16_be", UTF_8, LEGACY): "ucs2 iso10646ucs2 unicode csunicode iso10646 unicode11 csucs2 ucs2internal",
    ("utf_16_le",): "utf16le unicodefeff csutf16le ucs2le unicodelittle unicodelittleunmarked",
    ("utf_16_be",): "utf16be unicodefffe csutf16be ucs2be unicodebig unicodebigunmarked",
    ("utf_32_be", "utf_32_le", "utf_32"): "utf32 ucs4 iso10646ucs4 csucs4 csutf32 ucs4internal",
    ("utf_32_le",): "utf32le csutf32le ucs4le",
    ("utf_32_be",): "utf32be csutf32be ucs4be",
    ("utf_7",): "utf7 unicode11utf7 csunicode11utf7 xunicode20utf7 xunicode11utf7 unicode20utf7 csutf7",
    ("utf-7-imap",): "utf7imap csutf7imap xutf7imap imap4modifiedutf7 ximap4modifiedutf7 ximapmodifiedutf7 imapmailboxname",
    ("cp037",): "ebcdiccpus ebcdiccpca ebcdiccpwt ebcdiccpnl csibm037 cpcan37", ("cp273",): "csibm273", ("cp424",): "ebcdiccphe csibm424",
    ("cp500",): "ebcdiccpbe ebcdiccpch csibm500", ("cp1140",): "ebcdicus37euro",
}  # fmt: skip
_BY_NAME = {name: codecs for codecs, names in _NAMED.items() for name in names.split()}

_COMMON = frozenset({UTF_8, LEGACY, "gb18030", "big5hkscs", "cp932", "euc_jis_2004", "iso2022_jp_2", "cp949", "utf_16_le", "utf_16_be", "koi8_r", "koi8_u",
                     "mac_roman", "mac_cyrillic", "cp866", "cp874", *(f"cp125{digit}" for digit in range(9)),
                     *(f"iso8859_{part}" for part in range(2, 17))})  # fmt: skip
"""First codecs of the charsets that every program knows. Of others, some read UTF-8 or Windows-1252."""
_WIDE = re.compile(r"(?:x|cs)*(?:ibm|cp|ccsid|ebcdic|iso2022|utf|ucs|unicode|iso10646|scsu|bocu|lmbcs|cesu)")
"""Names of a kind whose octets need not have ASCII's meaning, so that nobody can tell what an unknown one shows."""
_STATEFUL = frozenset({"utf_7", "utf-7-imap", "hz", "iso2022_jp_2", "iso2022_jp_ext", "iso2022_kr"})
_SHIFTS = re.compile(rb"[\x0e\x0f\x1b+&~]")
_LOCAL = ("cp1251", "koi8_r", "gb18030", "big5hkscs", "cp932", "euc_jis_2004", "cp949", "cp1250", "cp1253", "cp1255", "cp1256", "cp874")
"""What programs take octets for that name no charset, by where they are used."""


@lru_cache(maxsize=256)
def codecs_of(label: str) -> tuple[str, ...] | None:
    """The codecs (`decode`) by which programs read text of this charset, the right one first; None where unknown."""
    if len(label) > MAX_LABEL:
        return None
    name = _SEPARATORS.sub("", label.partition("*")[0].lower())
    found = _BY_NAME.get(name, ())
    if not found and (iso := _ISO.fullmatch(name)):
        found = _iso(int(iso[1]))
    if not found and (latin := _LATIN.fullmatch(name)):
        # Some programs take the number of the alphabet for that of the part.
        found = (*_iso(_LATIN_PARTS.get(int(latin[1]), 0)), *_iso(int(latin[1])))
    if not found and (page := _NUMBERED.fullmatch(name)):
        found = _CODE_PAGES.get(int(page[1]), ())
    if not found:
        return None if _WIDE.match(name) else (UTF_8, LEGACY)
    return tuple(dict.fromkeys(found if found[0] in _COMMON else (*found, UTF_8, LEGACY)))


def _iso(part: int) -> tuple[str, ...]:
    return (_WINDOWS_OF_ISO.get(part, f"iso8859_{part}"),) if part in _ISO_PARTS else ()


def decode(octets: bytes, codec: str) -> str:
    """The octets as text; what is no text in them is U+FFFD."""
    if codec == "utf-7-imap":
        return decode(octets.replace(b"+", b"+-").replace(b",", b"/").replace(b"&", b"+"), "utf_7")
    return octets.decode(codec, "replace")


def is_plain(octets: bytes, codec: str) -> bool:
    """Whether the octets are the same text in this charset and in ASCII."""
    if codec.startswith(("utf_16", "utf_32")) or codec in {"cp037", "cp273", "cp424", "cp500", "cp875", "cp1026", "cp1140"}:
        return False
    return octets.isascii() and not (codec in _STATEFUL and _SHIFTS.search(octets))


def readings(octets: bytes, label: str) -> tuple[str, ...] | None:
    """The texts that programs read in octets of this charset, the right one first; None where nobody can tell."""
    codecs = codecs_of(label)
    return None if codecs is None else texts(octets, codecs)


def texts(octets: bytes, codecs: Iterable[str]) -> tuple[str, ...]:
    """The different texts that these codecs make of the octets."""
    return tuple(dict.fromkeys(decode(octets, codec) for codec in codecs))


def raw_codecs(octets: bytes, labels: Iterable[str] = ()) -> tuple[str, ...]:
    """The codecs by which programs read octets that name no charset; `labels` are those named elsewhere nearby."""
    found = [UTF_8]
    if b"\x1b" in octets:
        found += ("iso2022_jp_2", "iso2022_jp_ext", "iso2022_kr")
    if b"~{" in octets:
        found.append("hz")
    if not octets.isascii():
        near = [codec for label in labels for codec in codecs_of(label) or ()]
        found += [codec for codec in near if not codec.startswith(("utf_16", "utf_32"))]
        try:
            octets.decode(UTF_8)
        except UnicodeDecodeError:
            found += (LEGACY, *_LOCAL)
    return tuple(dict.fromkeys(found))
