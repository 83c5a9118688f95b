"""Finds policy files that are open for writing, and the programs: for writers that inotify did not report.
Standard: proc(5); it shows the processes of the same user, all to root, and none of another machine.

inotify reports a writer from its first write on; a relay that starts, or watches anew, has missed earlier ones.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from relay.policy.names import SUFFIX

MAX_RESOLVED = 1000
"""Maximum number of files whose link targets are also checked."""


def being_written(directory: Path, names: Iterable[str] = ()) -> dict[str, str]:
    """Returns the files below `directory` that are open for writing, each with the program and its process.

    `names` are files that may be behind links to elsewhere.
    """
    top = os.path.realpath(directory)
    elsewhere = {os.path.realpath(f"{top}/{name}"): name for name in islice(names, MAX_RESOLVED)}
    writers: dict[str, str] = {}
    for process, path in _open_for_writing(f"{top}/", elsewhere):
        name = elsewhere.get(path) or path.removeprefix(f"{top}/")
        writers[name] = f"{_program(process)}, process {process}"
    return writers


def _open_for_writing(below: str, others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields each process with each open policy file among these."""
    for process in _listed("/proc"):
        if not process.isdigit():
            continue
        for number in _listed(f"/proc/{process}/fd"):
            link = f"/proc/{process}/fd/{number}"
            with suppress(OSError):  # closed meanwhile, or the process has ended
                path = os.readlink(link)  # noqa: PTH115 - a Path would double the time
                if not path.endswith(SUFFIX) or not (path.startswith(below) or path in others):
                    continue
                if os.lstat(link).st_mode & stat.S_IWUSR:
                    yield process, path


def _listed(directory: str) -> list[str]:
    """The names in a directory; none if it is unreadable or gone."""
    try:
        return os.listdir(directory)  # noqa: PTH208 - as above
    except OSError:
        return []


def _program(process: str) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return "a program"
