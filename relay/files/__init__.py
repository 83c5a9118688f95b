"""Files: access rights, permissions, stamps that detect changes, TOML.
An unreadable file is not gone; root follows no link of other users.
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
    """Replaces the file atomically."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text)
    beside.replace(path)


@contextmanager
def written_beside(
    path: Path, content: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None, beginning: str | None = None
) -> Iterator[Path]:
    """A temporary file with this content in the same directory, flushed, to be renamed or linked to `path`.

    It has this mode and owner (uid, gid), and a random name after `beginning`, by default that of `path`. The directory
    is flushed at the end. Raises OSError.
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
    """A descriptor of a regular file. Raises OSError, also for anything else: a FIFO would block forever.

    A file created by `flags` has mode 0600.
    """
    # O_NONBLOCK: a FIFO must not wait for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def resolved(path: Path) -> Path:
    """The path without symbolic links. A missing part or a loop of links stays as it is: opening it reports the error.

    `Path.resolve` fails for a loop, with different exceptions in versions of Python.
    """
    return Path(os.path.realpath(path))


def sync_directory(directory: Path) -> None:
    """Flushes the entries of a directory after a file was created or renamed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Flushes a file that another program has written. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
