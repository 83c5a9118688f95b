"""The release that a process runs, and whether it is still the installed one.
Standard: importlib.metadata; an upgrade replaces every file, so the package's first file changes.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import relay


class Release(NamedTuple):
    """Version, directory of the package, and the identity of its first file ("" if missing)."""

    version: str
    directory: str
    stamp: str

    @property
    def now(self) -> str:
        """The current stamp of that directory."""
        return _stamp(Path(self.directory))


def installed() -> Release:
    """The release at the first call in this process or its parent; called at the start, the one that runs."""
    return _installed(Path(relay.__file__).parent)


@cache
def _installed(directory: Path) -> Release:
    return Release(_version(), str(directory), _stamp(directory))


def _version() -> str:
    """The version of the installed package; "0" for a relay run from its sources."""
    try:
        return version("qumail-relay")
    except PackageNotFoundError:
        return "0"


def _stamp(directory: Path) -> str:
    try:
        info = (directory / "__init__.py").stat()
    except (OSError, ValueError):  # a name with NUL in it
        return ""
    return f"{info.st_ino}.{info.st_mtime_ns}"
