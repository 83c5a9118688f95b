"""Compares texts of a message with those of a rule as a reader would: what looks the same is equal.
Standard: Unicode NFKC and case folding, without what no program shows; the bound on marks keeps it linear.

The characters left out are a list of code points here: the tables of Python's versions differ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_to_bytes

from relay.formats import charsets
from relay.policy import words

_UNSEEN = re.compile(
    "["
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad"  # controls but those that are blanks, and the soft hyphen
    "\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffd"  # U+FFFD replaces octets that are no text
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "]++"
)
"""Unicode's Default_Ignorable_Code_Point, and what programs drop besides."""
_MARKS_IN_A_ROW = re.compile("((?:[^\\w\x00-\x7f]|[\uff9e\uff9f]){8})")
_JOINER = "\u034f"
"""Inserted among many marks it keeps their ordering linear instead of quadratic (UAX #15, 13)."""
_LINE_ENDS = re.compile("[\n\x0b\x0c\r\x1c-\x1f\x85\u2028\u2029]++")
_OVERRIDES = re.compile("[\u202d\u202e]")
_USUAL_NAME = re.compile(rb"[A-Za-z0-9 ,;'()\[\]{}+_.&#!~@^$=-]*+")
"""A file name that all programs read and save alike, except for dots and blanks at its end."""
_BRAILLE_BLANK = "\u2800"
_FILLERS = re.compile("[\u115f\u1160\u3164\uffa0]")
"""Some programs show these as blanks, and some do not show them."""
_EIGHTEEN, _FOUR = "\ufdfa", "\ufdf2"
MAX_EIGHTEENS = 50
"""Maximum number of the one character that NFKC makes eighteen of; more are compared as one that it makes four of."""
_CUT = re.compile("[%/\\\\\0\n\x0b\x0c\r\x1c-\x1f\x85\u2028\u2029]|::")
"""What occurs in names that are not saved as written."""
_STREAM = "::$"
"""Separator between a file name and the name of its stream (NTFS)."""


def plain(text: str) -> str:
    """The text in comparable form: case-folded, without invisible characters, in NFKC, with single blanks."""
    if text.isascii():
        folded = text.lower()
        return " ".join((folded if folded.isprintable() else _UNSEEN.sub("", folded)).split())
    text = _UNSEEN.sub("", text).replace(_BRAILLE_BLANK, " ")
    if _MARKS_IN_A_ROW.search(text) or text.count(_EIGHTEEN) > MAX_EIGHTEENS:
        text = text.replace(_EIGHTEEN, _FOUR)
        folded = _compatible(_compatible(text).casefold())
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        folded = unicodedata.normalize("NFKC", folded)  # usually a no-op
    return " ".join(folded.split())


def _compatible(text: str) -> str:
    """The text in NFKC, in which no more than eight marks in a row are put in order."""
    parted = _MARKS_IN_A_ROW.sub(rf"\1{_JOINER}", text)
    return unicodedata.normalize("NFKC", parted).replace(_JOINER, "")


def values(octets: bytes, max_work: int, labels: Iterable[str] = ()) -> tuple[set[str] | None, int]:
    """The `plain` readings of a field value, and the work they took; None if it counts as any text.

    That is if `words.readings` fails, or if the order of characters is overridden: a reader then sees other text.
    """
    readings, work = words.readings(octets.replace(b"\r\n", b""), max_work, labels)
    if readings is None or any(map(_is_overridden, readings)):
        return None, work
    return {plain(form) for text in readings for form in _forms(text)}, work


def _is_overridden(text: str) -> bool:
    """Whether the display order of characters differs from the order of the text."""
    return not text.isascii() and _OVERRIDES.search(text) is not None


def _forms(text: str) -> Iterator[str]:
    """The text as displayed by different programs: without line ends, cut at a NUL, with blanks for fillers."""
    yield text
    if text.isascii() and text.isprintable():
        return
    if _LINE_ENDS.search(text):
        yield _LINE_ENDS.sub("", text)
    if "\0" in text:
        yield text.partition("\0")[0]
    if _FILLERS.search(text):
        yield _FILLERS.sub(" ", text)


def file_names(octets: bytes, max_work: int, labels: Iterable[str] = ()) -> tuple[set[str] | None, int]:
    """The same for a file name, also as cut by programs and operating systems when they save the file."""
    if _USUAL_NAME.fullmatch(octets):
        name = plain(octets.decode("ascii"))
        names = {name, name.rstrip(" .")}
        names.discard("")
        return names, 0
    readings, work = words.readings(octets.replace(b"\r\n", b""), max_work, labels)
    if readings is None or any(map(_is_overridden, readings)):
        return None, work
    return {form for text in readings for form in saved(text)} - {""}, work


def saved(name: str) -> set[str]:
    """The `plain` names under which some program may save a file of this name.

    Percent signs are decoded; directories, and what follows a NUL, are dropped. Windows drops trailing dots and blanks.
    """
    if not _CUT.search(name):
        compared = plain(name)
        return {compared, compared.rstrip(" .")}
    names = {name}
    if "%" in name:
        octets = unquote_to_bytes(name)
        names.update(charsets.texts(octets, (charsets.UTF_8, charsets.GUESS)))
    forms = {form for each in names for form in _forms(each)}
    forms |= {re.split(r"[/\\]", each)[-1] for each in forms}
    forms |= {each.partition(_STREAM)[0] for each in forms if _STREAM in each}
    plain_forms = set(map(plain, forms))
    return plain_forms | {each.rstrip(" .") for each in plain_forms}
