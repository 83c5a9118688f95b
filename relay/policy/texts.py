"""Compares texts of a message with those of a rule as a reader would: what looks the same is equal.
Standard: Unicode NFKC and case folding, without what no program shows; `values` and `file_names` raise InDoubt.

The characters left out are a list of code points here: the tables of Python's versions differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from relay.formats import charsets, words
from relay.formats.doubt import InDoubt

_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad"  # controls but those that are blanks, and the soft hyphen
    "\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffd"  # U+FFFD replaces octets that are no text
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "]++"
)
"""Unicode's Default_Ignorable_Code_Point, and what programs drop besides."""
_DOUBTFUL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u115f\u1160\u2028\u2029\u202d\u202e\u3164\uffa0]")
"""Controls, ends of lines, overrides of the order of display, and fillers, which are blanks to some programs only."""
_MANY_SIGNS = re.compile("(?:[^\\w\x00-\x7f]|[\uff9e\uff9f]){30,}+")
MAX_MARKS = 30
"""Maximum number of marks among signs in a row; to order more would take the square of their number."""
_BRAILLE_BLANK = "\u2800"
_USUAL_NAME = re.compile(rb"[A-Za-z0-9 ,;'()\[\]{}+_.&#!~@^$=-]*+")
"""A file name that all programs read and save alike, except for dots and blanks at its end."""
_STREAM = "::"
"""Separator between a file name and the name of its stream (NTFS)."""


def plain(text: str) -> str:
    """The text in comparable form: case-folded, without invisible characters, in NFKC, with single blanks."""
    if text.isascii():
        folded = text.lower()
        return " ".join((folded if folded.isprintable() else _UNSEEN.sub("", folded)).split())
    text = _UNSEEN.sub("", text).replace(_BRAILLE_BLANK, " ")
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(unicodedata.normalize("NFKC", folded).split())


def values(octets: bytes, near: Iterable[bytes] = ()) -> set[str]:
    """The `plain` texts that programs show for a field's value. Raises InDoubt."""
    return set(map(plain, _shown(octets, near)))


def _shown(octets: bytes, near: Iterable[bytes] = ()) -> set[str]:
    texts = words.readings(octets.replace(b"\r\n", b""), near)
    if all(map(_DOUBTFUL.search, texts)):  # a wrong guess may have any character
        raise InDoubt("it has control characters, or others that programs show differently")
    if any(not text.isascii() and any(map(_has_many_marks, _MANY_SIGNS.findall(text))) for text in texts):
        raise InDoubt(f"it has more than {MAX_MARKS} marks in a row")
    return texts


def _has_many_marks(signs: str) -> bool:
    """Whether too many of these are combining marks, or letters that NFKC makes ones."""
    return sum(letter in "\uff9e\uff9f" or unicodedata.combining(letter) > 0 for letter in signs) > MAX_MARKS


def file_names(octets: bytes) -> set[str]:
    """The `plain` names under which programs save a file. Raises InDoubt.

    Percent signs may be decoded, and directories dropped. Windows drops trailing dots and blanks.
    """
    names = {octets.decode("ascii")} if _USUAL_NAME.fullmatch(octets) else _shown(octets)
    for name in [each for each in names if "%" in each]:
        decoded = unquote_to_bytes(name)
        if not charsets.is_utf_8(decoded):
            raise InDoubt("it has percent signs that are no text")
        names |= _shown(decoded)
    if any(_STREAM in name for name in names):
        raise InDoubt(f"it has {_STREAM}")
    names |= {re.split(r"[/\\]", name)[-1] for name in names}
    compared = set(map(plain, names))
    return (compared | {name.rstrip(" .") for name in compared}) - {""}
