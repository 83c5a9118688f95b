"""Reads policy files into a PolicySet, and again after edits, or says everything that is wrong with all of them.
Standard: all files or none; what is read again is only what changed, and the result is as if all had been.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from relay.errors import ConfigError
from relay.policy.decide import PolicySet
from relay.policy.file import PolicyFile, read_policy, stamp_of
from relay.policy.names import fold_domain, printable
from relay.policy.walk import policy_names


def load_policies(directory: Path, peers: Mapping[str, Sequence[str]]) -> PolicySet:
    """Read every policy file below `directory`; `peers` gives each configured peer's mail domains.

    Raises ConfigError with one line per fault of every file, of the directory and of `peers`.
    """
    return PolicyFolder(directory, peers).read()


_Read = PolicyFile | tuple[str, ...]
"""What reading one file gave: the file, or its faults."""


class PolicyFolder:
    """A directory of policy files and what is known of each of them; not to be used by two threads at once."""

    def __init__(self, directory: Path, peers: Mapping[str, Sequence[str]]) -> None:
        """Reads nothing yet."""
        self.directory = directory
        self._peers = peers
        self._owner_faults: list[str] = []
        self._owners = MappingProxyType(_owners(peers, self._owner_faults))
        self._known: dict[str, _Read] = {}
        self._walk_faults: list[str] = []

    def read(self) -> PolicySet:
        """All files; those that did not change since the last time are not read again. Raises ConfigError."""
        faults: list[str] = []
        names = policy_names(self.directory, faults)
        self._walk_faults = faults
        known = self._known
        self._known = {}
        for name in names:
            before = known.get(name)
            unchanged = isinstance(before, PolicyFile) and _unchanged(before, self.directory / name)
            self._known[name] = before if before is not None and unchanged else self._read(name)
        return self._set()

    def read_again(self, names: Collection[str]) -> PolicySet:
        """Only the files of these names, which may be new or gone; all others are as they were. Raises ConfigError."""
        before = self._known.keys() & set(names)
        for name in names:
            if (self.directory / name).is_symlink() or (self.directory / name).exists():
                self._known[name] = self._read(name)
            else:
                self._known.pop(name, None)
        if not set(names) <= before:
            self._known = dict(sorted(self._known.items()))
        return self._set()

    def _read(self, name: str) -> _Read:
        try:
            return read_policy(self.directory, name, self._peers.keys())
        except ConfigError as error:
            return tuple(error.problems)

    def _set(self) -> PolicySet:
        faults = [*self._owner_faults, *self._walk_faults]
        files: dict[str, PolicyFile] = {}
        version = 0
        for name, read in self._known.items():
            if isinstance(read, PolicyFile):
                files[name] = read
                version += read.digest
            else:
                faults += read
        if not faults and not files:
            faults.append(f"{printable(str(self.directory))}: no policy file in it; create default.toml")
        if faults:
            raise ConfigError(faults)
        return PolicySet(self.directory, MappingProxyType(files), self._owners, _version(version))


def _version(total: int) -> str:
    """12 digits of the sum of all digests: after an edit it follows from the files edited alone."""
    return (total % 2**256).to_bytes(32, "big").hex()[:12]


def _unchanged(file: PolicyFile, path: Path) -> bool:
    """Whether a file is for sure as it was when it was read."""
    return file.settled and file.stamp == stamp_of(path)


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
