"""Who has put policies into force, according to the file system: a note beside the link, or the owners of files.
Standard: stat(2); what somebody else could have written is ignored.

Only those who may write beside the link can put a set into force, and leave a note there. A note counts where it and
the link have one owner and it names this very link. It must also be newer than any that has counted before. An old note
that is moved back is ignored.
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

KnownBy = Literal["command", "files", ""]
"""The evidence: the note of `policy install`, the owners of the changed files, or none."""

MAX_NOTE = 4096
"""Maximum size of a note, in bytes."""
MAX_USER = 64
"""Maximum length of a user name in a note, in characters."""
MAX_OWNERS = 5
"""Maximum number of owners of changed files that are named."""
MAX_LOOKED_AT = 1000
"""Maximum number of changed files whose owners are checked."""


@dataclass(frozen=True, slots=True)
class Installer:
    """User IDs and the evidence for them; `sudo_user` is the user who became root by sudo(8), says root's command."""

    uids: tuple[int, ...] = ()
    sudo_user: str = ""
    known_by: KnownBy = ""


class InstallNote(NamedTuple):
    """The valid content of a note: the installer, and its time (ns since 1970)."""

    who: Installer
    time: int


def leads_through(path: Path, link: Path) -> bool:
    """Whether resolving an absolute path passes through this link. Raises OSError."""
    place = (os.path.realpath(link.parent), link.name)
    return any((directory, name) == place for directory, name, *_ in steps(path))


def write_note(link: Path, beside: Path, version: str) -> None:
    """Notes that this process puts `version` into force: `beside` is about to be renamed to `link`. Raises OSError."""
    said: dict[str, Any] = {"version": version, "link": beside.lstat().st_ino, "time": time.time_ns()}
    if os.geteuid() == 0 and (user := os.environ.get("SUDO_USER")):
        said["sudo_user"] = user[:MAX_USER]
    note = _note_of(link)
    unfinished = note.with_name(f"{note.name}.new")
    unfinished.unlink(missing_ok=True)  # left by a killed process
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
    """The valid note for `version` and this link; None if there is none.

    It must be newer than `after`, in nanoseconds since 1970.
    """
    try:
        link_status = link.lstat()
        number = os.open(_note_of(link), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb") as file:
            note_status = os.fstat(number)
            content = file.read(MAX_NOTE + 1) if stat.S_ISREG(note_status.st_mode) else b""
        if len(content) > MAX_NOTE:
            return None
        members = json.loads(content)
        written, user = members["time"], members.get("sudo_user", "")
        is_for_link = (members["version"], members["link"]) == (version, link_status.st_ino)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    others_write = note_status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not is_for_link or others_write or note_status.st_uid != link_status.st_uid or not isinstance(written, int):
        return None
    if not stat.S_ISLNK(link_status.st_mode) or written <= after:
        return None
    # Anybody can set SUDO_USER for a command of their own; what root says of it is as good as root.
    sudo_user = user[:MAX_USER] if note_status.st_uid == 0 and isinstance(user, str) else ""
    return InstallNote(Installer((note_status.st_uid,), sudo_user, "command"), written)


def owners_of_files(directory: Path, names: Iterable[str]) -> Installer:
    """The owners of these files; checks the first MAX_LOOKED_AT.

    Nobody if the files no longer exist.
    """
    uids: dict[int, None] = {}
    for name in islice(names, MAX_LOOKED_AT):
        with suppress(OSError):
            uids.setdefault((directory / name).stat().st_uid)
    return Installer(tuple(islice(uids, MAX_OWNERS)), known_by="files") if uids else Installer()


def _note_of(link: Path) -> Path:
    return link.with_name(f".{link.name}.installed")
