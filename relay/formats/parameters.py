"""Parses a MIME header field with parameters, such as Content-Type, if it keeps to the standard; else raises InDoubt.
Standard: RFC 2045 5.1, RFC 2183, RFC 2231; time and memory are linear in the field.

Of what the standard has, comments are in doubt, for programs disagree about them. Of what it has not, `/:?@` is read
in a value without quotes, and a semicolon at the end. In quotes so are encoded words, and octets that are not ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from relay.formats import charsets
from relay.formats.doubt import InDoubt

MAX_OCTETS = 8192
"""Maximum length of a field, in octets; no mail program writes as many."""

_HEAD = re.compile(rb"[ \t\n]*+([!#$&+.^_`{|}~0-9A-Za-z-]++(?:/[!#$&+.^_`{|}~0-9A-Za-z-]++)?)")
_PARAMETER = re.compile(
    rb"[ \t]*+;[ \t]*+(?:\n[ \t]++)?"
    rb"([A-Za-z0-9_.-]++)(?:\*([0-9]{1,3}))?(\*)?="
    rb"(?:([A-Za-z0-9!#$&+./:?@^_`{|}~%'-]++)|\"((?:[^\"\\\x00-\x1f\x7f]++|\\[\"\\])*+)\")"
)
"""Name, number of the section and the sign of an encoded value (RFC 2231, 7), and the value without or with quotes."""
_END = re.compile(rb"[ \t]*+;?[ \t]*+(?:\n[ \t]*+)?")
_FOLDED_WORDS = re.compile(rb"\?=\r\n[ \t]++=\?")
_PARAMETER_IN_QUOTES = re.compile(rb"(?:name|boundary)[^a-z=]*+=", re.IGNORECASE)
"""A text in which a program that does not see the quotes would find a parameter."""
_EXTENDED = re.compile(rb"([A-Za-z0-9_.:()+-]*+)'[A-Za-z0-9-]*+'")
_ENCODED = re.compile(rb"(?:[A-Za-z0-9!#$&+.^_`{|}~-]++|%[0-9A-Fa-f]{2})*+")


class Structured(NamedTuple):
    """A field's value, in lower case, and its parameters by name in lower case.

    A parameter has several values where it stands there in two forms, or where programs guess its character set.
    Encoded words (RFC 2047) are left encoded. A text of RFC 2231 is in UTF-8.
    """

    value: str
    parameters: Mapping[str, tuple[bytes, ...]]

    def values(self, name: str) -> tuple[bytes, ...]:
        """The values of this parameter (name in lower case); () without one."""
        return self.parameters.get(name, ())


class _Section(NamedTuple):
    """One `name*number*=value`: the number is b"" if missing."""

    number: bytes
    encoded: bool
    value: bytes


def parse(value: bytes) -> Structured:
    """The value of a field, after the colon; it may be folded. Raises InDoubt."""
    if len(value) > MAX_OCTETS:
        raise InDoubt(f"it is longer than {MAX_OCTETS} octets")
    text = _FOLDED_WORDS.sub(b"?= =?", value).replace(b"\r\n", b"\n")
    head = _HEAD.match(text)
    if head is None:
        raise InDoubt("it does not begin with a type")
    place = head.end()
    sections: dict[str, list[_Section]] = {}
    while match := _PARAMETER.match(text, place):
        name, number, star, bare, quoted = match.groups()
        place = match.end()
        section = _Section(number or b"", star is not None, _unquoted(bare, quoted, encoded=star is not None))
        sections.setdefault(name.decode("ascii").lower(), []).append(section)
    if not _END.fullmatch(text, place):
        raise InDoubt("it has a parameter that does not keep to the standard")
    parameters = {name: tuple(dict.fromkeys(_values(some))) for name, some in sections.items()}
    return Structured(head[1].decode("ascii").lower(), parameters)


def _unquoted(bare: bytes | None, quoted: bytes | None, *, encoded: bool) -> bytes:
    """The value as it stands there, without quotes."""
    if bare is not None:
        if not encoded and (b"'" in bare or b"%" in bare):
            raise InDoubt("it has a quote or percent sign without quotes")
        return bare
    assert quoted is not None  # noqa: S101 - the pattern has one of both
    if encoded or _PARAMETER_IN_QUOTES.search(quoted):
        raise InDoubt("it has a parameter within quotes")
    if quoted[:1] + quoted[-1:] == b"''":
        raise InDoubt("it has quotes within quotes")
    return quoted.replace(b'\\"', b'"').replace(b"\\\\", b"\\") if b"\\" in quoted else quoted


def _values(sections: list[_Section]) -> list[bytes]:
    """The values of one parameter, from all of its sections."""
    values = [each.value for each in sections if not each.encoded and not each.number]
    several = [each for each in sections if each.number]
    for extended in [[each] for each in sections if each.encoded and not each.number]:
        values += _decoded(extended)
    if several:
        in_order = sorted(several, key=lambda section: int(section.number))
        if [section.number for section in in_order] != [b"%d" % number for number in range(len(in_order))]:
            raise InDoubt("it has a parameter in sections that are not numbered one by one")
        values += _decoded(in_order)
    return values


def _decoded(sections: list[_Section]) -> list[bytes]:
    """The value of sections in order (RFC 2231, 4.1), in UTF-8; one for each guess of its character set."""
    first, *others = sections
    if not any(section.encoded for section in sections):
        return [b"".join([section.value for section in sections])]
    prefix = _EXTENDED.match(first.value) if first.encoded else None
    if prefix is None:
        raise InDoubt("it has an encoded parameter without a character set")
    octets = _unpercent(first.value[prefix.end() :])
    octets += b"".join([_unpercent(each.value) if each.encoded else each.value for each in others])
    codec = charsets.codec_of(prefix[1]) if prefix[1] else charsets.UNNAMED
    return [text.encode("utf-8") for text in charsets.texts(octets, codec)]


def _unpercent(value: bytes) -> bytes:
    if not _ENCODED.fullmatch(value):
        raise InDoubt("it has an encoded parameter with percent signs that are none")
    return unquote_to_bytes(value)
