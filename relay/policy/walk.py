"""Finds policy files in a directory by name, detects changed ones by their stamps, and reads them.
What is not clearly a policy file is an error or ignored by rule.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from relay.errors import ConfigError
from relay.files import permissions, toml
from relay.files.stamps import Seen, Unknown, is_gone, searched, stamp_of, stamped, unseen
from relay.policy.names import SUFFIX, printable

TOP = ""
"""The name of the top directory, relative to itself."""

NEVER_READ = Unknown(0)
"""The state of a file that is to be read, whatever its stamp."""

MAX_FILES = 200_000
"""Maximum number of policy files in a directory; one with more is not read."""


@dataclass(slots=True)
class Listing:
    """The contents of a directory of policies: files and the domains' directories, by relative name.

    Each has its stamp; None for a file whose link leads to nothing. `faults` are by directory, "" for the top. The
    contents of `unread` directories are unknown. Two are equal if no file and no fault differs.
    """

    directory: Path
    files: dict[str, Seen] = field(default_factory=dict)
    directories: dict[str, Seen] = field(default_factory=dict, compare=False)
    faults: dict[str, list[str]] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, directory: Path, before: Mapping[str, Seen] = MappingProxyType({})) -> Listing:
        """The present contents; files that cannot be looked at are presumed to be as `before`."""
        listing = cls(directory)
        try:
            listing._list(TOP)
        except ConfigError as error:
            listing.faults[TOP] = error.problems
            listing.unread.add(TOP)
        if listing.unread:
            kept = {n: seen for n, seen in before.items() if not listing.unread.isdisjoint((TOP, _directory_of(n)))}
            listing.files = {**kept, **listing.files}
        return listing

    @property
    def changed_ns(self) -> int:
        """The last change of any file or directory (ctime, ns since 1970); 0 without any."""
        stamps = (seen for seen in chain(self.files.values(), self.directories.values()) if isinstance(seen, tuple))
        return max((ctime for _, ctime, *_ in stamps), default=0)

    def differing(self, read: Mapping[str, Seen]) -> list[str]:
        """The files that have another stamp than when they were `read`, are new, or are gone."""
        differing = [name for name, seen in self.files.items() if read.get(name, NEVER_READ) != seen]
        return differing + [name for name in read if name not in self.files]

    def _list(self, name: str) -> None:
        path = self.directory / name
        try:
            # A directory that can be listed and not searched shows names without any stamp.
            self.directories[name] = stamped(searched(path))
            with os.scandir(path) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):  # editors, version control, mounted volumes
                        self._entry(name, entry)
        except OSError as error:
            self._not_listed(name, path, error)

    def _not_listed(self, name: str, path: Path, error: OSError) -> None:
        if name and is_gone(error) and _is_no_directory(path):
            self.directories.pop(name, None)
            return
        self.directories[name] = unseen(error)
        self.unread.add(name)
        self._fault(name, permissions.cause(Path(error.filename or path), error))

    def _entry(self, directory: str, entry: os.DirEntry[str]) -> None:
        name = f"{directory}/{entry.name}" if directory else entry.name
        looks_like_policy = entry.name.lower().endswith(SUFFIX)
        is_directory = _is_directory(entry)
        if is_directory and directory:
            self._fault(
                directory, f"{printable(entry.path)}: a directory too deep; policies lie in a domain's directory"
            )
        elif is_directory and looks_like_policy:
            text = "a directory, but called like a file; call it after a domain"
            self._fault(directory, f"{printable(entry.path)}: {text}")
        elif entry.name.endswith(SUFFIX):
            if len(self.files) >= MAX_FILES:
                raise ConfigError(f"{printable(str(self.directory))}: more than {MAX_FILES} policy files")
            self.files[name] = seen = stamp_of(entry)
            if isinstance(seen, Unknown) and not entry.is_symlink():  # so the others are unknown as well
                raise OSError(seen.error, os.strerror(seen.error), entry.path)
        elif looks_like_policy:  # README.md, `x.toml~` and `x.toml.bak` do not
            self._fault(directory, f"{printable(entry.path)}: write the ending as {SUFFIX!r}, in small letters")
        elif not directory and (is_directory is not False or _leads_nowhere(entry)):
            self._list(name)

    def _fault(self, directory: str, text: str) -> None:
        self.faults.setdefault(directory, []).append(text)


def _is_directory(entry: os.DirEntry[str]) -> bool | None:
    """Whether it is a directory; None if the target of a link is unknown: it may be a domain's directory."""
    try:
        return entry.is_dir()
    except OSError:
        return None


def _is_no_directory(path: Path) -> bool:
    """Whether it is missing or a file; a dangling link may be intended for a directory."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        return is_gone(error) and stamp_of(path, follow=False) is None


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether a link dangles: it may be a domain's directory, whose files are then missing."""
    return entry.is_symlink() and stamp_of(entry) is None


class FileText(NamedTuple):
    """The text of a file; `digest` is SHA-256 of name and text."""

    text: str
    digest: int


def read_file(directory: str, name: str) -> FileText:
    """Reads one file of the directory. Raises ConfigError, also for a pipe or device, which would never end."""
    path = f"{directory}/{name}"
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(number)
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{printable(path)}: not a regular file; a policy is a file (or a link to one)")
            raw = os.read(number, min(status.st_size, toml.MAX_FILE_BYTES) + 1)
        finally:
            os.close(number)
    except OSError as error:
        raise ConfigError(permissions.cause(path, error)) from error
    plain = raw.isascii() and len(raw) == status.st_size
    text = raw.decode("ascii") if plain else toml.read(Path(path))
    octets = raw if plain else text.encode()
    return FileText(text, digest_of(name, octets))


def digest_of(name: str, octets: bytes) -> int:
    """SHA-256 of a file's name and its text in UTF-8, as a number."""
    return int.from_bytes(hashlib.sha256(b"%b\0%b" % (name.encode("utf-8", "surrogateescape"), octets)).digest(), "big")


def _directory_of(name: str) -> str:
    return name.rpartition("/")[0]


def why_closed(directory: Path) -> list[str]:
    """Why the files in a directory cannot be read; empty if it can be searched or is gone."""
    try:
        searched(directory)
    except OSError as error:
        return [] if is_gone(error) else [permissions.cause(directory, error)]
    return []
