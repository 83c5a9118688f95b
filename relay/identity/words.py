"""A fingerprint as words that two people can read to each other over a telephone.
Standard: the PGP word list (pgp_words.txt says where it is from): one word an octet, two lists that take turns.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

LINE = 4
"""Number of words on a line, read out together."""


def words_of(fingerprint: str) -> tuple[str, ...]:
    """The 32 words of a fingerprint in hexadecimal digits, as pairs.py writes it: all of it, nothing is cut off."""
    octets = bytes.fromhex(fingerprint)
    return tuple(_lists()[place % 2][octet] for place, octet in enumerate(octets))


def lines_of(fingerprint: str) -> list[str]:
    """Returns the words in lines of four."""
    words = words_of(fingerprint)
    return [" ".join(words[start : start + LINE]) for start in range(0, len(words), LINE)]


def same_words(heard: str, fingerprint: str) -> bool:
    """Whether these are all the words of the fingerprint, in this order; case, commas and line ends do not count."""
    return heard.replace(",", " ").lower().split() == [word.lower() for word in words_of(fingerprint)]


@cache
def _lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words for octets at even and at odd places, by value."""
    text = resources.files("relay.identity").joinpath("pgp_words.txt").read_text(encoding="ascii")
    pairs = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return tuple(even for even, _ in pairs), tuple(odd for _, odd in pairs)
