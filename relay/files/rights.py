"""Whose a path is, as root has to judge it, and acting as that user for a while or for good.
Standard: path_resolution(7) by directory descriptors that follow no link; setgroups(2), setegid(2), seteuid(2).

Root may trust a name only as far as root alone can change it. So a path is followed from the root directory, one name
after the other. The first directory, link or file that belongs to another user decides. Below it that user can exchange
everything at any moment, so what is done there is done as that user. Nobody gives a file away (chown(2)), so that this
cannot be forged from below.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from relay.errors import ConfigError

MAX_LINKS = 40
"""Maximum number of symbolic links on the way, as in Linux (path_resolution(7))."""
MAX_ATTEMPTS = 100
"""Maximum number of attempts at a name in a directory where other users exchange it meanwhile."""
_OPEN_ALREADY = re.compile(r"/(?:dev|proc/self)/(?:fd/(\d+)|std(in|out|err))")
_STANDARD = {"in": 0, "out": 1, "err": 2}


class OthersCanWrite(ConfigError):
    """A file or directory that users can change of whom nobody knows; `what` says where, and who they are."""

    def __init__(self, path: Path, where: Path, found: os.stat_result) -> None:
        who = "everybody" if found.st_mode & stat.S_IWOTH else f"group {_group(found.st_gid)}"
        self.what = f"{who} can write to {where}: chmod {'o' if who == 'everybody' else 'g'}-w {where}"
        super().__init__(f"{path}: root does nothing there: {self.what}")


@dataclass(frozen=True, slots=True)
class UnixUser:
    """A user other than root; `name` is the number where the system knows no name."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str

    @classmethod
    def owning(cls, found: os.stat_result) -> UnixUser:
        """The owner of what was looked at; one without an account has the group of that, and no other."""
        try:
            account = pwd.getpwuid(found.st_uid)
        except KeyError:
            return cls(found.st_uid, found.st_gid, (found.st_gid,), str(found.st_uid), "/")
        groups = tuple(os.getgrouplist(account.pw_name, account.pw_gid))
        return cls(account.pw_uid, account.pw_gid, groups, account.pw_name, account.pw_dir)


@dataclass(frozen=True, slots=True)
class _PathPlace:
    """Where a path leads to: a name in an open directory, whose `owner` decides about it (None: root alone).

    `found` is what has that name; None where nothing has it. `is_last` is False where it is only a part of the way.
    """

    directory: int
    name: str
    owner: UnixUser | None
    found: os.stat_result | None
    is_last: bool


def owner_of(path: Path) -> UnixUser | None:
    """The first user other than root who can change where this path leads to; None where root alone can.

    What is not there yet belongs to the directory above it. Raises ConfigError where a directory of root's on the way
    lets others write, since its owner is then uncertain. It is raised as well where the path cannot be followed.
    """
    with _place(path) as place:
        return place.owner


def others_can_write(path: Path, trusted: Collection[int] = (), *, groups: bool = True) -> str:
    """Returns who besides root and the `trusted` users can change this path or its content; "" for nobody.

    Without `groups` members of a file's group may. Raises ConfigError where the path cannot be followed.
    """
    try:
        with _place(path, _FollowedPath(path, {0, *trusted}, groups=groups, whole=True)) as place:
            return f"user {place.owner.name} can change it" if place.owner is not None else ""
    except OthersCanWrite as error:
        return error.what


def why_not_as_root(program: str) -> str:
    """Why root, if root runs this, must not run the program: others can exchange it. "" where nothing is wrong."""
    found = shutil.which(program)
    if os.geteuid() or found is None:
        return ""
    try:
        return f"{found}: root does not run it: {who}" if (who := others_can_write(Path(found))) else ""
    except ConfigError as error:
        return str(error)


@contextmanager
def acting_as(user: UnixUser | None) -> Iterator[None]:
    """What root does within is done as this user, as far as the kernel is concerned; None: nothing changes.

    A user other than root, or one already chosen, stays as it is. Raises ConfigError where it cannot be done.
    """
    if user is None or os.geteuid():
        yield
        return
    gid, groups = os.getegid(), os.getgroups()
    try:
        try:
            os.setgroups(user.groups)
            os.setegid(user.gid)
            os.seteuid(user.uid)
        except OSError as error:
            raise _cannot_become(user, error) from error
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)


@contextmanager
def as_owner_of(path: Path) -> Iterator[UnixUser | None]:
    """What root does within is done as the owner of this path, who is given. Raises what `owner_of` raises."""
    owner = owner_of(path) if os.geteuid() == 0 else None
    with acting_as(owner):
        yield owner


def become(user: UnixUser | None) -> None:
    """From here on this process is that user's, and nothing of root is left; None, or no root: nothing changes.

    What it has opened before stays open. Raises ConfigError where it cannot be done.
    """
    if user is None or os.geteuid():
        return
    try:
        os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)
    except OSError as error:
        raise _cannot_become(user, error) from error
    os.environ["HOME"] = user.home


def open_named(path: Path) -> BinaryIO:
    """A file that a person has named on the command line, to read; root opens it as the owner of its place.

    So a link in another user's directory leads root to nothing that this user may not read. Raises OSError and
    ConfigError.
    """
    return open(path, "rb", opener=opened)


def create_named(path: Path) -> BinaryIO:
    """A file that a person has named on the command line, emptied or made (mode 0666 but for the umask), to write.

    Root does so as the owner of its place. Raises OSError and ConfigError.
    """
    return open(path, "wb", opener=opened)


def opened(name: str | Path, flags: int) -> int:
    """A descriptor for what the path leads to, as open(2) has it; root opens it as the owner of its place.

    Raises OSError and ConfigError.
    """
    name = str(name)
    if (found := _OPEN_ALREADY.fullmatch(name)) is not None:
        return os.dup(int(found[1]) if found[1] is not None else _STANDARD[found[2]])
    if os.geteuid():
        return os.open(name, flags, 0o666)
    for _ in range(MAX_ATTEMPTS):
        with _place(Path(name)) as place:
            if place.owner is not None:
                with acting_as(place.owner):
                    return os.open(name, flags, 0o666)
            with suppress(FileExistsError, _Exchanged):
                return _opened_by_root(place, name, flags)
    raise OSError(errno.ELOOP, "others exchange it again and again", name)


class _Exchanged(Exception):
    """Something else has the name than a moment ago."""


def _opened_by_root(place: _PathPlace, name: str, flags: int) -> int:
    """In a directory such as /tmp others can make what is not there yet, so that root must not follow what it finds."""
    truncates = flags & os.O_TRUNC
    flags = (flags | os.O_NOFOLLOW) & ~os.O_TRUNC
    if place.found is None and place.is_last and flags & os.O_CREAT:
        return os.open(place.name, flags | os.O_EXCL, 0o666, dir_fd=place.directory)
    if place.found is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    try:
        descriptor = os.open(place.name, flags & ~os.O_CREAT, dir_fd=place.directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT):
            raise _Exchanged from error
        raise
    now = os.fstat(descriptor)
    if (now.st_dev, now.st_ino) != (place.found.st_dev, place.found.st_ino):
        os.close(descriptor)
        raise _Exchanged
    if truncates and stat.S_ISREG(now.st_mode):
        os.ftruncate(descriptor, 0)
    return descriptor


_ROOT = frozenset({0})


@contextmanager
def _place(path: Path, way: _FollowedPath | None = None) -> Iterator[_PathPlace]:
    """Where the path leads to, as root sees it unless another `way` is given. Raises ConfigError."""
    way = way or _FollowedPath(path, _ROOT)
    try:
        try:
            place = way.to_its_end()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        yield place
    finally:
        os.close(way.directory)


class _FollowedPath:
    """A path that is followed as long as the users `trusted` alone can exchange it, who are numbers.

    With `whole` they alone can also change the file at its end. `directory` is a descriptor of where it has come to.
    """

    def __init__(self, path: Path, trusted: Collection[int], *, groups: bool = True, whole: bool = False) -> None:
        self._path, self._trusted, self._groups, self._whole = path, trusted, groups, whole
        self._names = _names(path.absolute())
        self._links = 0
        self.directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def to_its_end(self) -> _PathPlace:
        """Raises OSError and OthersCanWrite."""
        while True:
            name = self._names.pop() if self._names else "."
            found = self._found(name)
            if found is None or found.st_uid not in self._trusted:
                owner = UnixUser.owning(found) if found is not None else None
                return _PathPlace(self.directory, name, owner, found, not self._names)
            if stat.S_ISLNK(found.st_mode):
                self._follow(name)
            elif self._names:
                self._enter(name)
            else:
                if stat.S_ISDIR(found.st_mode) or (self._whole and stat.S_ISREG(found.st_mode)):
                    self._refuse_others(found, name)
                return _PathPlace(self.directory, name, None, found, is_last=True)

    def _found(self, name: str) -> os.stat_result | None:
        """What has this name here; None where nothing has it. What others could exchange has to be theirs."""
        try:
            found = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            found = None
        if found is None or found.st_uid in self._trusted:
            self._refuse_others(os.fstat(self.directory), ".")
        return found

    def _refuse_others(self, found: os.stat_result, name: str) -> None:
        """In a directory with the sticky bit others can make names, and exchange none of root's."""
        forbidden = stat.S_IWOTH | (stat.S_IWGRP if found.st_gid and self._groups else 0)
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if found.st_mode & forbidden and not sticky:
            raise OthersCanWrite(self._path, Path(f"/proc/self/fd/{self.directory}").readlink() / name, found)

    def _follow(self, name: str) -> None:
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(name, dir_fd=self.directory)
        if target.startswith("/"):
            self._enter("/")
        self._names += _names(Path(target))

    def _enter(self, name: str) -> None:
        before = self.directory
        self.directory = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=before)
        os.close(before)


def _names(path: Path) -> list[str]:
    """The names on a path, the first one last."""
    return [name for name in reversed(path.parts) if name != "/"]


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _cannot_become(user: UnixUser, error: OSError) -> ConfigError:
    return ConfigError(f"this has to go on as user {user.name}, and cannot: {error.strerror}")
