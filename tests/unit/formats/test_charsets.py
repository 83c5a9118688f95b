"""Character sets: by which codec each is read, that no other names lead to one, and what is guessed without a name.
Standard: IANA's preferred MIME names.
"""

from __future__ import annotations

import codecs

import pytest
from hypothesis import given, strategies as st

from relay.formats import charsets
from relay.formats.doubt import InDoubt


@pytest.mark.parametrize(
    ("label", "codec"),
    [
        (b"UTF-8", "utf_8"), (b"us-ascii", ""), (b"unknown-8bit", ""), (b"ISO-8859-1", "latin_1"), (b"iso-8859-15", "iso8859_15"),
        (b"iso-8859-8-I", "iso8859_8"), (b"iso-8859-9", "iso8859_9"), (b"gb2312", "gb18030"), (b"ks_c_5601-1987", "cp949"),
        (b"Windows-1251", "cp1251"), (b"iso-2022-jp", "iso2022_jp"),
    ],
)  # fmt: skip
def test_a_name_leads_to_the_codec_of_its_superset(label: bytes, codec: str) -> None:
    assert charsets.codec_of(label) == codec


@pytest.mark.parametrize(
    "label",
    [
        b"", b" utf-8", b"utf-9", b"x-none", b"utf-7", b"utf-16", b"hz-gb-2312", b"iso-2022-cn", b"ibm1047", b"cp037", b"\xff",
        b"punycode", b"idna", b"rot13", b"zlib", b"hex", b"base64", b"undefined", b"mbcs", b"../x", b"raw-unicode-escape",
    ],
)  # fmt: skip
def test_any_other_name_is_in_doubt(label: bytes) -> None:
    with pytest.raises(InDoubt):
        charsets.codec_of(label)


def test_each_codec_is_there_and_extends_ascii() -> None:
    ascii_only = bytes(range(32, 127))
    for codec in filter(None, [*charsets._CODECS.values(), *charsets._GUESSES]):
        assert ascii_only.decode(codecs.lookup(codec).name) == ascii_only.decode("ascii"), codec


def test_octets_that_a_character_set_does_not_have_are_in_doubt() -> None:
    for octets, codec in ((b"\xff", "utf_8"), (b"\x81", "cp1252"), (b"\x1b$B6", "iso2022_jp"), (b"\x81", "cp932")):
        with pytest.raises(InDoubt):
            charsets.texts(octets, codec)


def test_octets_without_a_name_are_utf_8_or_what_is_usual_somewhere() -> None:
    assert charsets.guesses(b"abc") == charsets.guesses("ä".encode(), [b"koi8-r"]) == ("utf_8",)
    assert {"cp1252", "koi8_r", "cp932"} <= set(charsets.guesses(b"\xe4"))
    assert "cp1252" in charsets.guesses("ä".encode(), named=True)
    assert "iso8859_5" in charsets.guesses(b"\xe4", [b"iso-8859-5"])
    with pytest.raises(InDoubt):
        charsets.guesses(b"\xe4", [b"x-none"])
    with pytest.raises(InDoubt):
        charsets.guesses(b"\xe4" * (charsets.MAX_GUESSED + 1))


@given(st.binary(max_size=40))
def test_any_octets_are_guessed(octets: bytes) -> None:
    texts = [charsets.guessed(octets, codec) for codec in charsets.guesses(octets, named=True)]
    assert not any("\x80" <= char <= "\x9f" for text in texts for char in text)
