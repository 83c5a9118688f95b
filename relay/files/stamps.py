"""Detects whether files have changed: by what the file system says of each, as make(1) does, but of more than one time.
Written in place, renamed over and removed are all seen, also on file systems without kernel notification.

Only ENOENT and ENOTDIR mean that nothing is there. Any other error leaves it open, such as a directory that cannot be
searched or a server that does not answer. What was known before then stays in force.
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from relay.errors import ConfigError
from relay.files import open_regular, permissions

Stamp = tuple[int, int, int, int, int]
"""Times of change (ns since 1970), size, inode and device of a file, as they were just before it was read."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """There may be a file or not: asking for it failed with this error number (EACCES, ELOOP, ESTALE, EIO, ...)."""

    error: int


Seen = Stamp | None | Unknown
"""A file with this stamp, no file, or unknown."""
Stamps = dict[Path, Seen]
"""Of each file what is there."""


MAX_REGULAR_OCTETS = 64 * 2**20
"""Maximum size of a file that the relay keeps beside its store, in bytes: one with holes costs its writer no disk."""


def read_regular(path: Path) -> bytes:
    """What a regular file holds. Raises OSError for a larger one, and for all else: a FIFO would be waited for."""
    with open(path, "rb", opener=open_regular) as file:
        content = file.read(MAX_REGULAR_OCTETS + 1)
    if len(content) > MAX_REGULAR_OCTETS:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def stamp_of(path: str | Path | os.DirEntry[str], *, follow: bool = True) -> Seen:
    """What is there. A stamp differs after a file was written to or replaced.

    `follow` says whether what a link leads to counts, or the link itself.
    """
    try:
        if isinstance(path, os.DirEntry):  # which may have been asked before
            return stamped(path.stat(follow_symlinks=follow))
        return stamped(os.stat(path, follow_symlinks=follow))  # noqa: PTH116 - a Path takes as long again to be made
    except OSError as error:
        return unseen(error)


def has_other_names(path: str | Path) -> bool:
    """Whether the file is reached by several names (hard links); False where that cannot be determined."""
    try:
        return os.stat(path).st_nlink > 1  # noqa: PTH116 - as above
    except OSError:
        return False


def stamp_of_directory(path: str | Path) -> Seen:
    """What is there, which is no directory where it cannot be searched: then no file in it can be looked at."""
    try:
        return stamped(searched(path))
    except OSError as error:
        return unseen(error)


def searched(path: str | Path) -> os.stat_result:
    """What the system says of a directory that can be searched. Raises OSError for any other."""
    return os.stat(f"{path}/.")  # noqa: PTH116 - a Path would drop the dot


def unseen(error: OSError) -> Unknown | None:
    """What asking for a file that failed says of it."""
    return None if is_gone(error) else Unknown(error.errno or errno.EIO)


def stamped(found: os.stat_result) -> Stamp:
    """The stamp of a file that was looked at."""
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev


def stamps_of(paths: Iterable[Path]) -> Stamps:
    """What is there now at each of these paths."""
    return {path: stamp_of(path) for path in paths}


def is_gone(error: OSError) -> bool:
    """Whether this error means that nothing is there."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


def is_there(path: Path) -> bool:
    """Whether a file or directory is there. Raises ConfigError, with the remedy, where that cannot be determined."""
    try:
        path.stat()
    except OSError as error:
        if is_gone(error):
            return False
        raise ConfigError(permissions.cause(path, error)) from error
    return True


def files_in(directory: Path, pattern: str = "*") -> list[Path]:
    """The files whose names fit, sorted; none where the directory is gone.

    Raises ConfigError, with the remedy, where that cannot be determined: a directory that cannot be listed or searched.
    """
    try:
        return _listed(directory, pattern)
    except OSError as error:
        if is_gone(error):
            return []
        raise ConfigError(permissions.cause(directory, error)) from error


def stamps_in(directory: Path, pattern: str = "*") -> Stamps:
    """What is there: the directory itself, which is Unknown where it cannot be listed or searched, and such files."""
    try:
        return stamps_of([directory, *_listed(directory, pattern)])
    except OSError as error:
        return {directory: unseen(error)}


def _listed(directory: Path, pattern: str) -> list[Path]:
    searched(directory)
    return sorted(path for path in directory.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
