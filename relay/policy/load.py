"""Reads policy files into a PolicySet, and again after edits, or says everything that is wrong with all of them.
Standard: all files or none; what is read again is only what changed, and the result is as if all had been.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from relay import toml
from relay.config import MAX_BOUNCE
from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.file import Known, PolicyFile, read_policy, stamp_of
from relay.policy.floors import read_floors, unknown_groups
from relay.policy.names import FLOORS_FILE, GROUPS_FILE, TESTS_FILE, fold_domain, printable
from relay.policy.patterns import Groups, read_groups
from relay.policy.require import Demand
from relay.policy.rules import PlacedRule
from relay.policy.walk import MAX_FILES, policy_names

BESIDE = frozenset({FLOORS_FILE, GROUPS_FILE, TESTS_FILE})
"""Files that are for no domain and belong to the set all the same."""


def load_policies(directory: Path, peers: Mapping[str, Sequence[str]], *, max_bounce: int = MAX_BOUNCE) -> PolicySet:
    """Read every policy file below `directory`; `peers` gives each configured peer's mail domains.

    `max_bounce` is the largest message from the null sender, in octets, that gets a one-time pad.

    Raises ConfigError with one line per fault of every file, of the directory and of `peers`.
    """
    return PolicyFolder(directory, peers, max_bounce=max_bounce).read()


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
        self._faulty: dict[str, list[str]] = {}
        self._walk_faults: list[str] = []
        self._known: Known = {}
        self._total = 0
        self._patterns = 0
        self._demands: Counter[Demand] = Counter()
        self._beside: dict[str, int] = {}
        self._floors: tuple[PlacedRule, ...] = ()
        self._groups: Groups = {}
        self._naming_groups: dict[str, frozenset[str]] = {}

    def read(self) -> PolicySet:
        """All files; those that did not change since the last time are not read again. Raises ConfigError."""
        self._walk_faults = []
        names = policy_names(self.directory, self._walk_faults)
        for gone in (self._files.keys() | self._faulty.keys() | self._beside.keys()) - set(names):
            self._forget(gone)
        for name in names:
            file = self._files.get(name)
            if file is None or not file.settled or file.stamp != stamp_of(self.directory / name):
                self._read(name)
        return self._set()

    def read_again(self, names: Collection[str]) -> PolicySet:
        """Only the files of these names, which may be new or gone; all others are as they were. Raises ConfigError."""
        for name in names:
            path = self.directory / name
            if path.is_symlink() or path.exists():
                self._read(name)
            else:
                self._forget(name)
        return self._set()

    def _read(self, name: str) -> None:
        self._forget(name)
        try:
            if name in BESIDE:
                self._read_beside(name)
                return
            file = read_policy(self.directory, name, self._peers.keys(), self._known)
        except ConfigError as error:
            self._faulty[name] = error.problems
        else:
            self._files[name] = file
            self._total += file.digest
            self._patterns += file.policy.patterns
            self._count_demand(file, 1)
            if file.policy.groups:
                self._naming_groups[name] = file.policy.groups

    def _read_beside(self, name: str) -> None:
        path = self.directory / name
        source, text = printable(str(path)), toml.read(path)
        if name == FLOORS_FILE:
            self._floors = read_floors(text, source)
            self._naming_groups[name] = frozenset(group for floor in self._floors for group in floor.when.groups)
        elif name == GROUPS_FILE:
            self._groups = read_groups(text, source)
        self._beside[name] = int.from_bytes(hashlib.sha256(f"{name}\0{text}".encode()).digest(), "big")
        self._total += self._beside[name]

    def _forget(self, name: str) -> None:
        self._faulty.pop(name, None)
        self._naming_groups.pop(name, None)
        if name in self._beside:
            self._total -= self._beside.pop(name)
            self._floors = () if name == FLOORS_FILE else self._floors
            self._groups = {} if name == GROUPS_FILE else self._groups
        if (file := self._files.pop(name, None)) is not None:
            self._total -= file.digest
            self._patterns -= file.policy.patterns
            self._count_demand(file, -1)

    def _count_demand(self, file: PolicyFile, number: int) -> None:
        policy = file.policy
        if policy.require:
            demand = Demand(policy.require, policy.unprotected, policy.peer or self._owners.get(file.domain))
            self._demands[demand] += number

    def _set(self) -> PolicySet:
        faults = [*self._owner_faults, *self._walk_faults]
        for name in sorted(self._faulty):
            faults += self._faulty[name]
        if GROUPS_FILE not in self._faulty:
            faults += unknown_groups(self.directory, self._naming_groups, self._groups)
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
            self._patterns + sum(floor.when.patterns for floor in self._floors),
            tuple(demand for demand, number in self._demands.items() if number),
            self._max_bounce,
            self._floors,
            self._groups,
        )


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
