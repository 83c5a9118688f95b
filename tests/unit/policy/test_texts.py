"""How texts are compared, and which readings encoded words have; hostile text takes no more time than other.
Standard: Unicode NFKC and case folding; RFC 2047.
"""

from __future__ import annotations

import unicodedata
from typing import Literal

import pytest
from hypothesis import given, strategies as st

from relay.policy.content import MAX_FIELD_OCTETS, MessageFacts
from relay.policy.texts import file_names, plain, saved
from relay.policy.words import readings
from tests.testlib.speed import seconds

WORK = 16 * 1024
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
        (b"=?utf-8?q?a?= =?utf-8?b?Yg==?=", {"ab"}),
        (b"=?utf-8?q?a?=  b =?utf-8?q?c?=", {"a  b c"}),
        (b"=?utf-8?q?=E4?=", {"\ufffd", "ä"}),
        (b"=?utf-8?q?=C3?= =?utf-8?q?=A4?=", {"ä", "\ufffd\ufffd"}),
        (b"=?iso-8859-1?q?=80?=", {"€"}),
        (b"=?utf-8?b?YQ=?=", {"a", ""}),
        (b"=?utf-8?q?a b?=", {"a b", "ab"}),
        (b"=?utf-8?q?a=?=", {"a=", "a"}),
        (b"=?utf-8?q?a?b?=", {"=?utf-8?q?a?b?=", "a?b"}),
        (b"=?utf-8?q?a=00b?=", {"a\0b", "a"}),
    ],
)
def test_a_broken_word_has_each_reading_of_some_program(written: bytes, read: set[str]) -> None:
    found, _ = readings(written, WORK)
    assert found is not None
    assert found - {written.decode()} == read - {written.decode()}


@pytest.mark.parametrize("label", ["us-ascii", "unknown-8bit", "default"])
def test_a_charset_that_says_nothing_of_8_bits_leaves_what_is_usual_anywhere(label: str) -> None:
    found, _ = readings(b"=?%s?q?=E4?=" % label.encode(), WORK)
    assert found is not None
    assert found >= {"ä", "\ufffd", "д", "d"}


@given(
    octets=st.binary(max_size=200)
    | st.lists(st.sampled_from([b"=?", b"?=", b"utf-8", b"?q?", b"?b?", b"=", b"a", b" ", b"\xe4", b"\x1b$B"])).map(
        b"".join
    )
)
def test_any_octets_have_readings_or_count_as_any_text(octets: bytes) -> None:
    found, work = readings(octets, WORK)
    assert found is None or (found and work <= WORK)
    names, _ = file_names(octets, WORK)
    assert names is None or "" not in names


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Plan.DOCX", "plan.docx"),
        ("plan.docx. .", "plan.docx"),
        ("plan.docx\0.txt", "plan.docx"),
        ("plan.docx%00.txt", "plan.docx"),
        ("plan%2Edocx", "plan.docx"),
        ("C:\\tmp\\plan.docx", "plan.docx"),
        ("../plan.docx", "plan.docx"),
        ("plan.docx::$DATA", "plan.docx"),
        ("plan\uff0edocx", "plan.docx"),
        ("100%.txt", "100%.txt"),
    ],
)
def test_a_file_name_is_compared_as_it_may_be_saved(name: str, form: str) -> None:
    assert form in saved(name)


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
