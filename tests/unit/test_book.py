"""The pages for administrators are short, and so are their sentences: each is read by somebody who is in a hurry.
Standard: at most 1,500 words a page and 30 a sentence; what is looked up (settings, metrics, the runbook) is as long as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    "README",
    "INSTALL",
    "TRYING",
    "SCANNERS",
    "POSTFIX",
    "MAIL-SERVERS",
    "PEERS",
    "KEYS",
    "WATCHING",
    "RUNNING",
    "SPEED",
    "CONCEPTS",
)
DEVELOPERS = ("relay/ADDING.md",)
MAX_WORDS, MAX_SENTENCE = 1500, 30


def sentences(text: str) -> list[list[str]]:
    """The words of each sentence: of prose and lists, not of tables, headings or what is typed."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\|.*|#.*| {4}.*)$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"`[^`]*`", "code", text)
    found = re.split(r"\n\s*\n|^- |(?<=[.?!])[)*]*\s+", text, flags=re.MULTILINE)
    return [words for words in (re.findall(r"[\w'-]+", each) for each in found) if words]


def test_a_long_sentence_is_found() -> None:
    assert [
        len(each) for each in sentences("- One two `three four`.\n- Five ([six](seven.md)); eight.\n\n| nine |")
    ] == [3, 3]


@pytest.mark.parametrize("page", [*(f"deploy/{page}.md" for page in PAGES), *DEVELOPERS])
def test_each_page_is_short_and_so_are_its_sentences(page: str) -> None:
    text = (ROOT / page).read_text()
    assert len(text.split()) <= MAX_WORDS
    assert [" ".join(each) for each in sentences(text) if len(each) > MAX_SENTENCE] == []
