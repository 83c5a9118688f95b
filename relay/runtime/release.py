"""Which release a process runs, and whether that is still what is installed where it came from.
Standard: importlib.metadata; an upgrade writes every file anew, so that the package's first file is another one then.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import relay


class Release(NamedTuple):
    """Version, directory of the package, and the identity of its first file ("" where it is gone)."""

    version: str
    directory: str
    stamp: str

    @property
    def now(self) -> str:
        """The stamp of what is in that directory now."""
        return _stamp(Path(self.directory))


def installed() -> Release:
    """The release that was installed when this process, or the one that it was forked from, first asked for it.

    Where that is at the start, it is the one that runs.
    """
    return _installed(Path(relay.__file__).parent)


@cache
def _installed(directory: Path) -> Release:
    return Release(_version(), str(directory), _stamp(directory))


def _version() -> str:
    """Returns the version of the installed package; "0" for a relay that runs from its sources."""
    try:
        return version("qumail-relay")
    except PackageNotFoundError:
        return "0"


def _stamp(directory: Path) -> str:
    try:
        info = (directory / "__init__.py").stat()
    except OSError:
        return ""
    return f"{info.st_ino}.{info.st_mtime_ns}"
