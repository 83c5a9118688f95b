"""Decodes octets of a named character set in every way that some mail program does.
Standard: RFC 2978 and IANA's names, the labels of the WHATWG Encoding Standard, and other names that programs accept.

Programs disagree about charsets. To some us-ascii with 8 bits is Windows-1252, to others UTF-8. UTF-16 without a
byte order mark is read in either byte order, and an unknown name is ignored, guessed or left undecoded. Only the codecs
of these tables are used: Python has others, which take the square of the length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

MAX_LABEL = 80
"""Maximum length of a charset's name, in characters; a longer one is unknown."""

UTF_8 = "utf_8"
LEGACY = "cp1252"
"""The default charset of programs for text that is not UTF-8; a superset of IANA's Latin-1."""
GUESS = "guess"
"""UTF-8 if the octets are valid, else `LEGACY`."""
SEVEN_BITS = "seven_bits"
"""ASCII without the eighth bit, as Windows' code page 20127 is read."""
_UTF_7_IMAP = "utf_7_imap"

_NAMES = """
utf_8 guess              utf8 unicode11utf8 unicode20utf8 xunicode20utf8 csutf8 utf8mb4 cesu8 utf8sig
cp1252 utf_8             usascii ascii ansix341968 ansix341986 iso646us iso646irv1991 isoir6 us csascii 646
cp1252                   iso88591 isoir100 csisolatin1 ansi ansi1252
iso8859_2                isoir101
iso8859_3                isoir109
iso8859_4                isoir110
iso8859_5                isoir144 cyrillic csisolatincyrillic
iso8859_6                isoir127 arabic asmo708 ecma114 csisolatinarabic
iso8859_7                isoir126 greek greek8 ecma118 elot928 suneugreek csisolatingreek
iso8859_8                isoir138 hebrew visual logical csisolatinhebrew
iso8859_10               isoir157
cp1254                   isoir148
cp874                    tis620 tis62025 iso8859thai
cp866                    866
koi8_r                   koi8r koi8 koi cskoi8r
koi8_u                   koi8u koi8ru
koi8_t                   koi8t
kz1048                   kz1048 strk1048 rk1048
ptcp154                  ptcp154 csptcp154 cyrillicasian pt154
mac_roman                macintosh mac xmacroman csmacintosh macroman
mac_cyrillic             xmaccyrillic xmacukrainian maccyrillic macukraine
mac_greek                xmacgreek macgreek
mac_turkish              xmacturkish macturkish
mac_latin2               xmacce maccentraleurope maccenteuro xmaccentraleurroman
mac_iceland              xmacicelandic maciceland
mac_croatian             xmaccroatian maccroatian
mac_romanian             xmacromanian macromania
gb18030                  gb2312 gbk gb18030 xgbk chinese csgb2312 gb231280 csiso58gb231280 isoir58 cngb euccn csgbk
gb18030                  csgb18030 xeuccn eucgb2312cn gb180302000 gb180302022
hz                       hzgb2312 hz hzgb
big5hkscs cp950          big5 big5hkscs cnbig5 csbig5 xxbig5 xbig5 big5eten big5hk big5tw csbig5hkscs
cp932                    shiftjis sjis xsjis mskanji csshiftjis ms932 windows31j cswindows31j shiftjisx0213 pck
cp932                    shiftjis2004 xmsshiftjis
euc_jis_2004 euc_jp      eucjp xeucjp cseucpkdfmtjapanese eucjpms extendedunixcodepackedformatforjapanese ujis
euc_jis_2004 euc_jp      eucjis2004 eucjisx0213
iso2022_jp_2 iso2022_jp_ext  iso2022jp csiso2022jp iso2022jp1 iso2022jp2 csiso2022jp2 iso2022jpms iso2022jpext
iso2022_jp_2 iso2022_jp_ext  iso2022jp3 iso2022jp2004 jis jis7 junet
cp949                    euckr xeuckr ksc56011987 ksc56011989 ksc5601 korean cseuckr csksc56011987 isoir149 uhc
cp949                    xwindows949 ks5601
johab                    johab ksc56011992 xjohab
iso2022_kr               iso2022kr csiso2022kr
utf_16_be utf_16_le utf_16   utf16 csutf16
utf_16_le utf_16_be utf_8 cp1252  ucs2 iso10646ucs2 unicode csunicode iso10646 unicode11 csucs2 ucs2internal
utf_16_le                utf16le unicodefeff csutf16le ucs2le unicodelittle unicodelittleunmarked
utf_16_be                utf16be unicodefffe csutf16be ucs2be unicodebig unicodebigunmarked
utf_32_be utf_32_le utf_32   utf32 ucs4 iso10646ucs4 csucs4 csutf32 ucs4internal
utf_32_le                utf32le csutf32le ucs4le
utf_32_be                utf32be csutf32be ucs4be
utf_7                    utf7 unicode11utf7 csunicode11utf7 xunicode20utf7 xunicode11utf7 unicode20utf7 csutf7
utf_7_imap               utf7imap csutf7imap xutf7imap imap4modifiedutf7 ximap4modifiedutf7 imapmailboxname
cp037                    ebcdiccpus ebcdiccpca ebcdiccpwt ebcdiccpnl csibm037
cp273                    csibm273
cp424                    ebcdiccphe csibm424
cp500                    ebcdiccpbe ebcdiccpch csibm500
cp1140                   ebcdicus37euro
"""
"""Codecs in the order in which programs are likely to use them, and the charset's names without punctuation."""

_PAGES = """
cp1252                   367 819 20127 28591
cp932                    943
gb18030                  936 1386 51936 54936
hz                       52936
big5hkscs cp950          950 951
cp949                    51949
johab                    1361
euc_jis_2004 euc_jp      20932 51932
iso2022_jp_2 iso2022_jp_ext  50220 50221 50222
iso2022_kr               50225
koi8_r                   20866
koi8_u                   21866
utf_16_le                1200
utf_16_be                1201
utf_32_le                12000
utf_32_be                12001
utf_7                    65000
utf_8 guess              65001
mac_roman                10000
mac_greek                10006
mac_cyrillic             10007
mac_latin2               10029
mac_iceland              10079
mac_turkish              10081
"""
"""The same for code pages of Microsoft and IBM whose codecs have another name."""
_NUMBERED_CODECS = frozenset({
    "cp037", "cp273", "cp424", "cp437", "cp500", "cp720", "cp737", "cp775", "cp850", "cp852", "cp855", "cp856",
    "cp857", "cp858", "cp860", "cp861", "cp862", "cp863", "cp864", "cp865", "cp866", "cp869", "cp874", "cp875",
    "cp932", "cp949", "cp1006", "cp1026", "cp1125", "cp1140", "cp1250", "cp1251", "cp1252", "cp1253", "cp1254",
    "cp1255", "cp1256", "cp1257", "cp1258",
})  # fmt: skip
_EBCDIC = frozenset({"cp037", "cp273", "cp424", "cp500", "cp875", "cp1026", "cp1140"})
_ISO_2022 = ("iso2022_jp_2", "iso2022_jp_ext", "iso2022_kr")
_RARE = _EBCDIC | frozenset({
    "utf_7", "utf_7_imap", "utf_32_be", "utf_32_le", "johab", "iso2022_kr", "hz", "koi8_t", "kz1048", "ptcp154",
    "mac_greek", "mac_turkish", "mac_latin2", "mac_iceland", "mac_croatian", "mac_romanian", "cp437", "cp720",
    "cp737", "cp775", "cp850", "cp852", "cp855", "cp856", "cp857", "cp858", "cp860", "cp861", "cp862", "cp863",
    "cp864", "cp865", "cp869", "cp1006", "cp1125",
})  # fmt: skip
"""Codecs of charsets that some programs lack: those decode as UTF-8 or `LEGACY`."""
_LOCAL = (
    "cp1251", "koi8_r", "gb18030", "big5hkscs", "cp932", "euc_jis_2004", "cp949", "cp1250", "cp1253", "cp1255",
    "cp1256", "cp874", "iso8859_2",
)  # fmt: skip
"""Regional default charsets of programs for octets without a charset."""

_SAY_NOTHING = ((UTF_8, LEGACY), (LEGACY, UTF_8))
"""Results of `codecs_of` for an unknown charset and for us-ascii."""
_WITHOUT_EIGHTH = bytes(octet & 0x7F for octet in range(256))

_LATIN_PARTS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 9, 6: 10, 7: 13, 8: 14, 9: 15, 10: 16}
"""The part of ISO 8859 for each Latin alphabet."""
_LARGER = {1: LEGACY, 9: "cp1254", 11: "cp874"}
"""Supersets as which programs decode these parts of ISO 8859."""
_ISO_PARTS = frozenset(range(1, 17)) - {12}

_SIGNS = re.compile("[^0-9a-z]+")
_PAGE = re.compile("(?:x|ms|cs)*(?:cp|windows|win|ms|ibm|dos|codepage)0*([0-9]{2,5})")
_ISO = re.compile("(?:x|cs)*(?:iso)?8859([0-9]{1,2}?)(?:19[0-9]{2}|20[0-9]{2})?[ei]?")
_LATIN = re.compile("(?:cs)?(?:iso)?(?:latin|l)([0-9]{1,2})")
_NOT_ASCII = re.compile("(?:x|cs)*(?:ibm|cp|ccsid|ebcdic|iso2022|utf|ucs|unicode|iso10646|scsu|bocu|lmbcs)")
"""Names of charsets that need not be supersets of ASCII: an unknown one of these cannot be decoded."""
_IMAP_SHIFT = re.compile(rb"&([^-]*+)-")
_SHIFTS = {"utf_7": re.compile(rb"\+"), _UTF_7_IMAP: re.compile(b"&"), "hz": re.compile(b"~")} | dict.fromkeys(
    _ISO_2022, re.compile(rb"[\x0e\x0f\x1b]")
)
"""Shift sequences in ASCII text, by codec."""


def _table(text: str) -> dict[str, tuple[str, ...]]:
    rows = (re.split(" {2,}", line) for line in text.strip().splitlines())
    return {name: tuple(codecs.split()) for codecs, names in rows for name in names.split()}


_BY_NAME = _table(_NAMES)
_BY_PAGE = _table(_PAGES)


@lru_cache(maxsize=256)
def codecs_of(label: str) -> tuple[str, ...] | None:
    """The codecs (for `decode`) that programs use for this charset, the likeliest first; None if it is unknown.

    A language after a star (RFC 2231, 5) is ignored.
    """
    name = _SIGNS.sub("", label.partition("*")[0].lower())
    codecs = _BY_NAME.get(name) or _by_number(name) if len(label) <= MAX_LABEL else ()
    if not codecs:
        return None if _NOT_ASCII.match(name) else (UTF_8, LEGACY)
    return tuple(dict.fromkeys((*codecs, UTF_8, LEGACY) if codecs[0] in _RARE else codecs))


@lru_cache(maxsize=256)
def codecs_of_word(label: str) -> tuple[str, ...] | None:
    """As `codecs_of`, for an encoded word or parameter, whose octets may not match its label.

    Octets with an unhelpful label, us-ascii or an unknown one, are decoded as if without a label.
    """
    codecs = codecs_of(label)
    return (*codecs, SEVEN_BITS, *_ISO_2022, *_LOCAL) if codecs in _SAY_NOTHING else codecs


def _by_number(name: str) -> tuple[str, ...]:
    if iso := _ISO.fullmatch(name):
        return _iso(int(iso[1]))
    if latin := _LATIN.fullmatch(name):
        # Some programs use the number of the alphabet as that of the part.
        return (*_iso(_LATIN_PARTS.get(int(latin[1]), 0)), *_iso(int(latin[1])))
    if page := _PAGE.fullmatch(name):
        codec = f"cp{int(page[1]):03d}"
        return (codec,) if codec in _NUMBERED_CODECS else _BY_PAGE.get(page[1], ())
    return ()


def _iso(part: int) -> tuple[str, ...]:
    return (_LARGER.get(part, f"iso8859_{part}"),) if part in _ISO_PARTS else ()


def decode(octets: bytes, codec: str) -> str:
    """The octets as text; invalid sequences become U+FFFD."""
    if codec == GUESS:
        return octets.decode(UTF_8 if is_utf_8(octets) else LEGACY, "replace")
    if codec == SEVEN_BITS:
        return octets.translate(_WITHOUT_EIGHTH).decode("ascii")
    if codec == _UTF_7_IMAP:  # RFC 3501, 5.1.3
        return _IMAP_SHIFT.sub(_utf_7_shift, octets.replace(b"+", b"+-")).decode("utf_7", "replace")
    return octets.decode(codec, "replace")


def _utf_7_shift(shift: re.Match[bytes]) -> bytes:
    return b"+%b-" % shift[1].replace(b",", b"/") if shift[1] else b"&"


def is_utf_8(octets: bytes) -> bool:
    """Whether the octets are valid UTF-8."""
    try:
        octets.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True


def is_ascii(octets: bytes, codec: str) -> bool:
    """Whether this codec decodes the octets like ASCII, so that they may be split anywhere."""
    if codec in _EBCDIC or codec.startswith(("utf_16", "utf_32")):
        return False
    return octets.isascii() and not (codec in _SHIFTS and _SHIFTS[codec].search(octets))


def texts(octets: bytes, codecs: Iterable[str]) -> tuple[str, ...]:
    """The different texts that these codecs decode the octets to."""
    return tuple(dict.fromkeys(decode(octets, codec) for codec in codecs))


def raw_codecs(octets: bytes, labels: Iterable[str] = ()) -> tuple[str, ...]:
    """The codecs that programs use for octets without a charset; `labels` are charsets named nearby."""
    codecs = [UTF_8]
    if b"\x1b" in octets:
        codecs += _ISO_2022
    if b"~{" in octets:
        codecs.append("hz")
    if not octets.isascii():
        near = (codec for label in labels for codec in codecs_of(label) or ())
        codecs += [codec for codec in near if not codec.startswith(("utf_16", "utf_32"))]
        if not is_utf_8(octets):
            codecs += (LEGACY, *_LOCAL)
    return tuple(dict.fromkeys(codecs))
