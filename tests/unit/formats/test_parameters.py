"""The parser of header fields with parameters: every reading that some mail program has, at a cost that is linear.
Standard: RFC 2045 5.1, RFC 2183, RFC 2231.
"""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given, strategies as st

from relay.formats.parameters import MAX_OCTETS, Structured, _parsed, parse, texts_of


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"attachment; filename=a.doc", "a.doc"),
        (b'attachment; filename="a.doc"', "a.doc"),
        (b'attachment; FileName = "a.doc" ', "a.doc"),
        (b'attachment; filename="a.doc\\x"', "a.docx"),
        (b'attachment; filename="a\\.doc"', "a\\.doc"),
        (b'attachment; filename="a.doc', "a.doc"),
        (b"attachment; filename='a.doc'", "a.doc"),
        (b"attachment; filename=<a.doc>", "a.doc"),
        (b"attachment; filename=a.doc (report)", "a.doc"),
        (b"attachment; filename=(report) a.doc", "a.doc"),
        (b"attachment; filename (report) = a.doc", "a.doc"),
        (b"attachment; (;) filename=a.doc", "a.doc"),
        (b'attachment; (") filename=a.doc', "a.doc"),
        (b"attachment; filename=a (report).doc", "a (report).doc"),
        (b'attachment; filename="a (report).doc"', "a (report).doc"),
        (b"attachment; filename=a.doc x", "a.doc"),
        (b"attachment; filename=a.doc x", "a.doc x"),
        (b'attachment; filename="a".doc', "a.doc"),
        (b'attachment; filename="a;b.doc"', "a;b.doc"),
        (b'attachment; filename=a";"b.doc', "a;b.doc"),
        (b'attachment; x="\\\\"; filename=a.doc', "a.doc"),
        (b'attachment; x="\\"; filename=a.doc', "a.doc"),
        (b'attachment; x="; filename=a.doc', "a.doc"),
        (b'attachment; filename="a\\";b.doc"', "a\\"),
        (b'attachment; filename="a\\";b.doc"', 'a";b.doc'),
        (b"attachment, filename=a.doc", "a.doc"),
        (b"attachment filename=a.doc", "a.doc"),
        (b'attachment; "filename"=a.doc', "a.doc"),
        (b"attachment; filename=b.txt; filename=a.doc", "a.doc"),
        (b"attachment; filename=a.doc; filename=b.txt", "a.doc"),
        (b"attachment;\r\n filename=\r\n\ta.doc", "a.doc"),
        (b'attachment; filename="a.\r\n doc"', "a.doc"),
        (b"attachment; filename*=utf-8''%61.doc", "a.doc"),
        (b"attachment; filename*=utf-8'en'%61.doc", "a.doc"),
        (b"attachment; filename*=utf-8'%61.doc", "a.doc"),
        (b"attachment; filename*=%61.doc", "a.doc"),
        (b"attachment; filename*=\"utf-8''%61.doc\"", "a.doc"),
        (b"attachment; filename*=%61.doc", "%61.doc"),
        (b"attachment; filename=%61.doc", "a.doc"),
        (b"attachment; filename*=nonsense''%61.doc", "a.doc"),
        (b"attachment; filename*=us-ascii''%e4.doc", "\xe4.doc"),
        (b"attachment; filename*=us-ascii''%c3%a4.doc", "\xe4.doc"),
        (b"attachment; filename*=utf-8''%e4.doc", "\xe4.doc"),
        (b"attachment; filename*=koi8-r''%c1.doc", "\u0430.doc"),
        (b"attachment; filename*=ucs-2''%61%00.%00d%00o%00c%00", "a.doc"),
        (b"attachment; filename*=utf-16''%00%61%00.%00d%00o%00c", "a.doc"),
        (b"attachment; filename*=utf-7''a+AC4-doc", "a.doc"),
        (b"attachment; filename*0=a; filename*1=.doc", "a.doc"),
        (b"attachment; filename*1=.doc; filename*0=a", "a.doc"),
        (b"attachment; filename*1=a; filename*0=.doc", "a.doc"),
        (b"attachment; filename*00=a; filename*01=.doc", "a.doc"),
        (b"attachment; filename*1=a; filename*2=.doc", "a.doc"),
        (b"attachment; filename*0=a.doc; filename*2=x", "a.doc"),
        (b"attachment; filename*0=a.doc; filename*2=x", "a.docx"),
        (b"attachment; filename*0=a; filename*1=.txt; filename*1=.doc", "a.doc"),
        (b"attachment; filename*0=a; filename*1=.doc; filename*1=.txt", "a.doc"),
        (b"attachment; filename*0*=utf-8''%61; filename*1=.doc", "a.doc"),
        (b"attachment; filename*0*=utf-8''a; filename*1=%2edoc", "a.doc"),
        (b"attachment; filename*0*=utf-8''a%; filename*1*=2edoc", "a.doc"),
        (b"attachment; filename*0*=utf-8''%c3; filename*1*=%a4.doc", "\xe4.doc"),
        (b'attachment; filename*0="a\\."; filename*1=doc', "a.doc"),
        (b"attachment; filename=\xc3\xa4.doc", "\xe4.doc"),
        (b"attachment; filename=\xe4.doc", "\xe4.doc"),
        (b"attachment; filename*9999999999999999999999999=.doc; filename*0=a", "a.doc"),
    ],
)
def test_what_some_program_shows_is_among_the_readings(value: bytes, name: str) -> None:
    structured = parse(value)
    assert name in structured.readings("filename")
    assert not structured.unclear


@pytest.mark.parametrize(
    ("value", "first"),
    [
        (b"text/plain; charset=utf-8; format=flowed", {"charset": "utf-8", "format": "flowed"}),
        (b'multipart/mixed; boundary="=_a;b"', {"boundary": "=_a;b"}),
        (b'attachment; filename="a\\"b.doc"', {"filename": 'a"b.doc'}),
        (b"attachment; filename=a; filename*=utf-8''b", {"filename": "b"}),
        (b"attachment; filename*0*=utf-8''a%20; filename*1=%20b", {"filename": "a %20b"}),
    ],
)
def test_what_the_standards_have_comes_first(value: bytes, first: dict[str, str]) -> None:
    assert {name: parse(value).readings(name)[0] for name in first} == first


@pytest.mark.parametrize(
    ("value", "read", "others"),
    [
        (b" Text/Plain", "text/plain", ()),
        (b" text/plain (comment); charset=x", "text/plain", ("text/plain (comment)",)),
        (b"message / rfc822", "message/rfc822", ("message",)),
        (b"(comment) message/(x)rfc822", "message/rfc822", ()),
        (b"(;) message/rfc822", "message/rfc822", ()),
        (b"application/msword name=a.doc", "application/msword", ()),
        (b'"attachment"', '"attachment"', ("attachment",)),
        (b"", "", ()),
        (b";", "", ()),
    ],
)
def test_the_value_and_what_else_is_read_there(value: bytes, read: str, others: tuple[str, ...]) -> None:
    structured = parse(value)
    assert structured.value == structured.values[0] == read
    assert set(others) <= set(structured.values)


def test_a_plain_field_has_one_reading() -> None:
    structured = parse(b" multipart/mixed; charset=utf-8;\r\n\tboundary=abc")
    assert structured.plain
    assert structured.values == ("multipart/mixed",)
    assert structured.octets("boundary") == (b"abc",)
    assert structured.readings("charset") == ("utf-8",)
    assert structured.readings("filename") == ()


_plain_texts = st.lists(
    st.sampled_from([*"ab=_-. /", "=?utf-8?B?YQ==?=", "=?utf-8*en?q?name=41=?=", "=?x?Q?a_=E4name=3D?="]),
    min_size=1,
    max_size=8,
).map("".join)


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b-", "name"]), _plain_texts, st.booleans()), max_size=3), st.text(" ;\t")
)
@example([("b-", "a", False), ("a", "a=?utf-8?B?YQ==?=", True)], "")
@example([("b-", "a", False), ("a", "a =?utf-8?B?YQ==?=", True)], "")
def test_what_is_plain_has_no_other_reading(pairs: list[tuple[str, str, bool]], end: str) -> None:
    """The fast way and the thorough one agree."""
    value = "".join(f';\r\n {name}="{text}"' if quoted else f"; {name}={text}" for name, text, quoted in pairs)
    field = f"a/b{value}{end}".encode()
    found, thorough = parse(field), _parsed(field)
    if found.plain:
        names = {name for name, _, _ in pairs}
        assert found.values == thorough.values
        assert [_all_of(found, name) for name in names] == [_all_of(thorough, name) for name in names]


def _all_of(structured: Structured, name: str) -> object:
    return structured.octets(name), structured.readings(name)


def test_a_boundary_is_octets() -> None:
    assert parse(b"multipart/mixed; boundary=\xe4").octets("boundary") == (b"\xe4",)


@pytest.mark.parametrize("charset", ["punycode", "idna", "unicode_escape", "zlib", "base64", "../x", "mbcs", "\0"])
def test_what_is_no_charset_of_mail_is_not_decoded_as_one(charset: str) -> None:
    assert texts_of(b"abc-", charset) in (("abc-",), None)


@given(st.binary(max_size=200) | st.lists(st.sampled_from([*b"a;=\"\\()*%'<, \r\n01/\xff"])).map(bytes))
def test_nothing_raises(value: bytes) -> None:
    structured = parse(b"a; b=" + value)
    assert structured.unclear or structured.readings("b")


HOSTILE = [
    b";", b"=", b'"', b"(", b"()", b"\\", b'\\"', b" ", b"\r\n ", b"x=", b" x=", b'x="', b'x="\\"', b";x*=", b";x*0*=u''%41",
    b"%", b"%41", b"%4", b"'", b"*", b"*0", b"a", b",", b'"a', b"(\\", b'(")', b";x=(", b"\xff", b"+AGE-", b";x= =?", b" =?a?q?",
    b"=?a?q?b?=", b"\xa0=", b";x\x85*", b';x="\\"(a)%ff\'\'%fe"b',
]  # fmt: skip


@pytest.mark.parametrize("start", [b"a;x=", b'a;x="', b"a;x*=punycode''", b"a;x*0*=utf-7''", b"("])
@pytest.mark.parametrize("piece", HOSTILE, ids=repr)
def test_the_cost_is_linear(start: bytes, piece: bytes) -> None:
    def cost(octets: int) -> float:
        value = start + piece * (octets // len(piece) - 20)
        costs = []
        for _ in range(3):
            began = time.process_time()
            parse(value)
            costs.append(time.process_time() - began)
        return min(costs)

    # Of the square, 16 times as many octets would cost 256 times as much.
    assert cost(MAX_OCTETS) < 64 * cost(MAX_OCTETS // 16) + 0.002


def test_what_passes_a_bound_is_unclear() -> None:
    assert parse(b"a" * (MAX_OCTETS + 1)).unclear
    assert parse(b"a; " + b"; ".join(b"x%d= 1" % number for number in range(200))).unclear
    assert parse(b"a" + b"()" * 200).unclear
    assert not parse(b"a; " + b"; ".join(b"filename*%d=%s" % (number, b"a" * 50) for number in range(100))).unclear
