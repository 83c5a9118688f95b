"""Reads policy files into a PolicySet, and again after edits, or says everything that is wrong with all of them.
All files or none: what is read again is only what changed, and the result is as if all had been.
"""

from __future__ import annotations

import gc
import hashlib
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from relay import toml
from relay.config import MAX_BOUNCE
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.expected import Expected, read_tests
from relay.policy.file import DOUBTFUL_NS, Known, PolicyFile, Stamp, read_policy, stamp_of
from relay.policy.names import FLOORS_FILE, GROUPS_FILE, TESTS_FILE, fold_domain, printable
from relay.policy.require import Demand
from relay.policy.walk import MAX_FILES, Listing

BESIDE = frozenset({FLOORS_FILE, GROUPS_FILE, TESTS_FILE})
"""Files at the top that are for no domain and belong to the set all the same."""

FREEZE_FILES = 1000
"""After so many files were read, they are put where the garbage collector does not look."""
RELEASE_FILES = 1000
"""So many files are let go at once: longer, and all other threads would wait."""


def load_policies(directory: Path, peers: Mapping[str, Sequence[str]], *, max_bounce: int = MAX_BOUNCE) -> PolicySet:
    """Read every policy file below `directory`; `peers` gives each configured peer's mail domains.

    `max_bounce` is the largest message from the null sender, in octets, that gets a one-time pad. What tests.toml
    expects is read and not tried.

    Raises ConfigError with one line per fault of every file, of the directory and of `peers`.
    """
    return PolicyFolder(directory, peers, max_bounce=max_bounce).read()


class FileBeside(NamedTuple):
    """One of BESIDE as it was read; `digest` is SHA-256 of name and text."""

    text: str
    digest: int
    stamp: Stamp
    settled: bool


class PolicyFolder:
    """A directory of policy files and what is known of each of them; not to be used by two threads at once."""

    def __init__(self, directory: Path, peers: Mapping[str, Sequence[str]], *, max_bounce: int = MAX_BOUNCE) -> None:
        """Reads nothing yet."""
        self.directory = directory
        self._max_bounce = max_bounce
        self._peers = peers
        self._owner_faults: list[str] = []
        self._owners = MappingProxyType(_owners(peers, self._owner_faults))
        self._files: dict[str, PolicyFile] = {}
        self._beside: dict[str, FileBeside] = {}
        self._faulty: dict[str, list[str]] = {}
        self._listing_faults: dict[str, list[str]] = {}
        self._links: dict[str, Stamp | None] = {}
        self._tests: tuple[Expected, ...] = ()
        self._known: Known = {}
        self._unfrozen = 0
        self._let_go: list[PolicyFile] = []
        self._total = 0
        self._patterns = 0
        self._demands: Counter[Demand] = Counter()

    @property
    def tests(self) -> tuple[Expected, ...]:
        """What tests.toml expects of the set that was read last."""
        return self._tests

    @property
    def beside(self) -> frozenset[str]:
        """Which of BESIDE there are."""
        return frozenset(self._beside)

    def read(self) -> PolicySet:
        """All files; those that did not change since the last time are not read again. Raises ConfigError."""
        return self.read_again(self.outdated())

    def read_again(self, names: Iterable[str]) -> PolicySet:
        """Only the files of these names, which may be new or gone; all others are as they were. Raises ConfigError."""
        for name in names:
            try:
                link = stat.S_ISLNK(os.lstat(self.directory / name).st_mode)
            except OSError:
                self._forget(name)
                self._links.pop(name, None)
                continue
            self._read(name)
            if link:
                self._links[name] = self.stamp(name) or stamp_of(self.directory / name)
            else:
                self._links.pop(name, None)
        return self._set()

    def outdated(self, directory: str = "") -> dict[str, Stamp | None]:
        """Looks at one domain's directory, or at all: the files that are not as they were read, with their stamps now.

        None is for a file that is not there. Where the directory itself cannot be read, its files stay known.
        """
        listing = Listing(self.directory)
        try:
            listing.look(directory)
        except ConfigError as error:
            self._listing_faults = {"": error.problems}
            return {}
        if not directory:
            self._listing_faults = listing.faults
            self._links = {}
        else:
            self._listing_faults.pop(directory, None)
            self._links.pop(directory, None)
            if os.path.lexists(self.directory / directory):  # it need not be there
                self._listing_faults |= listing.faults
            if (self.directory / directory).is_symlink():
                listing.links.add(directory)
        for name in listing.links:
            self._links[name] = listing.files[name] if name in listing.files else stamp_of(self.directory / name)
        if "" in listing.missing:
            return {}
        found = {name: stamp for name, stamp in listing.files.items() if not self._is_as_read(name, stamp)}
        return found | {name: None for name in self._names_in(directory) if name not in listing.files}

    def moved_links(self) -> set[str]:
        """The files and directories behind links that are not as they were, which no watch can tell for sure."""
        return {name for name, stamp in self._links.items() if stamp_of(self.directory / name) != stamp}

    def stamp(self, name: str) -> Stamp | None:
        """That of the file when it was read; None where it is not in force."""
        file = self._files.get(name) or self._beside.get(name)
        return file.stamp if file is not None else None

    def release(self) -> bool:
        """Lets go some of the files that were replaced; False when there are none left.

        Should a mail hold the last word on 100,000 of them, the event loop would stand still when it ends.
        """
        del self._let_go[-RELEASE_FILES:]
        return bool(self._let_go)

    def _is_as_read(self, name: str, stamp: Stamp | None) -> bool:
        file = self._files.get(name) or self._beside.get(name)
        return file is not None and file.settled and file.stamp == stamp

    def _names_in(self, directory: str) -> list[str]:
        """The files known in a domain's directory, or all."""
        names = [*self._files, *self._beside, *self._faulty]
        return [name for name in names if name.startswith(f"{directory}/")] if directory else names

    def _read(self, name: str) -> None:
        before = self._files.get(name)
        if before is not None and (same := self._if_same(before)):
            self._files[name] = same
            self._let_go.append(before)
            return
        self._forget(name)
        try:
            if name in BESIDE:
                self._take_beside(name)
                return
            file = read_policy(self.directory, name, self._peers.keys(), self._known)
        except ConfigError as error:
            self._faulty[name] = error.problems
            return
        self._files[name] = file
        self._total += file.digest
        self._patterns += file.policy.patterns
        self._count_demand(file, 1)
        self._unfrozen += 1
        if self._unfrozen >= FREEZE_FILES:
            # A full collection over all files would hold every thread for longer than mail may wait.
            self._unfrozen = 0
            gc.collect(1)
            gc.freeze()

    def _if_same(self, before: PolicyFile) -> PolicyFile | None:
        """The file with its new stamp, where its text is the one that was read before."""
        path = self.directory / before.name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode) or found.st_size > toml.MAX_FILE_BYTES:
                return None
            now = time.time_ns()
            stamp = stamp_of(path)
            raw = path.read_bytes()
        except OSError:
            return None
        if stamp is None or _digest(before.name, raw) != before.digest:
            return None
        return replace(before, stamp=stamp, settled=now - stamp[1] > DOUBTFUL_NS)

    def _take_beside(self, name: str) -> None:
        path = self.directory / name
        source = printable(str(path))
        now = time.time_ns()
        stamp = stamp_of(path)
        if stamp is None or not path.is_file():
            raise ConfigError(f"{source}: not a regular file; it is a file (or a link to one)")
        text = toml.read(path)
        if not text:
            # Truncated and not yet written, it would take back what it says.
            raise ConfigError(f"{source}: there is nothing in it; delete it, or write a comment into it")
        if name == TESTS_FILE:
            self._tests = read_tests(text, source)
        else:
            raise ConfigError(f"{source}: this relay does not know such a file")
        digest = _digest(name, text.encode())
        self._total += digest
        self._beside[name] = FileBeside(text, digest, stamp, now - stamp[1] > DOUBTFUL_NS)

    def _forget(self, name: str) -> None:
        self._faulty.pop(name, None)
        if (beside := self._beside.pop(name, None)) is not None:
            self._total -= beside.digest
            if name == TESTS_FILE:
                self._tests = ()
        if (file := self._files.pop(name, None)) is not None:
            self._total -= file.digest
            self._patterns -= file.policy.patterns
            self._count_demand(file, -1)
            self._let_go.append(file)

    def _count_demand(self, file: PolicyFile, number: int) -> None:
        policy = file.policy
        if policy.require:
            demand = Demand(policy.require, policy.unprotected, policy.peer or self._owners.get(file.domain))
            self._demands[demand] += number

    def _set(self) -> PolicySet:
        faults = [*self._owner_faults, *self._faults_of_files()]
        if len(self._files) + len(self._faulty) > MAX_FILES:
            faults.append(f"{printable(str(self.directory))}: more than {MAX_FILES} policy files")
        if not faults and not self._files:
            faults.append(f"{printable(str(self.directory))}: no policy file in it; create default.toml")
        if faults:
            raise ConfigError(faults)
        return PolicySet(
            self.directory,
            MappingProxyType(self._files.copy()),
            self._owners,
            _version(self._total),
            self._patterns,
            tuple(demand for demand, number in self._demands.items() if number),
            self._max_bounce,
        )

    def _faults_of_files(self) -> Iterator[str]:
        for each in (self._listing_faults, self._faulty):
            for name in sorted(each):
                yield from each[name]


def _digest(name: str, raw: bytes) -> int:
    """That of read_policy."""
    return int.from_bytes(hashlib.sha256(f"{name}\0".encode() + raw).digest(), "big")


def _version(total: int) -> str:
    """12 digits of the sum of all digests: after an edit it follows from the files edited alone."""
    return (total % 2**256).to_bytes(32, "big").hex()[:12]


def _owners(peers: Mapping[str, Sequence[str]], faults: list[str]) -> dict[str, str]:
    """Which peer each domain belongs to; domains are compared in A-labels."""
    owners: dict[str, str] = {}
    for peer, domains in peers.items():
        for domain in domains:
            try:
                owner = owners.setdefault(fold_domain(domain), peer)
            except ValueError as error:
                faults.append(f"peer {peer!r}: domains: {error}")
                continue
            if owner != peer:
                faults.append(f"peer {peer!r}: domain {domain!r} already belongs to peer {owner!r}")
    return owners
