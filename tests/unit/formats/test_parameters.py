"""The parser of header fields with parameters: it reads what keeps to the standard, at a cost that is linear.
Standard: RFC 2045 5.1, RFC 2183, RFC 2231; the spellings of what it does not read are in tests/testlib/spellings.
"""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given, strategies as st

from relay.formats.doubt import InDoubt
from relay.formats.parameters import MAX_OCTETS, parse


@pytest.mark.parametrize(
    ("value", "kind", "parameters"),
    [
        (b" Text/Plain; Charset=utf-8; format=flowed;", "text/plain", {"charset": [b"utf-8"], "format": [b"flowed"]}),
        (b"multipart/mixed;\r\n\tboundary=\"=_a;b\"", "multipart/mixed", {"boundary": [b"=_a;b"]}),
        (b"\r\n application/pdf", "application/pdf", {}),
        (b'attachment; filename="a\\"b\\\\c.doc"', "attachment", {"filename": [b'a"b\\c.doc']}),
        (b"multipart/related; type=text/html", "multipart/related", {"type": [b"text/html"]}),
        (b'a; filename="b (c), d.doc"', "a", {"filename": [b"b (c), d.doc"]}),
        (b'a; filename="=?utf-8?q?b?=\r\n =?utf-8?q?c?="', "a", {"filename": [b"=?utf-8?q?b?= =?utf-8?q?c?="]}),
        (b'a; filename="\xe4"', "a", {"filename": [b"\xe4"]}),
        (b"a; filename=b; filename*=utf-8''c", "a", {"filename": [b"b", b"c"]}),
        (b"a; filename*=iso-8859-1'en'%E4", "a", {"filename": ["\xe4".encode()]}),
        (b"a; filename*0*=utf-8''b%20; filename*1=c", "a", {"filename": [b"b c"]}),
        (b"a; filename*1=c;\r\n filename*0=b", "a", {"filename": [b"bc"]}),
        (b"a; filename*0*=utf-8''%c3; filename*1*=%a4", "a", {"filename": ["\xe4".encode()]}),
    ],
)  # fmt: skip
def test_what_keeps_to_the_standard_is_read(value: bytes, kind: str, parameters: dict[str, list[bytes]]) -> None:
    structured = parse(value)
    assert structured.value == kind
    assert {name: list(structured.values(name)) for name in structured.parameters} == parameters


def test_of_octets_without_a_character_set_each_guess_is_a_value() -> None:
    assert {"\xe4".encode(), "\u0434".encode()} <= set(parse(b"a; filename*=''%e4").values("filename"))


@pytest.mark.parametrize(
    "value",
    [
        b"", b";", b'"attachment"', b"message / rfc822", b"text/plain (comment)", b"(comment) text/plain", b"a b",
        b"a; filename", b"a; filename=", b"a; filename = b", b"a; filename=b c", b"a;; filename=b", b"a, filename=b", b"a filename=b",
        b"a; filename=b,c", b"a; filename=b (c)", b"a; filename='b'", b"a; filename=\"'b'\"", b"a; filename=<b>", b"a; filename=%61",
        b'a; filename="b', b'a; filename="b"c', b'a; filename="b" "c"', b'a; filename="\\b"', b'a; filename="b\\"',
        b'a; filename="b\r\n c"', b"a; filename=\r\n b", b"a\r\n ; filename=b", b'a; "filename"=b', b"a; filename=\xc3\xa4", b'a; filename="b\0"',
        b'a; x="; filename=b"', b'a; x="y boundary*0*=b"', b"a; filename=b=c", b"a; filename==?utf-8?q?b?=",
        b"a; filename*=b", b"a; filename*=utf-8'b", b"a; filename*=\"utf-8''b\"", b"a; filename*=utf-8''b%2", b"a; filename*=x-none''b",
        b"a; filename*=utf-8''%ff", b"a; filename*0=b; filename*2=c", b"a; filename*1=b", b"a; filename*0=b; filename*0=c", b"a; filename*00=b",
        b"a; filename*0=b; filename*1*=c", b"a" * (MAX_OCTETS + 1),
    ],
)  # fmt: skip
def test_what_does_not_is_in_doubt(value: bytes) -> None:
    with pytest.raises(InDoubt):
        parse(value)


@given(st.binary(max_size=200) | st.lists(st.sampled_from([*b"a;=\"\\()*%'<, \r\n01/\xff"])).map(bytes))
def test_nothing_else_is_raised(value: bytes) -> None:
    with suppress(InDoubt):
        parse(b"a; b=" + value)


HOSTILE = [
    b";", b"=", b'"', b"(", b"\\", b'\\"', b" ", b"\r\n ", b";x=", b';x="', b'x="\\"', b";x*=", b";x*0*=u''%41", b"%41", b"'", b"*0", b"a",
    b'"a', b";x=a", b';x="a"', b"\xff", b"=?a?q?b?=", b"?=\r\n =?", b"name", b";name*=utf-8''%ff",
]  # fmt: skip


@pytest.mark.parametrize("start", [b"a;x=", b'a;x="', b"a;x*=utf-8''", b"a"])
@pytest.mark.parametrize("piece", HOSTILE, ids=repr)
def test_the_cost_is_linear(start: bytes, piece: bytes) -> None:
    def cost(octets: int) -> float:
        value = start + piece * (octets // len(piece) - 20)
        costs = []
        for _ in range(3):
            began = time.process_time()
            with suppress(InDoubt):
                parse(value)
            costs.append(time.process_time() - began)
        return min(costs)

    # Of the square, 16 times as many octets would cost 256 times as much.
    assert cost(MAX_OCTETS) < 64 * cost(MAX_OCTETS // 16) + 0.002
