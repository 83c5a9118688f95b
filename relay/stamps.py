"""Tells whether files have changed: by what the file system says of each, as make(1) does, but of more than one time.
Written in place, renamed over and removed are all seen, also on file systems of which the kernel tells nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

Stamp = tuple[int, int, int, int, int]
"""Times of change (ns since 1970), size, inode and device of a file, as they were just before it was read."""
Stamps = dict[Path, Stamp | None]
"""Of each file its own, None where there is none."""


def stamp_of(path: Path | os.DirEntry[str]) -> Stamp | None:
    """What differs after a file was written to or replaced; None where there is no file."""
    try:
        return stamped(path.stat())
    except OSError:
        return None


def stamped(found: os.stat_result) -> Stamp:
    """The stamp of a file that was looked at."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def stamps_of(paths: Iterable[Path]) -> Stamps:
    """The stamps of these files now."""
    return {path: stamp_of(path) for path in paths}
