"""Writes files of a site atomically, with owner and mode, and never over anybody else's.
Write, fsync, rename, fsync of the directory; as root, configuration is root's and state is the service's.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from relay.errors import ConfigError
from relay.files import sync_directory, written_beside
from relay.files.commands import command
from relay.files.rights import as_owner_of, open_named

Outcome = Literal["made", "there already", "kept, though it says something else", "replaced"]


@dataclass(frozen=True, slots=True)
class Written:
    """The outcome for one file or directory."""

    path: Path
    outcome: Outcome

    @property
    def changed(self) -> bool:
        """Whether something was written."""
        return self.outcome in ("made", "replaced")


@dataclass(frozen=True, slots=True)
class Owner:
    """The relay's user. If root sets up, this user may read the configuration, and owns the state."""

    uid: int
    gid: int

    @classmethod
    def named(cls, user: str) -> Owner:
        """Raises ConfigError if there is no such user."""
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            home = ("--home-dir", f"/var/lib/{user}", "--shell", "/usr/sbin/nologin")
            remedy = command("useradd", "--system", *home, "--", user)
            raise ConfigError(
                f"{user}: no such user on this machine, as which the relay shall run; make it, or name one by --user: "
                f"{remedy}"
            ) from None
        return cls(entry.pw_uid, entry.pw_gid)

    @classmethod
    def myself(cls) -> Owner:
        """The current user."""
        return cls(os.geteuid(), os.getegid())

    @property
    def is_another(self) -> bool:
        """Whether root sets up a relay that runs as another user."""
        return os.geteuid() == 0 and self.uid != 0

    @property
    def name(self) -> str:
        """The user name."""
        return pwd.getpwuid(self.uid).pw_name

    @property
    def groups(self) -> list[int]:
        """The user's groups."""
        return os.getgrouplist(self.name, self.gid)


def make_directory(path: Path, owner: Owner, *, state: bool = False) -> Written:
    """Makes a directory of mode 0700, or 0750 for configuration that the relay's group may read; an existing one is
    kept.

    Root makes it as the owner of the parent directory. Raises ConfigError.
    """
    try:
        with as_owner_of(path):
            if path.is_dir():
                return Written(path, "there already")
            readable = owner.is_another and not state
            path.mkdir(mode=0o700, parents=True)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if owner.is_another:
                    os.fchown(descriptor, 0 if readable else owner.uid, owner.gid)
                os.fchmod(descriptor, 0o750 if readable else 0o700)
            finally:
                os.close(descriptor)
            sync_directory(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made: {error.strerror}") from error
    return Written(path, "made")


def put(path: Path, content: bytes, owner: Owner, *, replace: bool = False) -> Written:
    """Creates a configuration file; one with the same content is kept.

    A file with other content is kept too; with `replace` it is copied (`backed_up`) and replaced. The mode is 0600, or
    0640 if the relay runs as another user, who may read it. Root writes as the owner of the directory. Raises
    ConfigError.
    """
    outcome: Outcome = "made"
    try:
        with as_owner_of(path.parent):
            if os.path.lexists(path):
                with open_named(path) as file:
                    if file.read() == content:
                        return Written(path, "there already")
                if not replace:
                    return Written(path, "kept, though it says something else")
                backed_up(path)
                outcome = "replaced"
            others = owner.is_another
            write_flushed(path, content, 0o640 if others else 0o600, (0, owner.gid) if others else None)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    return Written(path, outcome)


def backed_up(path: Path) -> Path:
    """Copies the file to a name beside it that contains the time; with the same mode and owner."""
    with open_named(path) as file:
        info, content = os.fstat(file.fileno()), file.read()
    copy = path.with_name(f"{path.name}.before-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    owner = (info.st_uid, info.st_gid) if os.geteuid() == 0 else None
    write_flushed(copy, content, info.st_mode & 0o777, owner)
    return copy


def write_flushed(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Writes the file atomically: a reader sees the old or the new content, even after a crash. Raises OSError."""
    with written_beside(path, content, mode, owner) as temporary:
        temporary.replace(path)
