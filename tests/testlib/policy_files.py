"""Directories of policy files for tests: they are written, loaded, and what is wrong with them is given back.
Standard: policies/README.md; tests/data/decisions.toml, a table that an administrator can read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.policy.decide import Decision
from relay.policy.load import load_policies

TABLE = tomllib.loads((Path(__file__).parents[1] / "data" / "decisions.toml").read_text(encoding="utf-8"))
PEERS = {"bob": ["bob.example"], "carol": ["carol.example"]}
AES = 'levels = ["aes"]\n'


def write(directory: Path, files: Mapping[str, str]) -> Path:
    """Put files into a directory."""
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text, encoding="utf-8", newline="")
    return directory


def faults(directory: Path) -> list[str]:
    """What is wrong with a directory of policies, with paths as seen from there."""
    with pytest.raises(ConfigError) as caught:
        load_policies(directory, PEERS)
    return [problem.removeprefix(f"{directory}/") for problem in caught.value.problems]


def fault(directory: Path, text: str, name: str = "bob.example.toml") -> str:
    """The one thing wrong with one file."""
    (only,) = faults(write(directory, {name: text}))
    return only


def named(decision: Decision, directory: Path) -> str:
    """The name of the file that decided."""
    return str(Path(decision.source).relative_to(directory))
