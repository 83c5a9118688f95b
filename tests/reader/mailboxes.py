"""Characters, mailboxes and domains: what may stand in them, their one spelling, and when two are the same.

Standard: relay/FORMAT.md, 3.1 and 7; the list of Unicode 14.0's code points that stands beside it.
"""

import bisect
import re
import unicodedata
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NewType

Mailbox = NewType("Mailbox", str)  # in its one spelling

_LIST = Path(__file__).parents[2] / "relay" / "formats" / "unicode_14.txt"
_UNPRINTABLE = """
    0000-001F 007F-00A0 00AD 0600-0605 061C 06DD 070F 0890-0891 08E2 1680 180E 2000-200F 2028-202F 205F-206F 3000
    D800-F8FF FDD0-FDEF FEFF FFF0-FFFB 110BD 110CD 13430-1343F 1BCA0-1BCA3 1D173-1D17A E0000-E00FF E01F0-10FFFF
"""
_SPECIALS = set(' ()<>[]:;@\\,."')
_IGNORABLE = "034F 115F-1160 17B4-17B5 180B-180F FE00-FE0F E0100-E01EF"
_LETTERS = {"Ll", "Lo", "Lm", "Mn", "Mc", "Nd"}


def _points(ranges: str) -> list[int]:
    """Where membership begins and ends: a code point is in one of the ranges where an odd number lie at or before it."""
    pairs = [each.split("-") for each in ranges.split()]
    return sorted(chain.from_iterable((int(pair[0], 16), int(pair[-1], 16) + 1) for pair in pairs))


def _within(char: str, points: list[int]) -> bool:
    return bisect.bisect_right(points, ord(char)) % 2 == 1


@cache
def _assigned() -> list[int]:
    lines = _LIST.read_text(encoding="ascii").splitlines()
    return _points(" ".join(line for line in lines if not line.startswith("#")))


def printable(text: str) -> bool:
    """No control or format characters, no separators but the space, nothing private (3.1)."""
    return not any(_within(char, _points(_UNPRINTABLE)) or ord(char) & 0xFFFE == 0xFFFE for char in text)


def casefolded(text: str) -> str:
    """Under full case folding; what Unicode 14.0 does not assign stands for itself."""
    return "".join(char.casefold() if _within(char, _assigned()) else char for char in text)


def _is_dot_string(text: str) -> bool:
    return all(
        atom and not set(atom) & _SPECIALS and not re.search(r"[\0-\x1f\x7f-\x9f]", atom) for atom in text.split(".")
    )


def is_address(text: str) -> bool:
    """A mailbox in its one spelling, or a local part alone."""
    quoted = re.match(r'"((?:[^"\\<>]|\\["\\])*)"', text)
    local, rest = (quoted[0], text[quoted.end() :]) if quoted else re.fullmatch("([^@]*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    if not printable(text) or not (
        not _is_dot_string(re.sub(r"\\(.)", r"\1", quoted[1])) if quoted else _is_dot_string(local)
    ):
        return False
    return not rest or (
        rest[0] == "@" and (is_domain(rest[1:]) or re.fullmatch(r"\[[a-z0-9.:-]{1,255}\]", rest[1:]) is not None)
    )


def is_domain(text: str) -> bool:
    """A domain in its one spelling."""
    return len(text) <= 253 and all(re.fullmatch(r"[a-z0-9_-]{1,63}", label) for label in text.split("."))


def mailbox(address: str) -> Mailbox:
    """The one spelling of an address that a mail server says."""
    local, at, rest = address.rpartition("@")
    if not at:
        return Mailbox(address)
    if not _is_dot_string(local):
        quoted = re.fullmatch(r'"((?:[^"\\]|\\.)*)"', local, re.DOTALL)
        text = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) if quoted else local
        local = text if _is_dot_string(text) else '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return Mailbox(f"{local}@{domain(rest)}")


def domain(name: str) -> str:
    """The one spelling of a domain; of one that has none something that is equal to no other."""
    if name.isascii():
        return name.lower()
    labels = [label.lower() if label.isascii() else _a_label(label) for label in name.split(".")]
    return name if None in labels or not is_domain(".".join(map(str, labels))) else ".".join(map(str, labels))


def _a_label(label: str) -> str | None:
    """Lower case, Normalization Form C, Punycode; None for what is no U-label."""
    if not all(_within(char, _assigned()) for char in label):
        return None
    folded = unicodedata.normalize("NFC", "".join(char.lower() for char in label))
    if not all(
        char in "-\u3007" or (unicodedata.category(char) in _LETTERS and not _within(char, _points(_IGNORABLE)))
        for char in folded
    ):
        return None
    usual = folded.replace("\u00df", "ss").replace("\u03c2", "\u03c3")
    if folded.isascii() or unicodedata.normalize("NFKC", usual.casefold()) != usual:
        return None
    return "xn--" + folded.encode("punycode").decode("ascii")
