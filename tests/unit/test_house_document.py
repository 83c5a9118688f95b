"""relay/README.md is a map: every place on it is there, and every name on it is where the map says.
A method that moves or is called otherwise has to move on the map too.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

import relay

RELAY = Path(relay.__file__).parent
MAP = (RELAY / "README.md").read_text()
LINKS = sorted(set(re.findall(r"\]\(([^)#:]+)\)", MAP)))
METHODS = sorted(set(re.findall(r"`([A-Z]\w+\.\w+)`", MAP)))


def classes() -> dict[str, set[str]]:
    """The methods of each class in relay/, those that it has from another class there included."""
    found: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for file in RELAY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
                found.setdefault(node.name, set()).update(methods)
                bases.setdefault(node.name, []).extend(each.id for each in node.bases if isinstance(each, ast.Name))
    for name, known in bases.items():
        for base in known:
            found[name] |= found.get(base, set())
    return found


@pytest.mark.parametrize("link", LINKS)
def test_each_place_on_the_map_is_there(link: str) -> None:
    assert (RELAY / link).exists()


def test_each_method_on_the_map_is_there() -> None:
    known = classes()
    assert len(METHODS) >= 20
    assert [each for each in METHODS if each.split(".")[1] not in known.get(each.split(".")[0], ())] == []


def test_who_knows_whom_is_what_is_checked() -> None:
    settings = tomllib.loads((RELAY.parent / "pyproject.toml").read_text())
    [block] = re.findall(r"^```\n(__main__ .*?)```", MAP, re.DOTALL | re.MULTILINE)
    assert " ".join(block.split()) == " > ".join(settings["tool"]["importlinter"]["contracts"][0]["layers"])


def test_a_class_name_stands_for_one_thing() -> None:
    """Also for those who read a test: what stands in for a part of the relay has a name of its own."""
    found: dict[str, list[str]] = {}
    for file in [*RELAY.rglob("*.py"), *(Path(__file__).parents[1] / "testlib").rglob("*.py")]:
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef):
                name = node.name.lstrip("_") if RELAY in file.parents else node.name
                found.setdefault(name, []).append(str(file))
    assert {name: files for name, files in found.items() if len(files) > 1} == {}


def test_a_function_has_at_most_sixty_lines() -> None:
    long = [
        f"{file.relative_to(RELAY)}: {node.name}"
        for file in RELAY.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []


def test_at_the_top_are_the_two_journeys_and_little_else() -> None:
    assert len([each for each in RELAY.iterdir() if each.is_file()]) <= 10


def test_a_message_out_a_message_in_and_a_key_take_ten_steps_each() -> None:
    for title in ("A message out", "A message in", "A key"):
        part = MAP.split(f"## {title}, in ten steps\n")[1].split("\n## ")[0]
        assert re.findall(r"^(\d+)\. ", part, re.MULTILINE) == [str(number) for number in range(1, 11)]


def test_each_file_that_the_page_on_adding_names_is_there() -> None:
    named = set(re.findall(r"`((?:relay|tests|deploy|policies)/[\w./-]+)`", (RELAY / "ADDING.md").read_text()))
    assert len(named) >= 20
    assert [each for each in sorted(named) if "NAME" not in each and not (RELAY.parent / each).exists()] == []
