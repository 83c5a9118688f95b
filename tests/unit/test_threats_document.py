"""Each promise of deploy/THREATS.md has tests, and what tests/PROMISES.md and attacks/README.md name is there.
Standard: a promise without a test is none; a test that was renamed takes its promise along.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("tests/PROMISES.md", "tests/integration/attacks/README.md")


def _named(document: str) -> list[tuple[str, str]]:
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / document).read_text())


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_test_that_is_named_is_there(document: str) -> None:
    named = _named(document)
    assert len(named) > 10
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_promise_has_its_tests_and_no_test_is_of_a_promise_that_is_none() -> None:
    _, _, promised = (ROOT / "deploy/THREATS.md").read_text().partition("## What each level promises")
    promises, _, _ = promised.partition("## What does not hold")
    titles = [" ".join(each.split()) for each in re.findall(r"^\* \*\*(.*?)\*\*", promises, re.MULTILINE | re.DOTALL)]
    assert len(titles) == len(re.findall(r"^\* ", promises, re.MULTILINE)) > 50
    shown = re.findall(r"^## (.*)\n\n\* `tests/", (ROOT / "tests/PROMISES.md").read_text(), re.MULTILINE)
    assert shown == titles


def test_every_attack_has_its_row() -> None:
    text = (ROOT / "tests/integration/attacks/README.md").read_text()
    for file in sorted((ROOT / "tests/integration/attacks").glob("test_*.py")):
        assert f"tests/integration/attacks/{file.name}::" in text, file.name
