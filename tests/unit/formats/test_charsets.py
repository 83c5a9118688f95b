"""Charsets: which codecs programs use for which names, and that a name from a message leads to no other codec.
Standard: the labels of the WHATWG Encoding Standard, IANA's names.
"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from relay.formats import charsets


@pytest.mark.parametrize(
    ("label", "codecs"),
    [
        ("UTF-8", ("utf_8", "guess")),
        ("utf8", ("utf_8", "guess")),
        (" utf-8 ", ("utf_8", "guess")),
        ("utf-8*en", ("utf_8", "guess")),
        ("us-ascii", ("cp1252", "utf_8")),
        ("ISO_8859-1:1987", ("cp1252",)),
        ("iso-8859-15", ("iso8859_15",)),
        ("iso-8859-8-I", ("iso8859_8",)),
        ("iso-8859-9", ("cp1254",)),
        ("latin5", ("cp1254", "iso8859_5")),
        ("win-1251", ("cp1251",)),
        ("x-cp1252", ("cp1252",)),
        ("gb2312", ("gb18030",)),
        ("ks_c_5601-1987", ("cp949",)),
        ("x-sjis", ("cp932",)),
        ("unicode", ("utf_16_le", "utf_16_be", "utf_8", "cp1252")),
        ("utf-16", ("utf_16_be", "utf_16_le", "utf_16")),
        ("UTF-16BE", ("utf_16_be",)),
        ("unicode-1-1-utf-7", ("utf_7", "utf_8", "cp1252")),
        ("cp850", ("cp850", "utf_8", "cp1252")),
        ("", ("utf_8", "cp1252")),
        ("x-none", ("utf_8", "cp1252")),
        ("unknown-8bit", ("utf_8", "cp1252")),
        ("x" * 81, ("utf_8", "cp1252")),
    ],
)
def test_a_name_leads_to_the_codecs_that_programs_use(label: str, codecs: tuple[str, ...]) -> None:
    assert charsets.codecs_of(label) == codecs


@pytest.mark.parametrize(
    "label", ["iso-2022-cn", "utf-9", "scsu", "BOCU-1", "ibm1047", "cp9999", "ebcdic-int", "iso-10646-utf-1"]
)
def test_what_need_not_have_ascii_in_it_is_not_guessed(label: str) -> None:
    assert charsets.codecs_of(label) is None


@pytest.mark.parametrize(
    "label",
    ["punycode", "idna", "rot13", "zlib", "hex", "bz2", "base64", "undefined", "mbcs", "../x", "raw-unicode-escape"],
)
def test_codecs_of_python_that_are_no_charsets_of_mail_are_not_used(label: str) -> None:
    assert charsets.codecs_of(label) == ("utf_8", "cp1252")


@given(
    label=st.text(max_size=30)
    | st.from_regex(r"(iso|cp|windows|x|utf|latin|ibm)[-_ ]?[0-9]{0,5}[-:_]?[0-9]{0,4}", fullmatch=True),
    octets=st.binary(max_size=40),
)
def test_any_octets_of_any_charset_are_read(label: str, octets: bytes) -> None:
    codecs = charsets.codecs_of(label)
    assert codecs is None or charsets.texts(octets, codecs)
    assert charsets.texts(octets, charsets.raw_codecs(octets, [label]))


@given(octets=st.binary(max_size=40).map(lambda octets: bytes(octet & 127 for octet in octets)))
def test_what_is_ascii_is_the_same_in_each_part(octets: bytes) -> None:
    for label in ("utf-8", "iso-2022-jp", "shift_jis", "gb2312", "koi8-r", "utf-7", "hz", "utf-16", "cp037"):
        for codec in charsets.codecs_of(label) or ():
            if charsets.is_ascii(octets, codec):
                assert charsets.decode(octets, codec) == octets.decode("ascii")


def test_raw_octets_are_read_by_what_is_named_nearby_and_by_what_is_usual_somewhere() -> None:
    assert charsets.raw_codecs(b"abc") == ("utf_8",)
    assert charsets.raw_codecs("ä".encode()) == ("utf_8",)
    assert charsets.raw_codecs("ä".encode(), ["koi8-r"]) == ("utf_8", "koi8_r")
    assert charsets.raw_codecs(b"\xe4", ["iso-8859-7"])[:3] == ("utf_8", "iso8859_7", "cp1252")
    assert "iso2022_jp_2" in charsets.raw_codecs(b"\x1b$B6K\x1b(B")


def test_utf_7_of_imap_has_other_signs() -> None:
    assert charsets.decode(b"a+b&AOQ-&-", "utf_7_imap") == "a+bä&"
