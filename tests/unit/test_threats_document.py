"""Each promise of deploy/THREATS.md has tests that are marked with its words, and attacks/README.md names tests.
Standard: a promise without a test is none, and a mark whose words are no promise is a fault.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ATTACKS = ROOT / "tests/integration/attacks"


def promises(page: str) -> list[str]:
    """The bold words at the beginning of each item of the two sections that promise."""
    promised = page.partition("## What each level promises")[2].partition("## What does not hold")[0]
    titles = re.findall(r"^\* \*\*(.*?)\*\*", promised, re.MULTILINE | re.DOTALL)
    assert len(titles) == len(re.findall(r"^\* ", promised, re.MULTILINE)), "an item without bold words"
    return [" ".join(each.split()).removesuffix(".") for each in titles]


def marks(code: str) -> Iterator[str]:
    """The words of each `@pytest.mark.promise("...")` at a test of this module."""
    for function in ast.parse(code).body:
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name.startswith("test_"):
            for each in function.decorator_list:
                if isinstance(each, ast.Call) and ast.unparse(each.func) == "pytest.mark.promise":
                    yield ast.literal_eval(each.args[0])


def unbound(page: str, modules: list[str]) -> set[str]:
    """Promises that no test shows, and marks that no promise has."""
    titles = promises(page)
    assert len(set(titles)) == len(titles)
    return set(titles) ^ {words for code in modules for words in marks(code)}


def test_each_promise_has_a_test_and_each_mark_names_a_promise() -> None:
    page = (ROOT / "deploy/THREATS.md").read_text()
    modules = [file.read_text() for file in (ROOT / "tests").rglob("test_*.py")]
    assert len(promises(page)) > 50
    assert unbound(page, modules) == set()


def test_a_promise_without_a_test_and_a_mark_without_a_promise_are_found() -> None:
    page = "## What each level promises\n* **One.** Because.\n* **Two\n  more**, if so.\n## What does not hold\n* **Three**\n"
    shown = '@pytest.mark.promise("{}")\n@other\nasync def test_it() -> None: ...\n'
    assert unbound(page, [shown.format("One"), shown.format("Two more")]) == set()
    assert unbound(page, [shown.format("One")]) == {"Two more"}
    assert unbound(page, [shown.format(each) for each in ("One", "Two more", "Three")]) == {"Three"}
    no_test = shown.format("Two more").replace("test_it", "it")
    assert unbound(page, [shown.format("One"), no_test]) == {"Two more"}


def test_every_test_that_the_attacks_name_is_there() -> None:
    text = (ATTACKS / "README.md").read_text()
    named: list[tuple[str, str]] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 10
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"
    for each in sorted(ATTACKS.glob("test_*.py")):
        assert f"tests/integration/attacks/{each.name}::" in text, each.name
