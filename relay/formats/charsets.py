"""Decodes octets of a named character set, and octets without one.
Standard: IANA's preferred MIME names (RFC 2978), each with the superset as which programs read it.

A name that is not in the table is in doubt: so are octets that its character set does not have. Programs guess about
octets without a name, so these have the text of each guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from relay.formats.doubt import InDoubt

UTF_8 = "utf_8"
UNNAMED = ""
"""In place of a codec: octets whose character set is not named, or by a name that says nothing of eight bits."""
MAX_GUESSED = 1000
"""Maximum length of a value whose octets are guessed about, in octets: it is decoded in each of the ways below."""

_GUESSES = (
    "cp1252", "cp1251", "koi8_r", "gb18030", "big5hkscs", "cp932", "euc_jp", "cp949",
    "cp1250", "cp1253", "cp1255", "cp1256", "cp874",
)  # fmt: skip
"""Regional default character sets of programs."""
_SEVEN_BITS = "seven bits"
"""ASCII without the eighth bit, as Windows' code page 20127 is read."""
_WITHOUT_EIGHTH = bytes(octet & 0x7F for octet in range(256))
_CONTROLS = re.compile("[\x80-\x9f]+")

_CODECS = {
    "utf-8": UTF_8, "utf8": UTF_8, "us-ascii": UNNAMED, "unknown-8bit": UNNAMED, "x-unknown": UNNAMED,
    "iso-8859-1": "latin_1", "iso-8859-11": "iso8859_11", "tis-620": "iso8859_11", "windows-874": "cp874",
    "iso-8859-8-i": "iso8859_8", "koi8-r": "koi8_r", "koi8-u": "koi8_u",
    "gb2312": "gb18030", "gbk": "gb18030", "gb18030": "gb18030", "big5": "cp950", "shift_jis": "cp932",
    "euc-jp": "euc_jp", "iso-2022-jp": "iso2022_jp", "euc-kr": "cp949", "ks_c_5601-1987": "cp949",
    **{f"iso-8859-{part}": f"iso8859_{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)},
    **{f"windows-{page}": f"cp{page}" for page in range(1250, 1259)},
}  # fmt: skip
"""Codecs by the name in lower case."""


def codec_of(label: bytes) -> str:
    """The codec of a character set by its name in the message. Raises InDoubt for an unknown one."""
    try:
        return _CODECS[label.decode("ascii", "replace").lower()]
    except KeyError:
        raise InDoubt("it is in a character set that is not known here") from None


def guesses(octets: bytes, near: Iterable[bytes] = (), *, named: bool = False) -> tuple[str, ...]:
    """The codecs that programs guess for octets without a name, for `decode`. Raises InDoubt.

    `near` are the names in the message's Content-Type. `named`: something says that they are ASCII, so that they are
    not UTF-8 to every program.
    """
    if octets.isascii() or (is_utf_8(octets) and not named):
        return (UTF_8,)
    if len(octets) > MAX_GUESSED:
        raise InDoubt(f"it has octets of no character set, and more than {MAX_GUESSED}")
    by_name = [codec_of(label) for label in near]
    return tuple(dict.fromkeys((UTF_8, *filter(None, by_name), *_GUESSES, _SEVEN_BITS)))


def guessed(octets: bytes, codec: str) -> str:
    """The octets in one of these codecs, without what it does not have and without control characters."""
    if codec == _SEVEN_BITS:
        return octets.translate(_WITHOUT_EIGHTH).decode("ascii")
    return _CONTROLS.sub("", octets.decode(codec, "replace"))


def texts(octets: bytes, codec: str) -> tuple[str, ...]:
    """The text of octets of this codec, or each guess for `UNNAMED`. Raises InDoubt."""
    if codec == UNNAMED:
        return tuple(dict.fromkeys(guessed(octets, each) for each in guesses(octets, named=True)))
    try:
        return (octets.decode(codec),)
    except UnicodeDecodeError:
        raise InDoubt("it has octets that its character set does not have") from None


def is_utf_8(octets: bytes) -> bool:
    """Whether the octets are valid UTF-8."""
    try:
        octets.decode(UTF_8)
    except UnicodeDecodeError:
        return False
    return True
