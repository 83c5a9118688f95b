"""Files and who may read or write them: rights, permissions, stamps that tell a change, TOML.
Standard: a file that cannot be looked at is not gone; what root does follows no link of somebody else.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes the file so that a reader sees all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file. Raises OSError, also for all else: a FIFO would be waited for without end.

    A file that `flags` make has mode 0600.
    """
    # O_NONBLOCK: opening a FIFO must not wait for somebody at its other end, nor must what is read from it then.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def sync_directory(directory: Path) -> None:
    """Puts the directory's own entries on the disk: that a file was made or renamed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
