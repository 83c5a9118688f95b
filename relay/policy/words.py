"""Decodes text with encoded words in every way that some mail program does, even broken or cut words.
Standard: RFC 2047, RFC 2231 (5); time is linear in the octets times the readings, and both are bounded.

Programs differ in the charsets they know (relay/formats/charsets.py), and in what they make of a word against the
standard. Each such difference is a choice, which one program makes alike for all words; a reading is one
combination of choices. Choices without effect on the text are skipped, so a clean text has one reading.
"""

from __future__ import annotations

import binascii
import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from relay.formats import charsets

WORD_WORK = 64
"""Cost of an encoded word beside its octets, in octets."""
READING_WORK = 256
"""Cost of each reading, in octets."""
PLAIN_SHARE = 16
"""Factor by which ASCII text without encoded words is cheaper than other text."""

_STRICT = re.compile(rb"=\?([^?]*+)\?([BbQq])\?([^?]*+)\?=")
_BEGIN = re.compile(rb"=\?([^?]*+)\?([BbQq])\?")
_BLANKS = re.compile(rb"(?:[ \t\r\n\x0b\x0c\xa0]|\xc2\xa0)++")
_CLEAN_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_CLEAN_QUOTED = re.compile(rb"(?:[!-<>-~]++|=[0-9A-Fa-f]{2})*+")
_NO_ESCAPE = re.compile(rb"=(?![0-9A-Fa-f]{2})")
_CUT_ESCAPE = re.compile(rb"=(?:[ \t\r\n\x0b\x0c\xa0]|\xc2\xa0)++(?=[0-9A-Fa-f])")
_DANGLING = re.compile(rb"=[ \t\r\n]*+\Z")
_HALF_ESCAPE = re.compile(rb"=[0-9A-Fa-f]?\Z")
_NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/=]++")
_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")

Blanks = Literal["kept", "dropped", "dropped in escapes"]
Padding = Literal["ends a segment", "ignored", "ends all", "ends four", "of the alphabet for URLs"]
Joint = Literal["octets", "payloads", "none"]


class Word(NamedTuple):
    """One encoded word: the codecs of its charset, `B` or `Q`, and what is encoded."""

    codecs: tuple[str, ...]
    encoding: str
    payload: bytes


class _Choice(NamedTuple):
    """How a program decodes what the standard leaves open or forbids."""

    raw: str
    codecs: dict[tuple[str, ...], str]
    blanks: Blanks = "kept"
    dangling_kept: bool = True
    padding: Padding = "ends a segment"
    joint: Joint = "octets"
    cut_at_nul: bool = False


_USUAL = _Choice("", {})


class _UnknownCharset(Exception):
    """The charset is not supported."""


def readings(octets: bytes, max_work: int, labels: Iterable[str] = ()) -> tuple[set[str] | None, int]:
    """All texts that some mail program may decode an unfolded value to, and the work they took, in octets.

    None if it would exceed `max_work`, or if a word's charset is not supported. `labels` are charsets that the message
    names elsewhere: programs decode raw octets with them.
    """
    raw = charsets.raw_codecs(octets, labels)
    begun = octets.count(b"=?")
    plain = not begun and len(raw) == 1 and octets.isascii()
    work = len(octets) // PLAIN_SHARE if plain else len(raw) * (len(octets) + READING_WORK) + 2 * begun * WORD_WORK
    if work > max_work:
        return None, work
    if not begun:
        return set(charsets.texts(octets, raw)), work
    try:
        return _with_words(octets, raw, begun, max_work)
    except _UnknownCharset:
        return None, work


def _with_words(octets: bytes, raw: tuple[str, ...], begun: int, max_work: int) -> tuple[set[str] | None, int]:
    """The same for a value that may have encoded words."""
    tokens = tuple(_tokens(octets, lenient=False))
    each_work = len(octets) + READING_WORK + WORD_WORK * begun
    if len(raw) == 1 and (clean := _clean(tokens)) is not None:
        return {clean}, each_work
    texts, work = set(charsets.texts(octets, raw[:1])), each_work  # by a program without encoded words
    for variant in {tokens, tuple(_tokens(octets, lenient=True))}:
        count, choices = _choices(variant, raw)
        work += count * each_work
        if work > max_work:
            return None, work
        texts.update("".join(_reading(variant, choice)) for choice in choices)
    return texts, work


def _clean(tokens: Iterable[bytes | Word]) -> str | None:
    """The text of a value that conforms to the standard and has one reading; None for any other."""
    pieces = []
    for token in tokens:
        if isinstance(token, bytes):
            octets, codec = token, charsets.UTF_8
            if b"=?" in octets or b"?=" in octets:
                return None
        else:
            codec = token.codecs[0]
            clean = _CLEAN_QUOTED if token.encoding == "Q" else _CLEAN_BASE64
            if not token.payload or not clean.fullmatch(token.payload):
                return None
            octets = _octets(token, _USUAL)
        if b"\0" in octets or b"\x1b" in octets or (codec != charsets.UTF_8 and not charsets.is_ascii(octets, codec)):
            return None
        try:
            pieces.append(octets.decode(charsets.UTF_8))
        except UnicodeDecodeError:
            return None
    return "".join(pieces)


def _tokens(octets: bytes, *, lenient: bool) -> Iterator[bytes | Word]:
    """The words, and the octets between them without the blanks between two words.

    Lenient programs continue after a question mark within a word, and up to the end if the word has no end. They keep
    the blanks after an empty word.
    """
    place, after_word = 0, False
    for begin, end, word in _lenient(octets) if lenient else _strict(octets):
        between = octets[place:begin]
        if between and not (after_word and _BLANKS.fullmatch(between)):
            yield between
        yield word
        place, after_word = end, bool(word.payload) or not lenient
    if place < len(octets):
        yield octets[place:]


def _strict(octets: bytes) -> Iterator[tuple[int, int, Word]]:
    for match in _STRICT.finditer(octets):
        yield match.start(), match.end(), _word(match[1], match[2], match[3])


def _lenient(octets: bytes) -> Iterator[tuple[int, int, Word]]:
    place = 0
    while match := _BEGIN.search(octets, place):
        end = octets.find(b"?=", match.end())
        end = end if end >= 0 else len(octets)
        yield match.start(), end + 2, _word(match[1], match[2], octets[match.end() : end])
        place = end + 2


def _word(label: bytes, encoding: bytes, payload: bytes) -> Word:
    codecs = charsets.codecs_of_word(label.decode("ascii", "replace"))
    if codecs is None:
        raise _UnknownCharset
    return Word(codecs, encoding.decode().upper(), payload)


def _choices(tokens: Sequence[bytes | Word], raw: tuple[str, ...]) -> tuple[int, Iterator[_Choice]]:
    """The choices that may have an effect, and their number."""
    words = [each for each in tokens if isinstance(each, Word)]
    quoted = [each.payload for each in words if each.encoding == "Q"]
    odd = [each.payload for each in words if each.encoding == "B" and not _CLEAN_BASE64.fullmatch(each.payload)]
    blanks: list[Blanks] = ["kept"]
    if any(map(_BLANKS.search, quoted)):
        blanks += ["dropped", "dropped in escapes"]
    paddings: list[Padding] = ["ends a segment"]
    if odd:
        paddings += ["ignored", "ends all", "ends four"]
        if any(b"-" in each or b"_" in each for each in odd):
            paddings.append("of the alphabet for URLs")
    dangling = [True, False] if any(map(_DANGLING.search, quoted)) else [True]
    joints: list[Joint] = ["octets"]
    octets: dict[tuple[str, ...], list[bytes]] = {}
    for word in words:
        octets.setdefault(word.codecs, []).append(_octets(word, _USUAL))
    if any(not charsets.is_ascii(b"".join(each), codecs[0]) for codecs, each in octets.items() if len(each) > 1):
        joints.append("none")
    if len(words) > 1 and (odd or any(map(_HALF_ESCAPE.search, quoted))):
        joints.append("payloads")
    nul = [False, True] if any(b"\0" in octet for each in octets.values() for octet in each) else [False]
    codecs = [[(named, codec) for codec in _different(b"".join(each), named)] for named, each in octets.items()]
    raw = raw if any(isinstance(each, bytes) for each in tokens) else raw[:1]
    count = math.prod(map(len, (raw, *codecs, blanks, dangling, paddings, joints, nul)))
    chosen = itertools.product(raw, itertools.product(*codecs), blanks, dangling, paddings, joints, nul)
    return count, (
        _Choice(one, dict(pairs), kept, dangles, padding, joint, cut)
        for one, pairs, kept, dangles, padding, joint, cut in chosen
    )


def _different(octets: bytes, codecs: tuple[str, ...]) -> Collection[str]:
    """The codecs that decode the octets to different texts."""
    if len(codecs) == 1 or all(charsets.is_ascii(octets, codec) for codec in codecs):
        return codecs[:1]
    return {charsets.decode(octets, codec): codec for codec in reversed(codecs)}.values()


def _reading(tokens: Iterable[bytes | Word], choice: _Choice) -> Iterator[str]:
    """The pieces of one reading."""
    run: list[Word] = []
    for token in tokens:
        if isinstance(token, Word):
            run.append(token)
        else:
            yield from _run(run, choice)
            run = []
            yield charsets.decode(token, choice.raw)
    yield from _run(run, choice)


def _run(words: list[Word], choice: _Choice) -> Iterator[str]:
    """The texts of adjacent words."""
    if choice.joint == "none":
        yield from (charsets.decode(_octets(word, choice), choice.codecs[word.codecs]) for word in words)
        return
    if choice.joint == "payloads":
        words = [
            Word(codecs, encoding, b"".join([word.payload for word in same]))
            for (codecs, encoding), same in itertools.groupby(words, lambda word: (word.codecs, word.encoding))
        ]
    for named, same in itertools.groupby(words, lambda word: word.codecs):
        yield charsets.decode(b"".join([_octets(word, choice) for word in same]), choice.codecs[named])


def _octets(word: Word, choice: _Choice) -> bytes:
    """The decoded octets of a word."""
    octets = _of_quoted(word.payload, choice) if word.encoding == "Q" else _of_base64(word.payload, choice.padding)
    return octets.partition(b"\0")[0] if choice.cut_at_nul else octets


def _of_quoted(payload: bytes, choice: _Choice) -> bytes:
    if choice.blanks == "dropped":
        payload = _BLANKS.sub(b"", payload)
    elif choice.blanks == "dropped in escapes":
        payload = _CUT_ESCAPE.sub(b"=", payload)
    if not choice.dangling_kept:
        payload = _DANGLING.sub(b"", payload)
    payload = payload.replace(b"_", b" ")
    # A header has no soft line breaks, which a2b_qp would see.
    return binascii.a2b_qp(_NO_ESCAPE.sub(b"=3D", payload)) if b"=" in payload else payload


def _of_base64(payload: bytes, padding: Padding) -> bytes:
    if padding == "of the alphabet for URLs":
        payload = payload.translate(_URL_ALPHABET)
    payload = _NO_BASE64.sub(b"", payload)
    if padding in {"ignored", "ends four"}:
        payload = payload.replace(b"=", b"")
        payload = payload[: len(payload) // 4 * 4] if padding == "ends four" else payload
    segments = payload.split(b"=")
    return b"".join(map(_of_segment, segments[:1] if padding == "ends all" else segments))


def _of_segment(segment: bytes) -> bytes:
    """Decoded base64 without padding; a single last character is dropped."""
    kept = segment[:-1] if len(segment) % 4 == 1 else segment
    return binascii.a2b_base64(kept + b"==") if kept else b""
