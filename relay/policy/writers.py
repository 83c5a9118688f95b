"""Which policy files a program has open for writing, and which program that is: for what the kernel did not report.
Standard: proc(5); it shows the processes of the same user, to root all, and none of another machine.

inotify reports a writer from its first write on; a relay that starts, or watches anew, has not heard of those before.
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
"""Maximum number of files that are also looked for where links lead to."""


def being_written(directory: Path, names: Iterable[str] = ()) -> dict[str, str]:
    """Returns the files below `directory` that are open for writing, each with the program and its process.

    `names` are files that may be behind links to elsewhere.
    """
    top = os.path.realpath(directory)
    elsewhere = {os.path.realpath(f"{top}/{name}"): name for name in islice(names, MAX_RESOLVED)}
    found: dict[str, str] = {}
    for process, path in _open_for_writing(f"{top}/", elsewhere):
        name = elsewhere.get(path) or path.removeprefix(f"{top}/")
        found[name] = f"{_program(process)}, process {process}"
    return found


def _open_for_writing(below: str, others: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields each process with each of these files, which have the ending of policy files."""
    for process in _listed("/proc"):
        if not process.isdigit():
            continue
        for number in _listed(f"/proc/{process}/fd"):
            link = f"/proc/{process}/fd/{number}"
            with suppress(OSError):  # closed again, or ended
                path = os.readlink(link)  # noqa: PTH115 - a Path takes as long again to be made
                if not path.endswith(SUFFIX) or not (path.startswith(below) or path in others):
                    continue
                if os.lstat(link).st_mode & stat.S_IWUSR:
                    yield process, path


def _listed(directory: str) -> list[str]:
    """Nothing where it may not be listed, or is gone."""
    try:
        return os.listdir(directory)  # noqa: PTH208 - as above
    except OSError:
        return []


def _program(process: str) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return "a program"
