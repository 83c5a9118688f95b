"""What a process has open, while it goes on opening and closing.
Standard: proc(5), /proc/PID/fd.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def open_at(pid: int) -> set[str]:
    """What each descriptor of a process leads to, as `socket:[4711]`; nothing of one that is closed meanwhile.

    Raises:
        OSError: the process has ended.
    """
    found = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.add(str(each.readlink()))
    return found
