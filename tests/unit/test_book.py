"""Documents have short sentences, administrators' pages are short too, and all texts use plain words.
Standard: at most 30 words a sentence, everywhere; 1,500 words a page, but for what is looked up (settings, metrics, runbook).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("relay", "policies", "deploy", "tests")
DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", *(each for room in ROOMS for each in (ROOT / room).rglob("*.md")))
    if "node_modules" not in path.parts
)
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
    text = re.sub(r"``.*?``|`[^`]*`", "code", text)
    found = re.split(r"\n\s*\n|^- |(?<=[.?!])[)*]*\s+", text, flags=re.MULTILINE)
    return [words for words in (re.findall(r"[\w'-]+", each) for each in found) if words]


def test_a_long_sentence_is_found() -> None:
    assert [
        len(each) for each in sentences("- One two `three four`.\n- Five ([six](seven.md)); eight.\n\n| nine |")
    ] == [3, 3]


@pytest.mark.parametrize("page", [*(f"deploy/{page}.md" for page in PAGES), *DEVELOPERS])
def test_each_page_is_short(page: str) -> None:
    assert len((ROOT / page).read_text().split()) <= MAX_WORDS


def test_the_first_page_is_shortest() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_sentence_is_short(document: str) -> None:
    text = (ROOT / document).read_text()
    assert [" ".join(each) for each in sentences(text) if len(each) > MAX_SENTENCE] == []


def test_texts_use_plain_words() -> None:
    """Nobody is meant by a pronoun that leaves half of them out, and a limit is a noun with its unit."""
    odd = re.compile(
        r"\b(?:he|him|his|himself|whoever|whomever)\b|(?:\"\"\"|# )So (?:many|long|often|much)\b", re.IGNORECASE
    )
    texts = [
        ROOT / "README.md",
        *(path for room in ROOMS for path in (ROOT / room).rglob("*") if path.suffix in {".md", ".py"}),
    ]
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in texts
        if path != Path(__file__) and "spellings" not in path.parts and "node_modules" not in path.parts
        for match in odd.finditer(path.read_text())
    ]
    assert found == []
