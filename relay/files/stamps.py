"""Detects changed files by their metadata, as make(1) does, but with more than one time.
It detects writing in place, renaming over a file and removal, also on file systems without kernel notification.

Only ENOENT and ENOTDIR mean that a file is gone. After any other error its state is unknown: an unsearchable
directory, or a server that does not respond. The previous content then stays in force.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from relay.errors import ConfigError
from relay.files import open_regular, permissions

T = TypeVar("T")
Stamp = tuple[int, int, int, int, int]
"""Times of change (ns since 1970), size, inode and device of a file just before it was read."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A file that may exist or not: stat(2) failed with this error number (EACCES, ELOOP, ESTALE, EIO, ...)."""

    error: int


Seen = Stamp | None | Unknown
"""A file with this stamp, no file, or unknown."""
Stamps = dict[Path, Seen]
"""The state of each file."""


MAX_REGULAR_OCTETS = 64 * 2**20
"""Maximum size of a file that the relay keeps beside its store, in bytes; a sparse one needs no disk space."""


def read_regular(path: Path) -> bytes:
    """The content of a regular file. Raises OSError for a larger one, and for anything else: a FIFO would block."""
    with open(path, "rb", opener=open_regular) as file:
        content = file.read(MAX_REGULAR_OCTETS + 1)
    if len(content) > MAX_REGULAR_OCTETS:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def read_json(path: Path, take: Callable[[Any], T]) -> T:
    """Returns `take` of the JSON in a file that the relay writes for itself.

    Raises OSError if the file is unreadable, and ValueError, without quoting the content, if the relay cannot have
    written it.
    """
    content = read_regular(path)
    try:
        return take(json.loads(content))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"not what a relay writes there ({type(error).__name__})") from error


def stamp_of(path: str | Path | os.DirEntry[str], *, follow: bool = True) -> Seen:
    """The state of a file. A stamp differs after a file was written to or replaced.

    `follow`: the target of a link, not the link itself.
    """
    try:
        if isinstance(path, os.DirEntry):  # may be cached
            return stamped(path.stat(follow_symlinks=follow))
        return stamped(os.stat(path, follow_symlinks=follow))  # noqa: PTH116 - a Path would double the time
    except OSError as error:
        return unseen(error)


def stamp_of_directory(path: str | Path) -> Seen:
    """The state of a directory; Unknown if it cannot be searched."""
    try:
        return stamped(searched(path))
    except OSError as error:
        return unseen(error)


def searched(path: str | Path) -> os.stat_result:
    """The status of a searchable directory. Raises OSError for any other."""
    return os.stat(f"{path}/.")  # noqa: PTH116 - a Path would drop the dot


def unseen(error: OSError) -> Unknown | None:
    """The state of a file after this error: gone or Unknown."""
    return None if is_gone(error) else Unknown(error.errno or errno.EIO)


def stamped(status: os.stat_result) -> Stamp:
    """The stamp of a file with this status."""
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev


def stamps_of(paths: Iterable[Path]) -> Stamps:
    """The current state of each of these paths."""
    return {path: stamp_of(path) for path in paths}


def is_gone(error: OSError) -> bool:
    """Whether this error means that the file is gone."""
    return error.errno in (errno.ENOENT, errno.ENOTDIR)


def is_there(path: Path) -> bool:
    """Whether a file or directory exists. Raises ConfigError, with the remedy, if that cannot be determined."""
    try:
        path.stat()
    except OSError as error:
        if is_gone(error):
            return False
        raise ConfigError(permissions.cause(path, error)) from error
    return True


def files_in(directory: Path, pattern: str = "*") -> list[Path]:
    """The files whose names match, sorted; none if the directory is gone.

    Raises ConfigError, with the remedy, for a directory that cannot be listed or searched.
    """
    try:
        return _listed(directory, pattern)
    except OSError as error:
        if is_gone(error):
            return []
        raise ConfigError(permissions.cause(directory, error)) from error


def stamps_in(directory: Path, pattern: str = "*") -> Stamps:
    """The states of matching files and of the directory, which is Unknown if it cannot be listed or searched."""
    try:
        return stamps_of([directory, *_listed(directory, pattern)])
    except OSError as error:
        return {directory: unseen(error)}


def _listed(directory: Path, pattern: str) -> list[Path]:
    searched(directory)
    return sorted(path for path in directory.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
