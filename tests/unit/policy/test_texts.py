"""How texts are compared, and which readings encoded words have; hostile text takes no more time than other.
Standard: Unicode NFKC and case folding; RFC 2047.
"""

from __future__ import annotations

import unicodedata
from contextlib import suppress
from typing import Literal

import pytest
from hypothesis import given, strategies as st

from relay.formats.doubt import InDoubt
from relay.formats.words import readings
from relay.policy.content import MAX_FIELD_OCTETS, MessageFacts
from relay.policy.texts import MAX_MARKS, file_names, plain, values
from tests.testlib.speed import seconds

LETTERS = st.text(
    alphabet=st.sampled_from("aAßẞſﬁéÉe\u0301\u0315\u034f\u00ad\u200bＡ［＊漢한\u1112\u1161ก์ﾊﾞ極İıςΣ \u3000\t\u2800①ﷺ"),
    max_size=20,
)


@given(text=LETTERS | st.text(max_size=20))
def test_what_is_compared_stays_as_it_is_when_it_is_compared_again(text: str) -> None:
    assert plain(plain(text)) == plain(text)


@given(text=LETTERS, form=st.sampled_from(["NFC", "NFD", "NFKC", "NFKD"]))
def test_all_forms_of_unicode_are_the_same_text(text: str, form: Literal["NFC", "NFD", "NFKC", "NFKD"]) -> None:
    without_joiner = text.replace("\u034f", "")
    assert plain(unicodedata.normalize(form, without_joiner)) == plain(text)


@given(text=st.text(alphabet="ab \x00\x07\u200b\u00ad\ufe0f\U000e0001", max_size=12))
def test_what_no_program_shows_makes_no_difference(text: str) -> None:
    assert plain(text) == " ".join("".join(char for char in text if char in "ab ").split())


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (b"=?utf-8?q?a_b=5D?=", {"a b]"}),
        (b"=?utf-8*en?q?a?= =?utf-8?b?Yg==?=", {"ab"}),
        (b"=?utf-8?q?a?=  b =?utf-8?q?c?=", {"a  b c"}),
        (b"x=?utf-8?q?a?=y", {"xay"}),
        (b"=?windows-1252?q?=80?=", {"€"}),
        (b"=?utf-8?q?=C3?= =?utf-8?q?=A4?=", {"ä", "��"}),
        (b"=?us-ascii?q?a?= \xc3\xa4", {"a ä"}),
        (b"=?what is this?= and 50% =? off? a=b&c=d ?=", {"=?what is this?= and 50% =? off? a=b&c=d ?="}),
    ],
)
def test_encoded_words_are_read_as_the_standard_has_them(written: bytes, read: set[str]) -> None:
    assert readings(written) == read


@pytest.mark.parametrize("written", [b"=?us-ascii?q?=E4?=", b"=?unknown-8bit?q?=E4?=", b"\xe4"])
def test_octets_without_a_character_set_are_what_is_usual_anywhere(written: bytes) -> None:
    assert readings(written) >= {"ä", "�", "д", "d"}


@pytest.mark.parametrize(
    "written",
    [
        b"=?utf-8?q?=E4?=", b"=?utf-8?b?YQ=?=", b"=?utf-8?b?YQ?=", b"=?utf-8?b?YR==?=", b"=?utf-8?b?Y Q==?=", b"=?utf-8?q?a b?=",
        b"=?utf-8?q?a=?=", b"=?utf-8?q?a?b?=", b"=?utf-8?q??=", b"=?utf-8?q?a", b"=?x-none?q?a?=", b"=??q?a?=", b"=?utf-8?q?\xe4?=",
        b"=?utf-8?q?=C3?=", b"\xff" * 1001,
    ],
)  # fmt: skip
def test_a_word_that_does_not_keep_to_it_is_in_doubt(written: bytes) -> None:
    with pytest.raises(InDoubt):
        readings(written)


@pytest.mark.parametrize(
    "written",
    [
        b"a\x07b", b"=?utf-8?q?a=00b?=", b"=?iso-8859-1?q?a=80b?=", b"=?utf-8?q?a=0Ab?=", "a‮b".encode(), "aㅤb".encode(), b"a$B6K(B",
        ("a" + "̀̕" * MAX_MARKS).encode(),
    ],
)  # fmt: skip
def test_what_programs_show_differently_is_in_doubt(written: bytes) -> None:
    with pytest.raises(InDoubt):
        values(written)


@given(
    octets=st.binary(max_size=200)
    | st.lists(st.sampled_from([b"=?", b"?=", b"utf-8", b"?q?", b"?b?", b"=", b"a", b" ", b"\xe4", b"\x1b$B"])).map(
        b"".join
    )
)
def test_any_octets_have_readings_or_are_in_doubt(octets: bytes) -> None:
    with suppress(InDoubt):
        assert values(octets)
    with suppress(InDoubt):
        assert "" not in file_names(octets)


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        (b"Plan.DOCX", {"plan.docx"}),
        (b"plan.docx. .", {"plan.docx", "plan.docx. ."}),
        (b"plan%2Edocx", {"plan%2edocx", "plan.docx"}),
        (b"C:\\tmp\\plan.docx", {"plan.docx", "c:\\tmp\\plan.docx"}),
        (b"../plan.docx", {"plan.docx", "../plan.docx"}),
        ("plan．docx".encode(), {"plan.docx"}),
        (b"100%.txt", {"100%.txt"}),
    ],
)
def test_a_file_name_is_compared_as_it_may_be_saved(name: bytes, forms: set[str]) -> None:
    assert file_names(name) == forms


@pytest.mark.parametrize("name", [b"plan.docx%00.txt", b"plan.docx::$DATA", b"pl%E4n.docx", b"plan.docx\0"])
def test_a_file_name_that_is_saved_differently_is_in_doubt(name: bytes) -> None:
    with pytest.raises(InDoubt):
        file_names(name)


HOSTILE = {
    "encoded words": b"=?utf-8?q?b?= ",
    "beginnings": b"=?",
    "beginnings without an end": b"=?a?q?x",
    "marks of two classes": "\u0315\u0300".encode(),
    "marks between letters": ("\u0315\u0300" * 15 + "\uac00").encode(),
    "letters that become marks": ("\u0315" * 7 + "\uff9e").encode(),
    "a character that becomes eighteen": "\ufdfa".encode(),
    "invisible characters": "\u200b".encode(),
    "raw octets": b"\xe4",
    "escapes of Japanese": b"\x1b$B6K\x1b(B",
    "faulty words of many readings": b"=?us-ascii?q?=e4 = 4?= =?us-ascii?b?a-?= ",
    "blanks": b" \t",
    "controls": b"\x07a",
    "percent signs": b"%41%",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("octets", [1000, 4000, MAX_FIELD_OCTETS - 20])
def test_no_text_takes_long(unit: bytes, octets: int) -> None:
    text = unit * (octets // len(unit))
    content = MessageFacts(
        b"Subject: " + text + b'\r\nContent-Disposition: attachment; filename="' + text[:8000] + b'"\r\n\r\n'
    )

    def look() -> None:
        assert content.values("subject") is None or content.values("subject")
        content.read()

    assert seconds(look) < 0.1
