"""Finds the user who controls a path, for root, and acts as that user, temporarily or permanently.
Standard: path_resolution(7) by directory descriptors that follow no link; setgroups(2), setegid(2), seteuid(2).

Root may trust a name only if root alone can change it. So a path is followed from the root directory, one name after
the other. The first directory, link or file that belongs to another user decides. That user can replace everything
below it at any time, so root acts there as that user. Users cannot give files away (chown(2)), so this cannot be
forged from below.
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
from relay.files.accounts import group_name, user_name
from relay.files.acl import NamedInACL, named_in_acl
from relay.files.commands import as_user, command, one_after_the_other, with_acl_tools

MAX_LINKS = 40
"""Maximum number of symbolic links in a path, as in Linux (path_resolution(7))."""
MAX_ATTEMPTS = 100
"""Maximum number of attempts to open a name that other users keep replacing."""
_OPEN_ALREADY = re.compile(r"/(?:dev|proc/self)/(?:fd/(\d+)|std(in|out|err))")
_NOT_LITERAL = re.compile(r"[\\*?\[\]]")
"""Characters with a special meaning in find(1) patterns."""
_STANDARD = {"in": 0, "out": 1, "err": 2}
EVERYBODY = "everybody"


class OthersCanWrite(ConfigError):
    """A file or directory that `writers` can change: everybody, a group, or whom an ACL names.

    `what` is the place, they, and the remedy.
    """

    def __init__(self, path: Path, place: Path, writers: str | NamedInACL) -> None:
        if isinstance(writers, NamedInACL):
            remedy = with_acl_tools(typed_by_root(place, "setfacl", "-x", writers.entry))
            writers = f"{writers}, by an ACL,"
        else:
            remedy = typed_by_root(place, "chmod", "o-w" if writers == EVERYBODY else "g-w")
        self.what = f"{writers} can write to {place}: {remedy}"
        super().__init__(f"{path}: root does nothing there: {self.what}")


@dataclass(frozen=True, slots=True)
class UnixUser:
    """A user other than root; `name` is the number if the system has no name."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str

    @classmethod
    def owning(cls, status: os.stat_result) -> UnixUser:
        """The owner of a file with this status; one without an account has the group of the file, and no other."""
        return cls.numbered(status.st_uid, status.st_gid)

    @classmethod
    def numbered(cls, uid: int, gid: int) -> UnixUser:
        """The user with this number; one without an account has this group, and no other."""
        try:
            account = pwd.getpwuid(uid)
        except KeyError:
            return cls(uid, gid, (gid,), str(uid), "/")
        groups = tuple(os.getgrouplist(account.pw_name, account.pw_gid))
        return cls(account.pw_uid, account.pw_gid, groups, account.pw_name, account.pw_dir)


@dataclass(frozen=True, slots=True)
class _PathPlace:
    """The target of a path: a name in an open directory, controlled by `owner` (None: root alone).

    `status` is the name's; None if it does not exist. `rest` are the remaining names of the path.
    """

    directory: int
    name: str
    owner: UnixUser | None
    status: os.stat_result | None
    rest: tuple[str, ...] = ()

    @property
    def is_last(self) -> bool:
        """False if the path continues."""
        return not self.rest

    @property
    def path(self) -> Path:
        """The path without links."""
        return Path(f"/proc/self/fd/{self.directory}").readlink() / self.name


def owner_of(path: Path) -> UnixUser | None:
    """The first user other than root who can change the target of this path; None if root alone can.

    A missing file belongs to the owner of its directory. Raises ConfigError if a directory of root on the path is
    writable for others, since its owner is then uncertain. It is also raised if the path cannot be followed.
    """
    with _place(path) as place:
        return place.owner


def others_can_write(path: Path, trusted: Collection[int] = (), *, groups: bool = True) -> str:
    """Returns who besides root and the `trusted` users can change this path or its content; "" for nobody.

    Without `groups`, group members and users in an ACL are allowed. Raises ConfigError if the path cannot be followed.
    """
    try:
        with _place(path, _FollowedPath(path, {0, *trusted}, groups=groups, whole=True)) as place:
            return f"user {place.owner.name} can change it" if place.owner is not None else ""
    except OthersCanWrite as error:
        return error.what


def others_can_read(file: Path, trusted: Collection[int] = ()) -> str:
    """Returns who besides root and the `trusted` users can read this file, by its mode, its group or an ACL; "" for
    nobody. Who can reach it counts for nothing, since a directory is opened more easily than a file. Raises OSError.
    """
    status = file.stat()
    if status.st_mode & stat.S_IROTH:
        return EVERYBODY
    if named := named_in_acl(file, os.R_OK, {0, *trusted}):
        return str(named)
    if status.st_mode & stat.S_IRGRP:
        members = {each for each in _members(status.st_gid) if each not in {0, *trusted}}
        return f"user {user_name(min(members))}, of group {group_name(status.st_gid)}," if members else ""
    return ""


def _members(gid: int) -> Iterator[int]:
    """The users in a group, by their numbers."""
    yield from (each.pw_uid for each in pwd.getpwall() if each.pw_gid == gid)
    with suppress(KeyError):
        for name in grp.getgrgid(gid).gr_mem:
            with suppress(KeyError):
                yield pwd.getpwnam(name).pw_uid


def why_not_as_root(program: str) -> str:
    """Why root must not run the program: others can replace it. "" for another user, or if nothing is wrong."""
    executable = shutil.which(program)
    if os.geteuid() or executable is None:
        return ""
    try:
        return (
            f"{executable}: root does not run it: {writers}" if (writers := others_can_write(Path(executable))) else ""
        )
    except ConfigError as error:
        return str(error)


def typed_by_root(path: Path, *words: str) -> str:
    """The command for root to paste that applies these words (`chmod 600`) to a file or directory.

    Another user's file is changed as that user, who could replace it by a link.
    """
    path = path.absolute()
    try:
        status = path.lstat()
        if status.st_uid:
            return as_user(UnixUser.owning(status).name, *words, path)
        with _place(path.parent) as parent:
            if parent.owner is None and stat.S_ISLNK(status.st_mode):
                return typed_by_root(path.resolve(strict=True), *words)
            if parent.owner is None:
                return command(*words, path)
            owner = parent.owner.name
    except OthersCanWrite as error:
        return error.what
    except (ConfigError, OSError):
        return command("namei", "-l", path)
    return one_after_the_other(given_by_root(path, owner), as_user(owner, *words, path))


def given_by_root(path: Path, user: str) -> str:
    """The command for root to paste that gives a file or directory to this user. No link is followed.

    Below a directory that another user can write, find(1) descends without following links. A file with a second name
    may be one of root's elsewhere.
    """
    path = path.absolute()
    try:
        of_one_name = () if path.is_dir() else ("-links", "1")
        with _place(path.parent) as parent:
            if parent.owner is None:
                return command("chown", "-h", f"{user}:", path)
            top, whole = parent.path, parent.path.joinpath(*parent.rest, path.name)
    except OthersCanWrite as error:
        return error.what
    except (ConfigError, OSError):
        return command("namei", "-l", path)
    where = ("find", top, "-xdev", "-path", _NOT_LITERAL.sub(r"\\\g<0>", str(whole)), *of_one_name)
    return command(*where, "-execdir", "chown", "-h", f"{user}:", "{}", "+")


@contextmanager
def acting_as(user: UnixUser | None) -> Iterator[None]:
    """Context in which root acts as this user for the kernel; None: nothing changes.

    Does nothing for other users than root, or if nested. Raises ConfigError if it is not possible.
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
    """Context in which root acts as the owner of this path, who is returned. Raises what `owner_of` raises."""
    owner = owner_of(path) if os.geteuid() == 0 else None
    with acting_as(owner):
        yield owner


def become(user: UnixUser | None) -> None:
    """Changes this process to that user permanently; does nothing for None, or if it is not root's.

    Open files stay open. The process leaves root's terminal. The kernel then forbids that user's other processes to
    trace it (prctl(2), PR_SET_DUMPABLE). Raises ConfigError if it is not possible.
    """
    if user is None or os.geteuid():
        return
    _leave_terminal()
    try:
        os.setgroups(user.groups)
        os.setgid(user.gid)
        os.setuid(user.uid)
    except OSError as error:
        raise _cannot_become(user, error) from error
    os.environ["HOME"] = user.home


def _leave_terminal() -> None:
    """Gives up the controlling terminal, through which a process can type into it (TIOCSTI).

    A session leader keeps its terminal, which ends with it.
    """
    import fcntl  # no serving relay needs them
    import termios

    if os.getsid(0) == os.getpid():
        return
    with suppress(OSError):  # no terminal
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(terminal, termios.TIOCNOTTY)
        finally:
            os.close(terminal)


def open_named(path: Path) -> BinaryIO:
    """Opens a file from the command line for reading; root opens it as the owner of its place.

    So a link in another user's directory gives root nothing that this user may not read. Raises OSError and
    ConfigError.
    """
    return open(path, "rb", opener=opened)


def create_named(path: Path) -> BinaryIO:
    """Opens a file from the command line for writing, truncated or created (mode 0666 and the umask).

    Root does so as the owner of its place. Raises OSError and ConfigError.
    """
    return open(path, "wb", opener=opened)


def opened(name: str | Path, flags: int) -> int:
    """A descriptor of the path, as from open(2); root opens it as the owner of its place.

    Raises OSError and ConfigError.
    """
    name = str(name)
    if (match := _OPEN_ALREADY.fullmatch(name)) is not None:
        return os.dup(int(match[1]) if match[1] is not None else _STANDARD[match[2]])
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
    """The name was replaced meanwhile."""


def _opened_by_root(place: _PathPlace, name: str, flags: int) -> int:
    """Opens without following links: in a directory such as /tmp others can create the name first."""
    truncates = flags & os.O_TRUNC
    flags = (flags | os.O_NOFOLLOW) & ~os.O_TRUNC
    if place.status is None and place.is_last and flags & os.O_CREAT:
        return os.open(place.name, flags | os.O_EXCL, 0o666, dir_fd=place.directory)
    if place.status is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    try:
        descriptor = os.open(place.name, flags & ~os.O_CREAT, dir_fd=place.directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOENT):
            raise _Exchanged from error
        raise
    now = os.fstat(descriptor)
    if (now.st_dev, now.st_ino) != (place.status.st_dev, place.status.st_ino):
        os.close(descriptor)
        raise _Exchanged
    if truncates and stat.S_ISREG(now.st_mode):
        os.ftruncate(descriptor, 0)
    return descriptor


_ROOT = frozenset({0})


@contextmanager
def _place(path: Path, followed: _FollowedPath | None = None) -> Iterator[_PathPlace]:
    """The target of the path, followed as root unless `followed` is given. Raises ConfigError."""
    followed = followed or _FollowedPath(path, _ROOT)
    try:
        try:
            place = followed.resolve()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from error
        yield place
    finally:
        os.close(followed.directory)


class _FollowedPath:
    """Follows a path as long as only the `trusted` users (their numbers) can change it.

    With `whole` only they can also change the file at its end. `directory` is a descriptor of the directory reached.
    """

    def __init__(self, path: Path, trusted: Collection[int], *, groups: bool = True, whole: bool = False) -> None:
        self._path, self._trusted, self._groups, self._whole = path, trusted, groups, whole
        self._names = _names(path.absolute())
        self._links = 0
        self.directory = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def resolve(self) -> _PathPlace:
        """The place where the path ends, or leaves the trusted users. Raises OSError and OthersCanWrite."""
        while True:
            name = self._names.pop() if self._names else "."
            status = self._status(name)
            if status is None or status.st_uid not in self._trusted:
                owner = UnixUser.owning(status) if status is not None else None
                return _PathPlace(self.directory, name, owner, status, tuple(reversed(self._names)))
            if stat.S_ISLNK(status.st_mode):
                self._follow(name)
            elif self._names:
                self._enter(name)
            else:
                if stat.S_ISDIR(status.st_mode) or (self._whole and stat.S_ISREG(status.st_mode)):
                    self._refuse_others(status, name)
                return _PathPlace(self.directory, name, None, status)

    def _status(self, name: str) -> os.stat_result | None:
        """The status of a name here; None if missing. A name that others could replace must be theirs."""
        try:
            status = os.stat(name, dir_fd=self.directory, follow_symlinks=False)
        except FileNotFoundError:
            status = None
        if status is None or status.st_uid in self._trusted:
            self._refuse_others(os.fstat(self.directory), ".")
        return status

    def _refuse_others(self, status: os.stat_result, name: str) -> None:
        """Raises OthersCanWrite; in a directory with the sticky bit others cannot replace root's names."""
        writers = self._writers(status, name)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if writers and not sticky:
            raise OthersCanWrite(self._path, Path(f"/proc/self/fd/{self.directory}").readlink() / name, writers)

    def _writers(self, status: os.stat_result, name: str) -> str | NamedInACL:
        if status.st_mode & stat.S_IWOTH:
            return EVERYBODY
        if not status.st_mode & stat.S_IWGRP or not self._groups:
            return ""
        # First the ACL: what the mode shows as the group's may be a right of those whom it names.
        by_acl = named_in_acl(f"/proc/self/fd/{self.directory}/{name}", os.W_OK, self._trusted)
        if by_acl or not status.st_gid:
            return by_acl or ""
        return f"group {group_name(status.st_gid)}"

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
    """The names of a path in reverse order."""
    return [name for name in reversed(path.parts) if name != "/"]


def _cannot_become(user: UnixUser, error: OSError) -> ConfigError:
    return ConfigError(f"this has to go on as user {user.name}, and cannot: {error.strerror}")
