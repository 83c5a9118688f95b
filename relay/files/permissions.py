"""Explains why this process cannot access a file or directory: the denying part of the path, its mode, and a remedy.
Standard: path_resolution(7); the kernel is asked for effective ids (faccessat(2), AT_EACCESS), so ACLs count as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from relay.errors import AnothersFile
from relay.files.accounts import group_name, user_name
from relay.files.acl import named_in_acl
from relay.files.commands import as_user, command, named, one_after_the_other, with_acl_tools
from relay.files.rights import given_by_root, typed_by_root

HIDDEN = (
    "systemd hides it from the relay (ProtectHome=yes in the unit, as /home and /root), or nobody is meant to read it: "
    "put what the relay needs elsewhere"
)
"""The remedy for HOMES, and where not even root has a right: what a unit may not see looks so (systemd.exec(5))."""
HOMES = ("/root", "/home", "/run/user")
MAX_LINKS = 40
"""Maximum number of links followed in a path, as in Linux."""
OF_NOBODY = ("nogroup", "nobody")
"""Names of the group shared by users without one of their own (Debian, Red Hat): it gets no access to files."""
_ACCESS = {"r": os.R_OK, "x": os.X_OK}
_SHIFTS = {"u": 6, "g": 3, "o": 0}


class PathStep(NamedTuple):
    """A searched directory, the name looked up there, and whether it is the last one.

    `link` is the first link followed so far in a directory that others than root can write, "" if there was none.
    """

    directory: str
    name: str
    last: bool
    link: str


class Denial(NamedTuple):
    """What denies access: a file or directory, the right ("read" or "search"), mode and owner, and the remedy.

    `link` is the link that leads there, if others than root may have made it: the remedy then changes nothing.
    """

    place: str
    right: str
    rights: str
    remedy: str
    link: str = ""

    def __str__(self) -> str:
        done, denied = "searched" if self.right == "search" else "read", os.strerror(errno.EACCES)
        return f"{self.place}: cannot be {done} by {user()}: {denied} ({self.rights}): {self.remedy}"


def cause(path: str | Path, error: OSError, prefix: str = "cannot be read: ", *, private: bool = False) -> str:
    """One line on the cause of `error` at this path: what denies access, else `prefix` and the error text.

    No remedy opens a `private` file to anybody but its owner.
    """
    if error.errno == errno.EACCES and (denial := denial_at(path, private=private)) is not None:
        return str(denial)
    return f"{named(Path(path))}: {prefix}{error.strerror or error}"


def denial_at(path: str | Path, *, private: bool = False) -> Denial | None:
    """What denies this process read access to a file or directory; None if nothing does or it is unknown."""
    try:
        return _denial_at(Path(path).absolute(), private=private)
    except OSError:
        return None


def steps(path: Path) -> Iterator[PathStep]:
    """Resolves an absolute path like the kernel; the last step has no name, and is the target.

    Raises OSError (ELOOP).
    """
    at, links, planted = "/", 0, ""
    remaining = list(reversed(path.parts[1:]))
    while remaining:
        part = remaining.pop()
        yield PathStep(at, part, not remaining, planted)
        if part == "..":
            at = at.rpartition("/")[0] or "/"
            continue
        child = f"{at.rstrip('/')}/{part}"
        try:
            target = os.readlink(child)  # noqa: PTH115 - a thousand links may lead through one directory
        except OSError:  # not a link
            at = child
            continue
        if (links := links + 1) > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        planted = planted or (child if _others_write(at) else "")
        at = "/" if target.startswith("/") else at
        remaining += reversed(Path(target).parts[target.startswith("/") :])
    yield PathStep(at, "", last=False, link=planted)


def _others_write(directory: str) -> bool:
    """Whether others than root can make a link there."""
    status = os.stat(directory)  # noqa: PTH116 - as above
    return status.st_uid != 0 or bool(status.st_mode & 0o022)


def _denial_at(path: Path, *, private: bool) -> Denial | None:
    """Checks each step of an absolute path. Raises OSError."""
    at, link = "/", ""
    for at, name, _, link in steps(path):
        if not name:
            break
        if not os.path.isdir(at):  # noqa: PTH112 - nothing is below a file, whatever its rights
            return None
        if not os.access(at, os.X_OK, effective_ids=True):
            return _denial(Path(at), "x", link, private=private)
    place = Path(at)
    needed = "rx" if place.is_dir() else "r"
    lacks = "".join(each for each in needed if not os.access(place, _ACCESS[each], effective_ids=True))
    if not lacks:
        return None
    denial = _denial(place, lacks, link, private=private)
    if link or place == path or place.is_dir():
        return denial
    return denial._replace(remedy=f"a link leads there; if that is meant: {denial.remedy}")


def why_not_written(path: Path, error: OSError) -> str:
    """The error text; for another user's file also its owner, and root's command that makes it writable for us."""
    return f"{error.strerror or error}{another_owner(path) if error.errno == errno.EACCES else ''}"


def another_owner(path: Path) -> str:
    """A suffix for error texts: the owner of this file and root's command to make it ours; "" if it is ours."""
    try:
        owner = path.lstat().st_uid
    except OSError:
        return ""
    return "" if owner == os.geteuid() else f": it belongs to user {user_name(owner)}: {give_to_us(path)}"


def give_to_us(path: Path) -> str:
    """Root's command that makes the file or directory ours."""
    return given_by_root(path, user())


def shown_by_root(status: os.stat_result, file: int | Path) -> bool:
    """Whether the file is root's and our group's, without others in its ACL: the service can read but not write it.

    Raises OSError.
    """
    of_root = status.st_uid == 0 != os.geteuid() and status.st_gid == os.getegid()
    return of_root and not named_in_acl(file, os.R_OK | os.W_OK, (0, os.geteuid()))


def keep_to_us(path: Path, status: os.stat_result) -> str:
    """Root's command that makes the file readable for us alone."""
    if status.st_uid == 0 != os.geteuid():
        return one_after_the_other(give_to_us(path), as_user(user(), "chmod", "600", path.absolute()))
    return typed_by_root(path, "chmod", "600")


def anothers_file(path: Path, owner: int) -> AnothersFile:
    """The error for a file of the relay that belongs to another user; it names the user to run this as."""
    whose, us = user_name(owner), user()
    has_to = f"the relay and its commands have to run as {whose}; {_run_as(whose)}"
    return AnothersFile(f"{path}: belongs to user {whose}, and this runs as {us}: {has_to}")


def _run_as(user: str) -> str:
    return f"as root: {as_user(user, 'qumail-relay', '...')}"


def user() -> str:
    """The name of the user that this process acts as."""
    return user_name(os.geteuid())


def _denial(place: Path, lacks: str, link: str, *, private: bool) -> Denial:
    status = place.stat()
    rights = f"mode {status.st_mode & 0o7777:04o}, owner {user_name(status.st_uid)}:{group_name(status.st_gid)}"
    if link:
        # Who made the link may want root to give away what it leads to.
        where, look = named(Path(link)), command("ls", "-ld", Path(link))
        remedy = f"a link leads there, {where}; change nothing there, and look at the link: {look}"
    else:
        of_owner = _remedy_of_owner(place, status) if private and status.st_uid != os.geteuid() else None
        remedy = of_owner or _remedy(place, status, lacks)
    right = "search" if lacks == "x" else "read"
    return Denial(named(place), right, rights, printable(remedy), link)


def _remedy(place: Path, status: os.stat_result, lacks: str) -> str:
    """The command by which root or the owner grants this process the missing right; nobody loses a right."""
    # Rights there would open nothing, or what was not meant.
    if status.st_uid == 0 and (not status.st_mode & 0o777 or any(map(place.is_relative_to, HOMES))):
        return HIDDEN
    in_group = status.st_gid in (os.getegid(), *os.getgroups())
    whose = "u" if status.st_uid == os.geteuid() else "g" if in_group else "o"
    if status.st_mode & _bits(whose, lacks) == _bits(whose, lacks):
        look = with_acl_tools(typed_by_root(place, "getfacl"))
        return f"its mode permits it, so an ACL or a security module does not: {look}"
    if whose != "o" or status.st_mode & _bits("o", "r"):
        return typed_by_root(place, "chmod", f"{whose}+{lacks}")
    if status.st_uid == 0 and not status.st_mode & _bits("g", lacks) and group_name(os.getegid()) not in OF_NOBODY:
        chgrp = typed_by_root(place, "chgrp", group_name(os.getegid()))
        return one_after_the_other(chgrp, typed_by_root(place, "chmod", f"g+{lacks}"))
    return with_acl_tools(typed_by_root(place, "setfacl", "-m", f"u:{user()}:{lacks}"))


def _remedy_of_owner(place: Path, status: os.stat_result) -> str | None:
    """Returns the remedy for a file that only one user may read; None for a directory of root on the path."""
    if status.st_uid:
        owner = user_name(status.st_uid)
        return f"the relay and its commands have to run as {owner}; {_run_as(owner)}"
    if place.is_dir():
        return None
    return keep_to_us(place, status) if status.st_mode & 0o077 else give_to_us(place)


def _bits(whose: str, rights: str) -> int:
    return sum(_ACCESS[each] << _SHIFTS[whose] for each in rights)


def printable(text: str) -> str:
    """`text` with everything that could disturb a terminal or a log line escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
