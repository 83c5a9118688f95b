"""Valid characters of addresses, key_IDs and names, and comparison of letters, independent of the Python version.
Standard: relay/FORMAT.md, 3.1: Unicode 14.0, whose code points later versions fold and compose as it does (UAX 15, 3).

Each Python release has tables of another Unicode version. A message that opens under one of them has to open under
the others. So characters that Unicode 14.0 does not assign are left unchanged here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import cache
from importlib import resources

_NOT_PRINTABLE = re.compile(
    "["
    "\x00-\x1f\x7f-\xa0\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680\u180e\u2000-\u200f\u2028-\u202f"
    "\u205f-\u206f\u3000\ud800-\uf8ff\ufdd0-\ufdef\ufeff\ufff0-\ufffb\ufffe\uffff"
    "\U000110bd\U000110cd\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0x10000, 0xE0000, 0x10000))
    + "\U000e0000-\U000e00ff\U000e01f0-\U0010ffff]"
)
"""Control and format characters, separators but the space, surrogates, private use, noncharacters."""


def is_printable(text: str) -> bool:
    """Whether each character is visible, and none affects the display of its neighbours."""
    return text.isprintable() if text.isascii() else _NOT_PRINTABLE.search(text) is None


def is_assigned(text: str) -> bool:
    """Whether Unicode 14.0 assigns all of these characters."""
    return text.isascii() or _later().search(text) is None


def lower(text: str) -> str:
    """The text in lower case, each letter on its own: in a word a final capital sigma is special."""
    return text.lower() if text.isascii() else _of_assigned(lambda piece: "".join(map(str.lower, piece)), text)


def casefold(text: str) -> str:
    """The text under full case folding."""
    return text.lower() if text.isascii() else _of_assigned(str.casefold, text)


def nfc(text: str) -> str:
    """The text in Normalization Form C."""
    return text if text.isascii() else _of_assigned(lambda piece: unicodedata.normalize("NFC", piece), text)


def nfkc(text: str) -> str:
    """The text in Normalization Form KC."""
    return text if text.isascii() else _of_assigned(lambda piece: unicodedata.normalize("NFKC", piece), text)


def _of_assigned(change: Callable[[str], str], text: str) -> str:
    pieces = _later().split(text)
    pieces[::2] = map(change, pieces[::2])
    return "".join(pieces)


def load() -> None:
    """Loads the table of unassigned characters in advance; else the first text that is not ASCII does."""
    _later()


@cache
def _later() -> re.Pattern[str]:
    """Runs of characters that Unicode 14.0 does not assign."""
    lines = resources.files("relay.formats").joinpath("unicode_14.txt").read_text(encoding="ascii").splitlines()
    ranges = (each.partition("-") for line in lines if not line.startswith("#") for each in line.split())
    members = "".join(f"\\U{int(first, 16):08x}-\\U{int(last or first, 16):08x}" for first, _, last in ranges)
    return re.compile(f"([^{members}]+)")
