"""Finds the policy files in a directory by their names, without reading them.
Standard: what is not plainly a policy file is an error or ignored by rule, never half understood.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from relay.errors import ConfigError
from relay.policy.names import SUFFIX, printable

MAX_FILES = 200_000
"""A directory with more policy files than this is not read."""


def policy_names(directory: Path, faults: list[str]) -> list[str]:
    """The names of all policy files, sorted; raises ConfigError if they are too many."""
    shown = printable(str(directory))
    names = sorted(islice(_walk(directory, faults), MAX_FILES + 1))
    if len(names) > MAX_FILES:
        raise ConfigError([*faults, f"{shown}: more than {MAX_FILES} policy files"])
    return names


def _walk(directory: Path, faults: list[str]) -> Iterator[str]:
    """Names of policy files, `example.org.toml` and `example.org/alice.toml`, in no order."""
    for entry in _entries(directory, faults):
        if not _is_directory(entry):
            yield from _policy(entry, faults)
        elif _looks_like_policy(entry.name):
            faults.append(f"{_shown(entry)}: a directory, but called like a file; call it after a domain")
        else:
            for inner in _entries(Path(entry.path), faults):
                if _is_directory(inner):
                    faults.append(f"{_shown(inner)}: a directory too deep; policies lie in a domain's directory")
                else:
                    yield from (f"{entry.name}/{name}" for name in _policy(inner, faults))


def _entries(directory: Path, faults: list[str]) -> Iterator[os.DirEntry[str]]:
    """What lies in a directory, without dot-files (editors, version control, mounted volumes)."""
    try:
        with os.scandir(directory) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        faults.append(f"{printable(str(directory))}: cannot be read: {error.strerror}")


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so
        return False


def _policy(entry: os.DirEntry[str], faults: list[str]) -> Iterator[str]:
    """The file's name if it is a policy; README.md, `x.toml~` and `x.toml.bak` are not."""
    if entry.name.endswith(SUFFIX):
        yield entry.name
    elif _looks_like_policy(entry.name):
        faults.append(f"{_shown(entry)}: write the ending as {SUFFIX!r}, in small letters")


def _looks_like_policy(name: str) -> bool:
    return name.lower().endswith(SUFFIX)


def _shown(entry: os.DirEntry[str]) -> str:
    return printable(entry.path)
