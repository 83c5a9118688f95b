"""Parses a MIME header field with parameters, such as Content-Type, in every way that some mail program does.
Standard: RFC 2045 5.1, RFC 2183, RFC 2231; time and memory are linear in the field, and nothing raises.

Mail programs disagree about malformed fields. They differ in where a quoted text ends, whether a comment counts, and
which of two values applies. `Structured.readings` has the text of each of them, so that a rule finds what any program
shows. Every `name=` is a parameter, even within quotes: some program parses the quotes differently.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from relay.formats import charsets

MAX_OCTETS = 8192
"""Maximum length of a field, in octets; no mail program writes as many."""
MAX_PARAMETERS = 128
"""Maximum number of parameters; RFC 2231 splits a long file name into as many as a field holds."""
MAX_COMMENT_SIGNS = 200
"""Maximum number of parentheses."""
MAX_GROWTH = 4
"""Maximum length of all readings together, as a multiple of the field's length ..."""
MIN_GROWTH_OCTETS = 1000
"""... and in addition to it, in octets."""

_WORD = r"[A-Za-z0-9!#$&+./:?@^_`{|}~-]++"
_ENCODED = r"=\?[A-Za-z0-9*_-]++\?(?:[Bb]\?[A-Za-z0-9+/]*+=*+|[Qq]\?(?:[A-Za-z0-9!*+,./_-]++|=[0-9A-F]{2})*+)\?="
_IN_QUOTES = rf"(?:[A-Za-z0-9 !#$&+,./:?@^_`{{|}}~-]++|(?<=[_-])=|(?:(?<=\")|(?<=\?= )){_ENCODED})*+"
"""An encoded word is at the beginning or after another: text before its `=` could be a name."""
_PLAIN = re.compile(rf"[ \t]*+({_WORD})[ \t]*+((?:;[ \t]*+{_WORD}=(?:{_WORD}|\"{_IN_QUOTES}\")[ \t]*+)*+);?[ \t]*+")
"""A field that all programs parse alike, as most are."""
_PLAIN_PAIR = re.compile(rf"({_WORD})=(?:({_WORD})|\"({_IN_QUOTES})\")")
# Python 3.11 raises SystemError for a captured group within a possessive one.
_NAME = rb"[^\x00- \x7f-\xff;=*\"(),<>]"
_NO_SIGN = rb"[^!-~]*+"
"""Blanks, and octets that are not ASCII, which some programs take for blanks."""
_PARAMETER = re.compile(
    rb"(?<!%b)(%b++)%b(?:\*%b([0-9]++))?%b(\*)?%b\"?+%b=[ \t]*+"
    % (_NAME, _NAME, _NO_SIGN, _NO_SIGN, _NO_SIGN, _NO_SIGN, _NO_SIGN)
)
"""Name, number of the section, and the sign of an encoded value (RFC 2231, 7)."""
_ODD_HEAD = re.compile(rb'[^;,=]*?[^\t -~]|[^;,=]*?[\\"]')
"""A type or disposition with characters that programs may drop."""
_QUOTED = re.compile(rb'"((?:[^"\\]++|\\.)*+)"?', re.DOTALL)
_UNTIL_SEMICOLON = re.compile(rb'(?:[^";]++|"(?:[^"\\]++|\\.)*+"?)*+', re.DOTALL)
_WORDS = re.compile(rb"(?:=\?[^?]*+\?[BbQq]\?[^?]*+\?=[ \t]*+)++")
_COMMENT_SIGN = re.compile(rb'\\.|[()"]', re.DOTALL)
_ODD_FOLD = re.compile(rb"[^; \t\r\n][ \t]*+\r\n")
_FOLD = re.compile(rb"\r\n[ \t]*+")
_NUL = b"\2"
_NO_STAND_INS = bytes.maketrans(b"\0\1\2\r\n", _NUL + b"\3\3  ")
"""Frees two octets as temporary placeholders for backslash and quote; NUL gets a third one."""
_HEAD = re.compile(rb"[ \t]*+([^ \t;/]*+)(?:[ \t]*+/[ \t]*+([^ \t;/]*+))?")
_NO_HEXADECIMAL = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NONE: Mapping[str, tuple[()]] = MappingProxyType({})


class Structured(NamedTuple):
    """A field's value and its parameters.

    `value` is the type or disposition by the standards: in lower case, without comments and blanks. `values` adds what
    other programs read. `plain` is True if all programs read the same. `unclear` is True if a limit was exceeded, so
    that there may be further readings.
    """

    value: str = ""
    values: tuple[str, ...] = ("",)
    plain: bool = False
    unclear: bool = False
    texts_by_name: Mapping[str, tuple[str, ...]] = _NONE
    octets_by_name: Mapping[str, tuple[bytes, ...]] = _NONE
    """Empty for a plain field: its texts are ASCII."""

    def readings(self, name: str) -> tuple[str, ...]:
        """Each text that some mail program reads for this parameter (name in lower case); () without one.

        For a valid field the standard reading comes first. Encoded words (RFC 2047) are left encoded.
        """
        return self.texts_by_name.get(name, ())

    def octets(self, name: str) -> tuple[bytes, ...]:
        """The same as raw octets, for comparing boundaries."""
        if self.plain:
            return tuple(map(str.encode, self.readings(name)))
        return self.octets_by_name.get(name, ())


class _Section(NamedTuple):
    """One `name*number*=value`: the number is b"" if missing, the value is in each style (`_styles`)."""

    number: bytes
    encoded: bool
    styles: tuple[bytes, ...]


def parse(value: bytes) -> Structured:
    """The value of a field, after the colon, in every reading; it may be folded."""
    if len(value) > MAX_OCTETS:
        return Structured(unclear=True)
    return _plain(value) or _parsed(value)


def _plain(value: bytes) -> Structured | None:
    """Parses a field with one reading, far faster than others; None for any other."""
    text, folded = value.decode("latin-1"), b"\r\n" in value
    match = _PLAIN.fullmatch(text.replace("\r\n", "") if folded else text)
    if match is None or (folded and _ODD_FOLD.search(value)):
        return None
    kind, parameters = match[1].lower(), match[2]
    pairs = _PLAIN_PAIR.findall(parameters)
    texts: dict[str, tuple[str, ...]] = {}
    for name, word, quoted in pairs:
        texts[name.lower()] = (word or quoted,)
    return Structured(kind, (kind,), True, False, texts) if len(texts) == len(pairs) else None


def _parsed(value: bytes) -> Structured:
    """Parses any field."""
    texts, clear = _without_comments(value)
    clear = clear and not _ODD_HEAD.match(texts[0])
    values = dict.fromkeys(head for text in texts for head in _heads(text))
    sections_by_name: dict[str, list[list[_Section]]] = {}
    budget = MAX_GROWTH * len(value) + MIN_GROWTH_OCTETS
    for text in texts:
        sections, used = _sections(text, budget)
        clear = clear and used >= 0
        for name, each in sections.items():
            sections_by_name.setdefault(name, []).append(each)
    octets: dict[str, tuple[bytes, ...]] = {}
    readings: dict[str, tuple[str, ...]] = {}
    for name, variants in sections_by_name.items():
        candidates: dict[bytes, None] = {}
        found_texts: dict[str, None] = {}
        for candidate, charset in dict.fromkeys(each for sections in variants for each in _candidates(sections)):
            candidates[candidate] = None
            texts_found = texts_of(candidate, charset)
            clear = clear and texts_found is not None
            found_texts.update(dict.fromkeys(texts_found or ()))
            budget -= len(candidate)
            if budget < 0:
                return Structured(next(iter(values)), tuple(values), unclear=True)
        octets[name], readings[name] = tuple(candidates), tuple(found_texts)
    return Structured(next(iter(values)), tuple(values), False, not clear, readings, octets)


def texts_of(octets: bytes, charset: str | None) -> tuple[str, ...] | None:
    """The texts to which programs decode octets of this charset (its name from the message), the named one first.

    None if undecodable. Without a charset they try UTF-8, and then regional defaults.
    """
    codecs = charsets.codecs_of_word(charset) if charset else charsets.raw_codecs(octets)
    if codecs is not None and all(charsets.is_ascii(octets, codec) for codec in codecs):
        codecs = codecs[:1]
    return None if codecs is None else charsets.texts(octets, codecs)


def _without_comments(value: bytes) -> tuple[list[bytes], bool]:
    """The unfolded value, and other readings of its comments and folds; and whether these are all.

    The first one is by the standards.
    """
    flat = value.replace(b"\r\n", b"").translate(_NO_STAND_INS)
    texts, clear = [flat], True
    if b"(" in flat:
        clear = flat.count(b"(") + flat.count(b")") <= MAX_COMMENT_SIGNS
        if clear:
            texts = [_uncommented(flat, quotes=True), flat, _uncommented(flat, quotes=False)]
    if _ODD_FOLD.search(value):
        texts.append(_FOLD.sub(b"", value).translate(_NO_STAND_INS))
    return list(dict.fromkeys(texts)), clear


def _uncommented(text: bytes, *, quotes: bool) -> bytes:
    """The text without comments (RFC 5322, 3.2.2); `quotes`: parentheses within quotes begin none."""
    kept = []
    depth, begin, quoted = 0, 0, False
    for sign in _COMMENT_SIGN.finditer(text):
        octet = sign[0]
        if octet == b'"':
            quoted = not quoted if quotes and not depth else quoted
        elif octet == b"(" and not quoted:
            if not depth:
                kept.append(text[begin : sign.start()])
            depth += 1
        elif octet == b")" and depth:
            depth -= 1
            begin = sign.end()
    if not depth:
        kept.append(text[begin:])
    return b"".join(kept)


def _heads(text: bytes) -> Iterator[str]:
    """Readings of the value before the parameters."""
    match = _HEAD.match(text)
    if match:
        yield _head(match[1] if match[2] is None else match[1] + b"/" + match[2])
    whole = text.partition(b";")[0].strip()
    yield _head(whole)
    yield _head(whole.translate(None, b' \t"'))
    yield _head(whole.partition(b",")[0].strip())
    yield _head(whole.split(None, 1)[0] if whole else b"")


def _head(octets: bytes) -> str:
    return octets.decode("utf-8", "replace").lower()


def _sections(text: bytes, budget: int) -> tuple[dict[str, list[_Section]], int]:
    """The sections by name, in order, and their octets: negative if not all were parsed."""
    sections: dict[str, list[_Section]] = {}
    used = 0
    for count, match in enumerate(_PARAMETER.finditer(text)):
        styles = _styles(text, match.end())
        used += max(map(len, styles))
        if count >= MAX_PARAMETERS or used > budget:
            return sections, -used
        name = match[1].replace(b"\\", b"").decode("ascii").lower()
        sections.setdefault(name, []).append(_Section(match[2] or b"", match[3] is not None, styles))
    return sections, used


def _styles(text: bytes, at: int) -> tuple[bytes, ...]:
    """The readings of the value at offset `at` by kinds of programs, the standard one first.

    They differ in whether a backslash escapes (even a quote), and in whether the value continues after the quotes.
    Encoded words may or may not contain a semicolon.
    """
    end = text.find(b";", at)
    whole = text[at : end if end >= 0 else len(text)].strip()
    rest = _UNTIL_SEMICOLON.match(text, at)
    joined = rest[0].strip() if rest else whole
    if quoted := _QUOTED.match(text, at):
        inner = quoted[1]
        bare = inner if len(joined) <= len(quoted[0]) else _without_quotes(joined)
        quote = text.find(b'"', at + 1)
        first = text[at + 1 : quote if quote >= 0 else len(text)]
    else:
        inner, bare = whole, _without_quotes(joined)
        first = whole.split(None, 1)[0] if whole else b""
    run = _WORDS.match(text, at + 1 if quoted else at)
    words = run[0].strip() if run and (not quoted or b'"' in run[0]) else inner
    kinds: tuple[bytes, ...] = (inner, bare, first, whole.strip(b'"'), words)
    if not quoted and b"," in first:  # some programs end a value there
        kinds = (*kinds, first.partition(b",")[0])
    escaped = b"\\" in joined or b"\\" in whole
    styles = (*(map(_unescaped, kinds) if escaped else kinds), *kinds)
    return tuple(style.replace(_NUL, b"\0") for style in styles) if _NUL in whole or _NUL in joined else styles


def _unescaped(octets: bytes) -> bytes:
    """The octets without escaping backslashes. Replacing is far faster than a pattern."""
    return octets.replace(rb"\\", b"\0").replace(b"\\", b"").replace(b"\0", b"\\")


def _without_quotes(octets: bytes) -> bytes:
    """The octets without unescaped quotes."""
    hidden = octets.replace(rb"\\", b"\0").replace(rb"\"", b"\1")
    return hidden.replace(b'"', b"").replace(b"\1", rb"\"").replace(b"\0", rb"\\")


def _candidates(sections: list[_Section]) -> Iterator[tuple[bytes, str | None]]:
    """The possible values as octets, each with its charset; from sections of one name."""
    plain = [each for each in sections if not each.number]
    # Programs disagree which of two applies, and whether the encoded one takes precedence.
    for each in sorted(plain, key=lambda section: not section.encoded):
        for style in dict.fromkeys(each.styles):
            yield from _decoded([(each.encoded, style)])
    numbered = [each for each in sections if each.number]
    orders = dict.fromkeys(_orders(numbered))
    if numbered and len(numbered) < len(sections):
        # Some programs take an encoded value without a number for a further, first section.
        marked = [each for each in sections if each.number or each.encoded]
        orders.update(dict.fromkeys((tuple(marked), tuple(sorted(marked, key=lambda section: _rank(section.number))))))
    for order in orders:
        for parts in dict.fromkeys(
            zip(*[[(section.encoded, style) for style in section.styles] for section in order], strict=True)
        ):
            yield from _decoded(parts)


def _orders(numbered: list[_Section]) -> Iterable[tuple[_Section, ...]]:
    """The possible sequences of sections in a value: by number or by position, with and without duplicates."""
    if not numbered:
        return ()
    ranked = sorted(numbered, key=lambda section: _rank(section.number))
    last = {_rank(section.number): section for section in numbered}
    first = {_rank(section.number): section for section in reversed(numbered)}
    orders = [tuple(numbered), tuple(ranked)]
    for chosen in (last, first):
        whole = tuple(chosen[rank] for rank in sorted(chosen))
        orders.append(whole)
        connected = [
            section for place, section in enumerate(whole) if _rank(section.number) == _rank(str(place).encode())
        ]
        orders.append(tuple(connected) if whole[: len(connected)] == tuple(connected) else whole[:1])
    return dict.fromkeys(reversed(orders))


def _rank(number: bytes) -> tuple[int, bytes]:
    """Sort key of section numbers, which may be too long to convert."""
    digits = number.lstrip(b"0")
    return len(digits), digits


def _decoded(parts: Iterable[tuple[bool, bytes]]) -> Iterator[tuple[bytes, str | None]]:
    """The joined value of sections, and its charset: with percent signs and quotes decoded, or raw."""
    pairs = tuple(parts)
    whole = b"".join([octets for _, octets in pairs])
    (encoded, first), *following = pairs
    charset, rest = _charset_of(first)
    if encoded and charset is not None:
        yield _unpercent([(True, rest), *following]), charset
        yield _unpercent([(True, rest + b"".join([octets for _, octets in following]))]), charset
        return
    if any(encoded for encoded, _ in pairs):
        yield _unpercent(pairs), None
    yield whole, None
    if b"%" in whole:
        yield _unpercent([(True, whole)]), None
    if charset is not None and first.count(b"'") > 1:
        yield _unpercent([(True, rest + b"".join([octets for _, octets in following]))]), charset
    if whole[:1] + whole[-1:] in (b"''", b"<>"):
        yield whole[1:-1], None


def _charset_of(octets: bytes) -> tuple[str | None, bytes]:
    """The charset prefix of a value (RFC 2231, 4), or None, and the rest; the language may be missing."""
    charset, *others = octets.split(b"'", 2)
    if not others:
        return None, octets
    return charset.decode("ascii", "replace"), others[-1]


def _unpercent(parts: Iterable[tuple[bool, bytes]]) -> bytes:
    """The parts joined, with `%41` decoded in encoded ones; without a loop over the octets."""
    pieces = []
    for encoded, octets in parts:
        if encoded and b"%" in octets:
            signs = _NO_HEXADECIMAL.sub(b"=25", octets.replace(b"=", b"=3D"))
            pieces.append(binascii.a2b_qp(signs.replace(b"%", b"=")))
        else:
            pieces.append(octets)
    return b"".join(pieces)
