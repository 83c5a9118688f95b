"""Compares texts of a message with those of a rule as a reader would: what looks the same is the same.
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
    "\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffd"  # U+FFFD stands for octets that are no text
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "]++"
)
"""Unicode's Default_Ignorable_Code_Point, and what programs drop besides."""
_MARKS_IN_A_ROW = re.compile("((?:[^\\w\x00-\x7f]|[\uff9e\uff9f]){8})")
_JOINER = "\u034f"
"""Put among many marks it keeps linear what takes the square of their number: to order them (UAX #15, 13)."""
_LINE_ENDS = re.compile("[\n\x0b\x0c\r\x1c-\x1f\x85\u2028\u2029]++")
_OVERRIDES = re.compile("[\u202d\u202e]")
_USUAL_NAME = re.compile(rb"[A-Za-z0-9 ,;'()\[\]{}+_.&#!~@^$=-]*+")
"""A file name that is read and saved alike by all programs, but for dots and blanks at its end."""
_BRAILLE_BLANK = "\u2800"
_FILLERS = re.compile("[\u115f\u1160\u3164\uffa0]")
"""Some programs show these as blanks, and some do not show them."""
_EIGHTEEN, _FOUR = "\ufdfa", "\ufdf2"
MAX_EIGHTEENS = 50
"""Maximum number of the one character that NFKC makes eighteen of; more are compared as one that it makes four of."""
_CUT = re.compile("[%/\\\\\0\n\x0b\x0c\r\x1c-\x1f\x85\u2028\u2029]|::")
"""What there is in names that are saved otherwise than they are written."""
_STREAM = "::$"
"""What stands between a file's name and that of a stream of it (NTFS)."""


def plain(text: str) -> str:
    """As texts are compared: no case, no invisible characters, one form of Unicode (NFKC), blanks made single."""
    if text.isascii():
        folded = text.lower()
        return " ".join((folded if folded.isprintable() else _UNSEEN.sub("", folded)).split())
    text = _UNSEEN.sub("", text).replace(_BRAILLE_BLANK, " ")
    if _MARKS_IN_A_ROW.search(text) or text.count(_EIGHTEEN) > MAX_EIGHTEENS:
        text = text.replace(_EIGHTEEN, _FOUR)
        folded = _compatible(_compatible(text).casefold())
    else:
        folded = unicodedata.normalize("NFKC", text).casefold()
        folded = unicodedata.normalize("NFKC", folded)  # which is mostly nothing to do
    return " ".join(folded.split())


def _compatible(text: str) -> str:
    """The text in NFKC, in which no more than eight marks in a row are put in order."""
    parted = _MARKS_IN_A_ROW.sub(rf"\1{_JOINER}", text)
    return unicodedata.normalize("NFKC", parted).replace(_JOINER, "")


def values(octets: bytes, max_work: int, labels: Iterable[str] = ()) -> tuple[set[str] | None, int]:
    """The readings of a field's value as `plain`, and what work they were; None where it counts as any text.

    That is where `words.readings` cannot tell, or the order of characters is overridden: a reader sees other text.
    """
    found, work = words.readings(octets.replace(b"\r\n", b""), max_work, labels)
    if found is None or any(map(_is_overridden, found)):
        return None, work
    return {plain(form) for text in found for form in _forms(text)}, work


def _is_overridden(text: str) -> bool:
    """Whether the order in which characters are displayed is another than that of the text."""
    return not text.isascii() and _OVERRIDES.search(text) is not None


def _forms(text: str) -> Iterator[str]:
    """The text, and without ends of lines in it or what follows a NUL, or with blanks for fillers, as some show it."""
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
    """The same of a file name: also as programs and operating systems cut it when they save the file."""
    if _USUAL_NAME.fullmatch(octets):
        name = plain(octets.decode("ascii"))
        names = {name, name.rstrip(" .")}
        names.discard("")
        return names, 0
    found, work = words.readings(octets.replace(b"\r\n", b""), max_work, labels)
    if found is None or any(map(_is_overridden, found)):
        return None, work
    return {form for text in found for form in saved(text)} - {""}, work


def saved(name: str) -> set[str]:
    """The names as `plain` under which some program may save a file of this name.

    Percent signs are read, and directories left out, and so is what follows a NUL. Windows drops dots and blanks at
    the end.
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
    found = set(map(plain, forms))
    return found | {each.rstrip(" .") for each in found}
