"""Finds policy files in a directory by name, detects changed ones by their stamps, and reads them.
What is not clearly a policy file is an error or ignored by rule.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from relay.errors import ConfigError
from relay.files import permissions, toml
from relay.files.stamps import Seen, Stamp, Unknown, is_gone, searched, stamp_of, stamped, unseen
from relay.policy.names import SUFFIX, printable

DOUBTFUL_NS = 2_000_000_000
"""Age up to which a file's timestamp is not trusted, in nanoseconds: file times are coarse."""

TOP = ""
"""The name of the top directory, relative to itself."""
ALL = frozenset({TOP})
"""The top directory and all below it."""

MAX_FILES = 200_000
"""Maximum number of policy files in a directory; one with more is not read."""


@dataclass(slots=True)
class Listing:
    """The contents of a directory of policies: files and the domains' directories, by relative name.

    Each has its stamp; None for a file whose link leads to nothing. `links` are all names that are links, and `shared`
    the files with other names (hard links). `faults` are by directory, "" for the top. The contents of `unread`
    directories are unknown: their files are presumed unchanged.
    """

    directory: Path
    files: dict[str, Seen] = field(default_factory=dict)
    directories: dict[str, Seen] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    shared: set[str] = field(default_factory=set)
    faults: dict[str, list[str]] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)

    def look(self, directories: Collection[str] = ALL) -> None:
        """Lists these domains' directories, or the top with all below it. Raises ConfigError for too many files."""
        if directories != ALL and (closed := why_closed(self.directory)):
            self.unread.add(TOP)
            self.faults[TOP] = closed
            return
        for name in directories:
            self._list(name)

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
            self._note_link(name, entry)
            if isinstance(seen, Unknown) and name not in self.links:  # so the others are unknown as well
                raise OSError(seen.error, os.strerror(seen.error), entry.path)
            if isinstance(seen, tuple) and entry.stat().st_nlink > 1:  # cached by the call before
                self.shared.add(name)
        elif looks_like_policy:  # README.md, `x.toml~` and `x.toml.bak` do not
            self._fault(directory, f"{printable(entry.path)}: write the ending as {SUFFIX!r}, in small letters")
        elif not directory and (is_directory is not False or _leads_nowhere(entry)):
            self._note_link(name, entry)
            self._list(name)

    def _note_link(self, name: str, entry: os.DirEntry[str]) -> None:
        if entry.is_symlink():
            self.links.add(name)

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
    """The text of a file; `digest` is SHA-256 of name and text; a `settled` stamp differs after any change."""

    text: str
    digest: int
    stamp: Stamp
    settled: bool


def read_file(directory: str, name: str) -> FileText:
    """Reads one file of the directory. Raises ConfigError, also for a pipe or device, which would never end."""
    path = f"{directory}/{name}"
    now = time.time_ns()
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
    return FileText(text, digest_of(name, octets), stamped(status), now - status.st_ctime_ns > DOUBTFUL_NS)


def digest_of(name: str, octets: bytes) -> int:
    """SHA-256 of a file's name and its text in UTF-8, as a number."""
    return int.from_bytes(hashlib.sha256(b"%b\0%b" % (name.encode("utf-8", "surrogateescape"), octets)).digest(), "big")


def why_closed(directory: Path) -> list[str]:
    """Why the files in a directory cannot be read; empty if it can be searched or is gone."""
    try:
        searched(directory)
    except OSError as error:
        return [] if is_gone(error) else [permissions.cause(directory, error)]
    return []
