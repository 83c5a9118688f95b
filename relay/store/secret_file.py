"""Files that only the relay may read: read with suspicion, created whole, replaced in one step.
Standard: OpenSSH's StrictModes; write, fsync, link or rename, fsync of the directory.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from relay import files
from relay.errors import ConfigError
from relay.files import credentials, permissions, resolved, written_beside

MAX_LENGTH = 65_536
"""Maximum size of a secret file, in bytes."""


def read(path: Path) -> bytes:
    """The content of a file that nobody else can read or write; raises ConfigError."""
    path = credentials.place_of(path)
    try:
        # O_NONBLOCK: opening a FIFO must not wait for somebody to write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check(descriptor, path)
            content = file.read(MAX_LENGTH + 1)
    except FileNotFoundError as error:
        raise ConfigError(credentials.missing(path) or permissions.cause(path, error, "", private=True)) from error
    except OSError as error:
        raise ConfigError(permissions.cause(path, error, "", private=True)) from error
    if len(content) > MAX_LENGTH:
        raise ConfigError(f"{path}: over {MAX_LENGTH} bytes, so it is not a secret file")
    return content


def open_regular(path: Path, flags: int) -> int:
    """As `files.open_regular`, of the file with this very name: no link is followed. Raises OSError."""
    return files.open_regular(path, flags | os.O_NOFOLLOW)


def create(path: Path, content: bytes) -> None:
    """A new file of mode 0600, in a directory that is made (0700) if missing; one already there is kept.

    Nor is a credential made here. Raises ConfigError.
    """
    if credentials.credential_name(path):
        return
    try:
        if path.exists():
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with written_beside(path, content) as temporary, suppress(FileExistsError):
            os.link(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be created: {error.strerror}") from error


def make_directory(directory: Path) -> None:
    """A directory for us alone, where there is none yet. Raises ConfigError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be made: {error.strerror}") from error


def replace(path: Path, change: Callable[[bytes], bytes]) -> None:
    """The file with its content changed, for all readers at once; owner and mode stay. Raises ConfigError."""
    try:
        path = resolved(path)
        with locked(path.parent):
            content = change(read(path))
            before = path.stat()
            owner = (before.st_uid, before.st_gid) if before.st_uid != os.geteuid() else None
            with written_beside(path, content, owner=owner) as temporary:
                temporary.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be replaced: {error.strerror}") from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time, for the short work of making or replacing a file in this directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _check(descriptor: int, path: Path) -> None:
    info = os.fstat(descriptor)
    mode = stat.S_IMODE(info.st_mode)
    if not stat.S_ISREG(info.st_mode):
        raise ConfigError(
            f"{path}: not a regular file: move it away, and put the file back, from its backup if need be"
        )
    if info.st_uid not in (0, os.geteuid()):
        raise permissions.anothers_file(path, info.st_uid)
    # A systemd credential is readable by its service alone, but the mask of its ACL shows as group mode.
    shown = permissions.shown_by_root(info, descriptor) or credentials.shown_by_systemd(path, info)
    if mode & ~(0o740 if shown else 0o700) & 0o777:
        remedy = permissions.keep_to_us(path, info)
        raise ConfigError(f"{path}: mode {mode:04o} lets others read or write it: {remedy}")
