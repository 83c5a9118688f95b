"""Who has put policies into force, as the file system attests it: a note beside the link, the link, or the files.
Standard: stat(2); what somebody else could have written counts for nothing.

Only those who may write beside the link can put a set into force, and leave a note there. A note counts where it and
the link have one owner and it names this very link. It must also be newer than any that has counted before. An old note
that is moved back says nothing.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from relay.files.permissions import steps

KnownBy = Literal["command", "link", "files", ""]
"""What says who it was: the note of `policy install`, the owner of the link, the owners of the files, or nothing."""

MAX_NOTE = 4096
"""Maximum size of a note, in bytes."""
MAX_USER = 64
"""Maximum length of a user's name that a note gives, in characters."""
MAX_OWNERS = 5
"""Maximum number of owners of changed files that are named."""
MAX_LOOKED_AT = 1000
"""Maximum number of changed files whose owners are looked at."""


class LinkId(NamedTuple):
    """Distinguishes a link from any other in its place: a rename keeps the inode, and sets the time of change (ns)."""

    inode: int
    changed: int
    target: str


@dataclass(frozen=True, slots=True)
class Installer:
    """User IDs, and what they are known by; `sudo_user` is who has become root by sudo(8), as root's command says."""

    uids: tuple[int, ...] = ()
    sudo_user: str = ""
    known_by: KnownBy = ""


class InstallNote(NamedTuple):
    """What counts of a note: whom it names, and its time (ns since 1970)."""

    who: Installer
    time: int


def leads_through(path: Path, link: Path) -> bool:
    """Whether a link, on the way to what an absolute path leads to, is this one. Raises OSError."""
    place = (os.path.realpath(link.parent), link.name)
    return any((directory, name) == place for directory, name, _ in steps(path))


def link_of(directory: Path) -> LinkId | None:
    """The link that leads to the policies; None where the directory is no link."""
    try:
        found = directory.lstat()
        if stat.S_ISLNK(found.st_mode):
            return LinkId(found.st_ino, found.st_ctime_ns, str(directory.readlink()))
    except OSError:
        pass
    return None


def write_note(link: Path, beside: Path, version: str) -> None:
    """Says that this process puts `version` into force: `beside` is about to be renamed to `link`. Raises OSError."""
    said: dict[str, Any] = {"version": version, "link": beside.lstat().st_ino, "time": time.time_ns()}
    if os.geteuid() == 0 and (user := os.environ.get("SUDO_USER")):
        said["sudo_user"] = user[:MAX_USER]
    note = _note_of(link)
    unfinished = note.with_name(f"{note.name}.new")
    unfinished.unlink(missing_ok=True)  # of one that was killed here
    number = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(number, "w") as file:
            os.fchmod(number, 0o644)  # the relay, another user, has to read it, whatever the umask
            file.write(json.dumps(said) + "\n")
        unfinished.replace(note)
    except OSError:
        with suppress(OSError):
            unfinished.unlink()
        raise


def read_note(link: Path, version: str, after: int) -> InstallNote | None:
    """The note of who has put `version` into force by this link; None where there is none that counts.

    It has to be newer than `after`, in nanoseconds since 1970.
    """
    try:
        of_link = link.lstat()
        number = os.open(_note_of(link), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            of_note = os.fstat(number)
            content = file.read(MAX_NOTE + 1) if stat.S_ISREG(of_note.st_mode) else b""
        if len(content) > MAX_NOTE:
            return None
        said = json.loads(content)
        written, user = said["time"], said.get("sudo_user", "")
        meant = (said["version"], said["link"]) == (version, of_link.st_ino)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    others_write = of_note.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not meant or others_write or of_note.st_uid != of_link.st_uid or not isinstance(written, int):
        return None
    if not stat.S_ISLNK(of_link.st_mode) or written <= after:
        return None
    # Anybody can set SUDO_USER for a command of their own; what root says of it is as good as root.
    sudo_user = user[:MAX_USER] if of_note.st_uid == 0 and isinstance(user, str) else ""
    return InstallNote(Installer((of_note.st_uid,), sudo_user, "command"), written)


def owner_of_link(directory: Path, link: LinkId, names: Iterable[str]) -> Installer:
    """Returns who made the link by which these files changed; or who owns the files that changed after it."""
    names = list(islice(names, MAX_LOOKED_AT))
    later = owners_of_files(directory, names, after=link.changed)
    if later.uids:
        return later
    try:
        return Installer((directory.lstat().st_uid,), known_by="link")
    except OSError:
        return Installer()


def owners_of_files(directory: Path, names: Iterable[str], after: int = 0) -> Installer:
    """Whose the files are that changed `after` a time (ns since 1970); of many the first are looked at.

    Nobody where they are gone.
    """
    uids: dict[int, None] = {}
    for name in islice(names, MAX_LOOKED_AT):
        with suppress(OSError):
            found = (directory / name).stat()
            if found.st_ctime_ns > after:
                uids.setdefault(found.st_uid)
    return Installer(tuple(islice(uids, MAX_OWNERS)), known_by="files") if uids else Installer()


def _note_of(link: Path) -> Path:
    return link.with_name(f".{link.name}.installed")
