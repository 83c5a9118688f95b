"""The files of an identity and of pinned peers: read with checks, replaced atomically.
Standard: OpenSSH's StrictModes; write, fsync, rename, fsync of the directory; files 0600 in a directory 0700.

Root works only in directories that root alone controls. In one of the relay's user it has to act as that user, as in
files/rights.py.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.errors import ConfigError
from relay.files import credentials, permissions, written_beside
from relay.files.rights import UnixUser, opened, owner_of, typed_by_root

MAX_LENGTH = 3 * 2**20
"""Maximum size of a file, in octets."""

_LEFTOVER = ".writing-"


def read_secret(path: Path) -> bytes:
    """The content of a file that nobody else can read or write. Raises ConfigError."""
    return _read(credentials.place_of(path), forbidden=0o177)


def read_public(path: Path) -> bytes:
    """The content of a file that nobody else can write. Raises ConfigError."""
    return _read(path, forbidden=0o022)


def write(path: Path, content: bytes, *, owner: UnixUser | None = None) -> None:
    """Creates or replaces a file of mode 0600 atomically; root creates it for `owner`, if given.

    Readers see the old content or the new, also after a crash. Raises ConfigError.
    """
    with _written_beside(path, content, owner) as temporary:
        temporary.replace(path)


def create(path: Path, content: bytes, *, owner: UnixUser | None = None) -> bool:
    """As `write`, but leaves an existing file unchanged and returns False. Raises ConfigError."""
    with _written_beside(path, content, owner) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


@contextmanager
def _written_beside(path: Path, content: bytes, owner: UnixUser | None) -> Iterator[Path]:
    """A temporary file with this content in the same directory, to be renamed; the directory is then flushed."""
    _refuse_root(path.parent)
    given = (owner.uid, owner.gid) if owner is not None and os.geteuid() == 0 else None
    try:
        with written_beside(path, content, owner=given, beginning=_LEFTOVER) as temporary:
            yield temporary
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def changing(directory: Path) -> Iterator[None]:
    """Exclusive lock for changes of the directory, which is created (0700) if missing. Raises ConfigError.

    Removes leftovers of killed writers first.
    """
    _refuse_root(directory)
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_directory(directory)
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"{directory}: cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in directory.glob(_LEFTOVER + "*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def check_directory(directory: Path) -> None:
    """Raises ConfigError if others can write here: write access decides whom we trust."""
    try:
        status = directory.stat()
    except OSError as error:
        raise ConfigError(permissions.cause(directory, error, "", private=True)) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ConfigError(f"{directory}: not a directory")
    _check_owner(status, directory)
    if status.st_mode & 0o022:
        raise ConfigError(
            f"{directory}: others can write to this directory: {typed_by_root(directory, 'chmod', '700')}"
        )


def _read(path: Path, *, forbidden: int) -> bytes:
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        descriptor = opened(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{path}: not a regular file")
            _check_owner(status, path)
            _check_mode(descriptor, path, forbidden)
            content = file.read(MAX_LENGTH + 1)
    except FileNotFoundError as error:
        raise ConfigError(credentials.missing(path) or permissions.cause(path, error, "", private=True)) from error
    except OSError as error:
        raise ConfigError(permissions.cause(path, error, "", private=True)) from error
    if len(content) > MAX_LENGTH:
        raise ConfigError(f"{path}: over {MAX_LENGTH} octets")
    return content


def _check_owner(status: os.stat_result, path: Path) -> None:
    if os.geteuid() and status.st_uid not in (0, os.geteuid()):
        raise permissions.anothers_file(path, status.st_uid)


def _check_mode(descriptor: int, path: Path, forbidden: int) -> None:
    status = os.fstat(descriptor)
    # A systemd credential is readable by its service alone, but the mask of its ACL shows as group mode.
    if permissions.shown_by_root(status, descriptor) or credentials.shown_by_systemd(path, status):
        forbidden &= ~0o040
    mode = stat.S_IMODE(status.st_mode)
    if mode & forbidden:
        verb = "read or write" if forbidden & 0o044 else "write"
        raise ConfigError(f"{path}: mode {mode:04o} lets others {verb} it: {permissions.keep_to_us(path, status)}")


def _refuse_root(path: Path) -> None:
    """Raises AnothersFile if root works in another user's directory, who can replace files there at any time."""
    if os.geteuid() == 0 and (owner := owner_of(path)) is not None:
        raise permissions.anothers_file(path, owner.uid)
