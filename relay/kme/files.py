"""Files that only their owner may read and that a crash never leaves half-written.
Standard: POSIX.1 rename(), which replaces a file in one step, and mode bits 0600 and 0700.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.errors import ConfigError


def private_directory(path: Path) -> None:
    """Make `path` with mode 0700, or see that it is a directory of ours that nobody else may enter.

    Raises ConfigError saying what to do. A directory that others use is not closed to them.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made into a directory: {error.strerror}") from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{path}: others may enter it; name another directory, or chown and chmod 700 it")


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process holds `directory`, and hold it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Put `content` into `path` with mode 0600, in one step; raises OSError and then changes nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
