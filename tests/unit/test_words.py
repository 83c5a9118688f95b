"""All documents together stay short, and the guides name what they speak of.
Standard: words as `wc -w` counts them; the words of POINTING are below 6 % of each guide, beside test_book.py's limits.
"""

from __future__ import annotations

import re

import pytest

from tests.unit.test_book import DOCUMENTS, ROOT, sentences

MAX_WORDS_OF_ALL = 49_571
"""Lowered whenever a page gets shorter; 45,000 is the aim."""
GUIDES = (
    "README.md",
    *(f"deploy/{page}.md" for page in (
        "README", "CONCEPTS", "INSTALL", "TRYING", "WEEK", "OPERATING", "RUNNING", "PEERS", "KEYS", "POSTFIX",
        "POSTFIX-WATCH", "WATCHING", "MAIL-SERVERS", "SCANNERS", "PORTS", "GROUPS", "imap/README", "dkim/README",
        "prometheus/README", "CHANGES", "LICENSES", "SPEED", "AUDIT", "THREATS",
        "RUNBOOK", "SETTINGS", "METRICS", "SMIME",
    )),
    "relay/README.md",
    "relay/ADDING.md",
    "tests/README.md",
)  # fmt: skip
POINTING = frozenset({"it", "its", "that", "which", "what", "such", "this", "these", "those", "they", "them"})
MAX_SHARE = 0.06


def share_of_pointing(text: str) -> float:
    """Of all words outside code, those of tables included."""
    cells = re.sub(r"^\|(.*)$", lambda line: f"\n{line[1].replace('|', ' ')}\n", text, flags=re.MULTILINE)
    words = [word.lower() in POINTING for sentence in sentences(cells) for word in sentence]
    return sum(words) / len(words)


def test_all_documents_together_are_short() -> None:
    assert sum(len((ROOT / document).read_text().split()) for document in DOCUMENTS) <= MAX_WORDS_OF_ALL


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_repeats_the_noun(guide: str) -> None:
    assert share_of_pointing((ROOT / guide).read_text()) < MAX_SHARE


def test_pointing_words_are_counted_in_tables_and_not_in_code() -> None:
    assert share_of_pointing("The relay seals it.\n\n| this | that |\n\n```\nit it it\n```\n") == 0.5
