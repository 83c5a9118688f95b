"""Decodes the text of a field with encoded words, or raises InDoubt for words that do not keep to the standard.
Standard: RFC 2047, RFC 2231 (5); two of its rules that ordinary mail breaks are not asked for.

Read all the same are a word that touches other text, and letters that are cut between two words. These have both texts
that programs show: of the words joined, and of each word on its own. Time is linear in the octets.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from relay.formats import charsets
from relay.formats.doubt import InDoubt

_WORD = re.compile(rb"=\?([^?*\x00-\x20]++)(?:\*[A-Za-z0-9-]*+)?\?([BbQq])\?([!->@-~]++)\?=")
_BEGINNING = re.compile(rb"=\?[^?]*+\?[A-Za-z]\?")
_BLANKS = re.compile(rb"[ \t\r\n]*+")
_Q = re.compile(rb"(?:[!-<>-~]++|=[0-9A-Fa-f]{2})++")


class _Piece(NamedTuple):
    """An encoded word, or what stands around one: its codec, and the decoded octets."""

    codec: str
    octets: bytes
    is_word: bool


def readings(octets: bytes, near: Iterable[bytes] = ()) -> set[str]:
    """The texts that programs show for an unfolded value: one, or a few where they guess or join. Raises InDoubt.

    `near` are character sets that the message names elsewhere: some programs decode raw octets with them.
    """
    pieces = list(_pieces(octets))
    runs = [(codec, [piece.octets for piece in run]) for codec, run in groupby(pieces, key=lambda piece: piece.codec)]
    unnamed = [piece for piece in pieces if piece.codec == charsets.UNNAMED]
    raw, named = b"".join([piece.octets for piece in unnamed]), any(piece.is_word for piece in unnamed)
    texts: set[str] = set()
    for guess in charsets.guesses(raw, near, named=named):
        texts.add("".join([_text(b"".join(octets), codec, guess) for codec, octets in runs]))
        if len(runs) < len(pieces):
            texts.add("".join([_text(each, codec, guess, cut=True) for codec, octets in runs for each in octets]))
    return texts


def _pieces(octets: bytes) -> Iterator[_Piece]:
    """The words, and the octets around them, which have nothing encoded; without the blanks between two words."""
    place = 0
    for match in _WORD.finditer(octets):
        between = octets[place : match.start()]
        if between and not (place and _BLANKS.fullmatch(between)):
            yield _around(between)
        decode = _of_base64 if match[2] in b"Bb" else _of_quoted
        yield _Piece(charsets.codec_of(match[1]), decode(match[3]), is_word=True)
        place = match.end()
    if place < len(octets):
        yield _around(octets[place:])


def _around(octets: bytes) -> _Piece:
    if _BEGINNING.search(octets):
        raise InDoubt("it has an encoded word that is none")
    return _Piece(charsets.UTF_8 if charsets.is_utf_8(octets) else charsets.UNNAMED, octets, is_word=False)


def _of_quoted(encoded: bytes) -> bytes:
    if not _Q.fullmatch(encoded):
        raise InDoubt("it has an encoded word that is none")
    return binascii.a2b_qp(encoded.replace(b"_", b" ")) if b"=" in encoded else encoded.replace(b"_", b" ")


def _of_base64(encoded: bytes) -> bytes:
    try:
        octets = binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error:
        octets = b""
    if binascii.b2a_base64(octets, newline=False) != encoded:
        raise InDoubt("it has an encoded word that is none")
    return octets


def _text(octets: bytes, codec: str, guess: str, *, cut: bool = False) -> str:
    """The text of adjacent pieces of one codec; if `cut`, what they have at their ends may be no text."""
    if codec == charsets.UNNAMED:
        return charsets.guessed(octets, guess)
    return octets.decode(codec, "replace") if cut else charsets.texts(octets, codec)[0]
