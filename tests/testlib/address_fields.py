"""Values of address fields for hypothesis: right ones with everything that the grammar allows, nearly right ones, anything.
Standard: RFC 5322 3.4 and 4.4, RFC 2047 5 (encoded words in names).
"""

from __future__ import annotations

import re

from hypothesis import strategies as st

PIECES = (
    b"ann", b"ceo", b"x", b"alice.example", b"evil.example", b"ann@alice.example", b"<ceo@alice.example>", b"<x@evil.example>",
    b"Ann ", b'"Ann"', b'"Boss \\\\"', b'"a\\"b"', b'"ceo@alice.example"', b"(c)", b"(a (b) )", b"(\\\\)", b"(\\))", b'(")', b"(<)",
    b"@", b".", b",", b";", b":", b"team: ", b"<", b">", b'"', b"\\", b"(", b")", b"[", b"]", b"[192.0.2.1]", b" ", b"\t", b"\r\n ",
    b"=?utf-8?q?J=C3=B6rg?=", b"=?utf-8?q?ceo=40?=", b"=?utf-8?q?ceo=40alice.example,?=", b"=?utf-8?b?PGNlb0BhbGljZS5leGFtcGxlPiw=?=",
    b"=?utf-8?q?=22?=", b"(=?utf-8?q?=29=2Eexample?=)", b"=?", b"?=", b"\xc3\xbc", b"b\xc3\xbccher.example", b"\xc2\xa0", b"\xe2\x80\xa8", b"\xc2\x85", b"\xef\xbc\xa0",
    b"\xff", b"\0", b"\x0c", b"\x1f", b"'", b"%", b"!", b"/", b"=", b"ann@alice.example <ann@alice.example>", b"<@a,@b:c@d>",
)  # fmt: skip
"""What fields are made of, whether they can be read or not."""

_GAP = st.sampled_from(["", "", "", "", " ", "\t", "\r\n ", "(c)", " (a \"b\" <c@d>) ", "(a(b))", "(\\))", "(\\\\)", "(,)", "(=?utf-8?q?c?=)"])  # fmt: skip
_WORD = st.sampled_from(["ann", "ceo", "x-y", "o'b", "a+b", "ü", "=", "?", "{x}", "a=b", "%", "!"])
_QUOTED = st.sampled_from(['"Ann"', '"a b"', '"a,b"', '"a\\"b"', '"\\\\"', '"<x@y>"', '"@"', '""', '"(x"', '"a;b:c"', '"\\ü"', '"=?utf-8?q?a?="'])  # fmt: skip
_ENCODED = st.sampled_from(["=?utf-8?q?J=C3=B6rg?=", "=?utf-8?q?a b?=", "=?utf-8?q?M=2C?=", "=?x?q?a?=", "=?utf-8?q?=22?=", "=?utf-8?q?x=3C?=", "=?utf-8?q?=28x=29?=", "=?utf-8?q?=29=2Eexample?="])  # fmt: skip


@st.composite
def _between(draw: st.DrawFn, *parts: st.SearchStrategy[str]) -> str:
    return "".join(draw(_GAP) + draw(part) for part in parts) + draw(_GAP)


def _dotted(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    dot = st.builds(lambda left, right: f"{left}.{right}", _GAP, _GAP)
    return st.lists(words, min_size=1, max_size=3).flatmap(
        lambda chosen: dot.map(lambda between: between.join(chosen)) | st.just(".".join(chosen))
    )


_LOCAL = _dotted(_WORD) | st.sampled_from(['"a b"', '"a.b"', '"ann"', '"a@b"', '"a\\"b"', '""'])
_DOMAIN = _dotted(st.sampled_from(["alice", "example", "evil", "b-c", "bücher"])) | st.sampled_from(
    ["[192.0.2.1]", "[IPv6:::1]"]
)
_ADDRESS = _between(_LOCAL, st.just("@"), _DOMAIN)
_PHRASE = st.lists(_WORD | _QUOTED | _ENCODED | st.just("."), max_size=4).flatmap(
    lambda words: _between(*[st.just(f" {word} ") for word in words]) if words else st.just("")
)
_NAMED = _between(_PHRASE, st.just("<"), _ADDRESS, st.just(">"))
_MAILBOX = _ADDRESS | _NAMED
_LIST = st.lists(_MAILBOX | st.just(""), min_size=1, max_size=3).map(",".join)
_GROUP = _between(
    st.sampled_from(["team", '"a b"', "a b.", "=?utf-8?q?g?="]), st.just(":"), _LIST | st.just(" "), st.just(";")
)
_VALID = st.lists(_MAILBOX | _GROUP, min_size=1, max_size=3).map(",".join).map(str.encode)
_ANY = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)


@st.composite
def _spoilt(draw: st.DrawFn) -> bytes:
    """Nearly right: a piece in a place where it may not belong."""
    field = draw(_VALID)
    place = draw(st.integers(0, len(field)))
    return field[:place] + draw(st.sampled_from(PIECES)) + field[place + draw(st.integers(0, 2)) :]


FIELDS = (_VALID | _ANY | _spoilt()).map(lambda field: re.sub(rb"\r\n(?![ \t])|\r(?!\n)|(?<!\r)\n", b"", field))
"""Values of address fields, folded some of them: right, nearly right, and anything."""
