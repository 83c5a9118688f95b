"""Finds the policy files in a directory by their names, tells files from changed ones, and reads one.
What is not plainly a policy file is an error or ignored by rule, never half understood.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from relay import toml
from relay.errors import ConfigError
from relay.policy.names import SUFFIX, printable
from relay.stamps import Stamp, stamp_of, stamped

DOUBTFUL_NS = 2_000_000_000
"""A file changed so shortly before it was read may have changed again without a sign: file times are coarse."""

MAX_FILES = 200_000
"""A directory with more policy files than this is not read."""


@dataclass(slots=True)
class Listing:
    """What lies in a directory of policies: files and the domains' directories, by their names from there.

    Of each file the stamp, None where there is nothing behind a link. `links` are those of both that are links.
    `faults` are by the directory that has them, "" for the top, as `missing` are those that cannot be read.
    """

    directory: Path
    files: dict[str, Stamp | None] = field(default_factory=dict)
    directories: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    faults: dict[str, list[str]] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def look(self, name: str = "") -> None:
        """Lists one directory: a domain's, or the top with all below it. Raises ConfigError if files are too many."""
        try:
            with os.scandir(self.directory / name) as entries:
                for entry in entries:
                    if not entry.name.startswith("."):  # editors, version control, mounted volumes
                        self._entry(name, entry)
        except OSError as error:
            self.missing.add(name)
            self._fault(name, f"{printable(str(self.directory / name))}: cannot be read: {error.strerror}")

    def _entry(self, directory: str, entry: os.DirEntry[str]) -> None:
        name = f"{directory}/{entry.name}" if directory else entry.name
        looks_like_policy = entry.name.lower().endswith(SUFFIX)
        if _is_directory(entry):
            if directory:
                what = "a directory too deep; policies lie in a domain's directory"
                self._fault(directory, f"{printable(entry.path)}: {what}")
            elif looks_like_policy:
                what = "a directory, but called like a file; call it after a domain"
                self._fault(directory, f"{printable(entry.path)}: {what}")
            else:
                self.directories.add(name)
                self._note_link(name, entry)
                self.look(name)
        elif entry.name.endswith(SUFFIX):
            if len(self.files) >= MAX_FILES:
                raise ConfigError(f"{printable(str(self.directory))}: more than {MAX_FILES} policy files")
            self.files[name] = stamp_of(entry)
            self._note_link(name, entry)
        elif not directory and _leads_nowhere(entry):  # it may be a domain's directory, whose files are missed then
            self._note_link(name, entry)
            self.look(name)
        elif looks_like_policy:  # README.md, `x.toml~` and `x.toml.bak` do not
            self._fault(directory, f"{printable(entry.path)}: write the ending as {SUFFIX!r}, in small letters")

    def _note_link(self, name: str, entry: os.DirEntry[str]) -> None:
        if entry.is_symlink():
            self.links.add(name)

    def _fault(self, directory: str, what: str) -> None:
        self.faults.setdefault(directory, []).append(what)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it will say so
        return False


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


class FileText(NamedTuple):
    """What a file holds; `digest` is SHA-256 of name and text, `stamp` tells from a changed one if it is `settled`."""

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
            found = os.fstat(number)
            if not stat.S_ISREG(found.st_mode):
                raise ConfigError(f"{printable(path)}: not a regular file; a policy is a file (or a link to one)")
            raw = os.read(number, min(found.st_size, toml.MAX_FILE_BYTES) + 1)
        finally:
            os.close(number)
    except OSError as error:
        raise ConfigError(f"{printable(path)}: cannot be read: {error.strerror}") from error
    plain = raw.isascii() and len(raw) == found.st_size
    text = raw.decode("ascii") if plain else toml.read(Path(path))
    octets = raw if plain else text.encode()
    return FileText(text, digest_of(name, octets), stamped(found), now - found.st_ctime_ns > DOUBTFUL_NS)


def digest_of(name: str, octets: bytes) -> int:
    """SHA-256 of a file's name and its text in UTF-8, as a number."""
    return int.from_bytes(hashlib.sha256(b"%b\0%b" % (name.encode("utf-8", "surrogateescape"), octets)).digest(), "big")
