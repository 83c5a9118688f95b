"""Fingerprints as words that people can compare over a telephone.
Standard: the PGP word list (source in pgp_words.txt): one word an octet, from two alternating lists.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

WORDS = 16
"""Number of words, one for each of the first octets: another document with the same 128 bits cannot be found."""
LINE = 4
"""Number of words on a line."""


def words_of(fingerprint: str) -> tuple[str, ...]:
    """The words of a fingerprint, which is given in hexadecimal digits in the form of pairs.py."""
    octets = bytes.fromhex(fingerprint)[:WORDS]
    return tuple(_lists()[place % 2][octet] for place, octet in enumerate(octets))


def lines_of(fingerprint: str) -> list[str]:
    """Returns the words in lines of four."""
    words = words_of(fingerprint)
    return [" ".join(words[start : start + LINE]) for start in range(0, len(words), LINE)]


def same_words(text: str, fingerprint: str) -> bool:
    """Whether these are all the words of the fingerprint, in this order; ignores case, commas and line ends."""
    return text.replace(",", " ").lower().split() == [word.lower() for word in words_of(fingerprint)]


@cache
def _lists() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The words for octets at even and odd positions, by value."""
    text = resources.files("relay.identity").joinpath("pgp_words.txt").read_text(encoding="ascii")
    pairs = [line.split() for line in text.splitlines() if not line.startswith("#")]
    return tuple(even for even, _ in pairs), tuple(odd for _, odd in pairs)
