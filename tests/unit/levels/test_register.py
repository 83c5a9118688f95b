"""The register of levels is whole, what it asks for is there, and what a level is stands nowhere else.
Standard: relay/ADDING.md; what is missing for a new level is named here, with the file where it belongs.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import get_annotations, signature
from pathlib import Path
from typing import get_args

import pytest

from relay import levels
from relay.identity.pairs import Role
from relay.keys.group import Use
from relay.keys.ring import KeyRing
from relay.levels import LEVELS, Level
from relay.schemes.all import all_schemes

TOP = Path(__file__).parents[3]
RELAY = TOP / "relay"
FORMAT = (RELAY / "FORMAT.md").read_text()
POLICIES = (TOP / "policies" / "README.md").read_text()
NUMBERS = {1: "otp", 2: "aes", 3: "pqc", 4: "rsa"}
"""Numbers that policy files out there have. None is ever given to another level."""
OTHER_MEANINGS = {
    "relay/audit/entries.py": {"plaintext"},  # a kind of record
    "relay/dkim/keys.py": {"rsa"},  # algorithms of DKIM
    "relay/cli/dkim.py": {"rsa"},
    "relay/formats/cms/smime_signed.py": {"rsa"},  # kinds of signatures
    "relay/smime/verifying.py": {"rsa"},
    "relay/keys/group.py": {"otp", "aes"},  # what keys are for, in a library that knows nothing of mail
    "relay/keys/ring.py": {"otp", "aes"},
}
"""Strings that are spelt as a level and mean something else."""
each_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_all_levels_are_listed_strongest_first() -> None:
    assert [level.name for level in LEVELS] == list(levels.SEALING), "SealingLevel and LEVELS differ"
    assert [name for name in levels.NAMES if name in levels.SEALING] == list(levels.SEALING), "LevelName is the order"


def test_a_number_is_that_of_one_level_for_ever() -> None:
    numbers = {level.number: level.name for level in LEVELS}
    assert len(numbers) == len(LEVELS), "two levels have the same number"
    assert numbers.items() >= NUMBERS.items(), "a number that policy files have is another level's now"
    assert set(range(1, max(numbers))) <= numbers.keys() | NUMBERS.keys(), "a new level has the next free number"


def test_no_two_levels_have_the_same_algorithms_or_look_alike() -> None:
    assert len({level.algorithms for level in LEVELS}) == len(LEVELS)
    assert len({level.form for level in LEVELS}) == len(LEVELS), "receivers and the tripwire go by the form"


@each_level
def test_each_level_has_a_scheme_that_states_no_facts_of_its_own(level: Level) -> None:
    assert (RELAY / "schemes" / f"{level.name}.py").exists(), f"relay/schemes/{level.name}.py is missing"
    scheme = all_schemes().get(level.name)
    assert scheme is not None, f"relay/schemes/{level.name}.py::scheme makes a scheme of another name"
    assert scheme.algorithms == level.algorithms, f"relay/schemes/{level.name}.py has another level's facts"
    assert scheme.quantum == level.quantum, f"{level.name}: `use` in relay/levels says whether it spends quantum keys"
    declared = {name for base in type(scheme).__mro__ for name in get_annotations(base)}
    assert {name for name in declared if not hasattr(scheme, name)} == set(), f"relay/schemes/{level.name}.py"


@each_level
def test_a_level_without_quantum_keys_needs_certificates_that_peers_have(level: Level) -> None:
    assert level.quantum != bool(level.certificates)
    assert set(level.certificates) <= {role.value for role in Role}


@each_level
def test_the_format_has_a_place_for_each_level(level: Level) -> None:
    headings = re.findall(r"^## \d+\. Levels? (.*)$", FORMAT, re.MULTILINE)
    assert level.name in {name for each in headings for name in re.split(r", | and ", each)}, "relay/FORMAT.md"
    sections = re.split(r"^## ", FORMAT, flags=re.MULTILINE)
    own = [text for text in sections if re.match(rf"\d+\. Levels? .*\b{level.name}\b", text)]
    assert re.search(rf"\b{level.name}\b", own[0].partition("\n")[2]), "relay/FORMAT.md does not say what it is"
    for oid in (level.form.kind, level.form.content, level.form.kem.oid if level.form.kem else ""):
        assert oid in FORMAT, f"relay/FORMAT.md does not have {oid}"


def test_the_format_draws_all_levels_in_their_order() -> None:
    assert f"  {' | '.join(levels.SEALING)}\n" in FORMAT, "relay/FORMAT.md, section 1"


@pytest.mark.parametrize("protection", levels.protections())
def test_the_policies_page_says_what_each_level_promises(protection: str) -> None:
    table = POLICIES.partition("### What each level promises")[2].partition("\n###")[0]
    first = re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)
    assert protection in {name for cell in first for name in cell.split(", ")}, "policies/README.md"


def test_no_other_file_says_what_a_level_is() -> None:
    facts = {*levels.NAMES, *levels.protections(), *(level.algorithms for level in LEVELS)}
    facts |= {oid for level in LEVELS for oid in (level.form.kind, level.form.content) if oid}
    found = {
        name: named
        for path in RELAY.rglob("*.py")
        if path.parent != RELAY / "levels"
        if (named := facts & set(strings(path)) - OTHER_MEANINGS.get(name := str(path.relative_to(TOP)), set()))
    }
    assert not found, "read these from relay/levels instead"


def test_the_key_clients_have_the_same_words_for_what_keys_are_for() -> None:
    assert get_args(Use) == get_args(levels.KMEUse)
    assert signature(KeyRing.take).parameters["level"].default == levels.ON_TOP, "the level whose keys rotate"


def test_each_exception_is_still_one() -> None:
    for name, meant in OTHER_MEANINGS.items():
        assert meant <= set(strings(TOP / name)), name
