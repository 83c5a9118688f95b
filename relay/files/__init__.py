"""Files and who may read or write them: rights, permissions, stamps that tell a change, TOML.
Standard: a file that cannot be looked at is not gone; what root does follows no link of somebody else.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Writes the file so that a reader sees all of it or nothing."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


@contextmanager
def written_beside(
    path: Path, content: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None, beginning: str | None = None
) -> Iterator[Path]:
    """A file with this content in the same directory, flushed, to be renamed or linked to `path`; gone at the end.

    It has this mode and owner (uid, gid). Its name is random behind its `beginning`, by default that of `path`. That it
    has got its name is flushed too, if it has within. Raises OSError.
    """
    temporary = path.with_name((beginning or f".{path.name}.") + secrets.token_hex(8))
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        yield temporary
        sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
