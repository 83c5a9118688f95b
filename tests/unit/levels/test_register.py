"""The register of levels is whole, and what a level is stands nowhere else.
Standard: relay/ADDING.md; what is missing for a new level is named here, with the file where it belongs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from relay import levels
from relay.levels import LEVELS

TOP = Path(__file__).parents[3]
RELAY = TOP / "relay"
FORMAT = (RELAY / "FORMAT.md").read_text()
OTHER_MEANINGS = {
    "relay/audit/entries.py": {"plaintext"},  # a kind of record
    "relay/dkim/keys.py": {"rsa"},  # algorithms of DKIM
    "relay/dkim/verifying.py": {"rsa"},
    "relay/cli/dkim.py": {"rsa"},
}
"""Strings that are spelt as a level and mean something else."""


def _strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_other_file_names_a_level() -> None:
    facts = {*levels.NAMES, *levels.protections(), *(level.algorithms for level in LEVELS)}
    facts |= {oid for level in LEVELS for oid in (level.form.kind, level.form.content) if oid}
    found = {
        name: named
        for path in RELAY.rglob("*.py")
        if path.parent != RELAY / "levels"
        if (named := facts & set(_strings(path)) - OTHER_MEANINGS.get(name := str(path.relative_to(TOP)), set()))
    }
    assert not found, "read these from relay/levels instead"


def test_each_exception_is_still_one() -> None:
    for name, meant in OTHER_MEANINGS.items():
        assert meant <= set(_strings(TOP / name)), name
