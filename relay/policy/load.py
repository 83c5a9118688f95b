"""Reads policy files into a PolicySet, at first and after edits, or reports all faults of all files.
All files or none: only what changed is read again, and the result is as if all had been.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

from relay.config import Config
from relay.errors import ConfigError
from relay.files.stamps import stamp_of
from relay.formats.mailbox import fold_domain
from relay.policy.decide import PolicySet
from relay.policy.expected import Expected, failures, read_tests
from relay.policy.file import PolicyCache, PolicyFile, parse_policy
from relay.policy.floors import read_floors, unknown_groups
from relay.policy.names import FLOORS_FILE, GROUPS_FILE, TESTS_FILE, printable
from relay.policy.patterns import Groups, read_groups
from relay.policy.require import Demand
from relay.policy.rules import PlacedRule
from relay.policy.site import ANY_SITE, SiteFacts
from relay.policy.walk import MAX_FILES, FileText, Listing, digest_of, read_file, why_closed
from relay.runtime import heap

FREEZE_FILES = 1000
"""Number of files after which objects, and a set of that size, are frozen for the garbage collector."""
RELEASE_FILES = 1000
"""Number of files freed at once: more would block all other threads."""

BESIDE = frozenset({FLOORS_FILE, GROUPS_FILE, TESTS_FILE})
"""Files of the set that are for no domain."""

NO_FAULTS: Mapping[str, list[str]] = MappingProxyType({})


def load_policies(directory: Path, peers: Mapping[str, Sequence[str]], *, site: SiteFacts = ANY_SITE) -> PolicySet:
    """Read every policy file below `directory`; `peers` gives each configured peer's mail domains.

    `site` has the relevant settings of relay.toml. The tests of tests.toml are read but not run.

    Raises ConfigError with one line for each fault of the files, the directory and `peers`.
    """
    return PolicyFolder(directory, peers, site=site).read()


class PolicyFolder:
    """The policy files of a directory as they were read last; not thread-safe."""

    def __init__(
        self,
        directory: Path,
        peers: Mapping[str, Sequence[str]],
        *,
        site: SiteFacts = ANY_SITE,
        texts: dict[str, str] | None = None,
    ) -> None:
        """Reads nothing yet. Valid texts are also stored in `texts`, by name."""
        self.directory = directory
        self._texts = texts
        self._site = site
        self._take_peers(peers)
        self._files: dict[str, PolicyFile] = {}
        self._beside: dict[str, int] = {}
        self._faulty: dict[str, list[str]] = {}
        self.listing_faults: Mapping[str, list[str]] = {}
        """Faults of the directories themselves, by name, when files were read last."""
        self.not_read: set[str] = set()
        """The files that exist and could not be read."""
        self._tests: tuple[Expected, ...] = ()
        self._known: PolicyCache = WeakValueDictionary()  # an unused policy is dropped
        self._unfrozen = 0
        self._let_go: list[PolicyFile] = []
        self._total = 0
        self._patterns = 0
        self._demands: Counter[Demand] = Counter()
        self._floors: tuple[PlacedRule, ...] = ()
        self._groups: Groups = {}
        self._naming_groups: dict[str, frozenset[str]] = {}

    @classmethod
    def of(cls, config: Config, directory: Path | None = None) -> PolicyFolder:
        """The policies that relay.toml names, or those in another directory, for the site that it describes."""
        return cls(directory or config.policies.directory, config.peer_domains, site=SiteFacts.of(config))

    def set_peers(self, peers: Mapping[str, Sequence[str]], site: SiteFacts) -> None:
        """Sets the peers and the site; all files must be read again, since they may name peers."""
        self._site = site
        for name in self._names():
            self._forget(name)
        self._known = WeakValueDictionary()
        self._take_peers(peers)

    def _take_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        self._peers = peers
        self._owner_faults: list[str] = []
        self._owners = MappingProxyType(_owners(peers, self._owner_faults))

    @property
    def owners(self) -> Mapping[str, str]:
        """The peer of each peer's domain."""
        return self._owners

    @property
    def tests(self) -> tuple[Expected, ...]:
        """The tests of the set that was read last."""
        return self._tests

    @property
    def beside(self) -> dict[str, int]:
        """Returns the SHA-256 of name and text of each file beside the policies."""
        return dict(self._beside)

    def read(self, seen: Listing | None = None) -> PolicySet:
        """The set of all files, as `seen` just before, all of which are read. Raises ConfigError."""
        seen = seen or Listing.of(self.directory)
        return self.read_again({*seen.files, *self._names()}, seen.faults)

    def read_tested(self) -> PolicySet:
        """The set of all files, if no test fails. Raises ConfigError."""
        policies = self.read()
        if failed := failures(self._tests, policies):
            raise ConfigError(failed)
        return policies

    def read_again(self, names: Iterable[str], listing_faults: Mapping[str, list[str]] = NO_FAULTS) -> PolicySet:
        """Returns the set with only these files read again; they may be new or gone. Raises ConfigError.

        The faults of the directories are among those of the files, which are kept where they cannot be read.
        """
        self.listing_faults = listing_faults
        directory = str(self.directory)
        closed: dict[str, list[str]] = {}
        for name in names:
            where = name.rpartition("/")[0]
            if where not in closed:
                closed[where] = why_closed(self.directory / where)
            if closed[where]:  # reported once for all its files
                self._not_read(name, closed[where])
                continue
            try:
                read = read_file(directory, name)
            except ConfigError as error:
                self._not_read(name, error.problems)
                continue
            try:
                self._take(name, read)
            except ConfigError as error:
                self._faulty[name] = error.problems
        return self._set()

    def read_texts(self, texts: Iterable[tuple[str, str]]) -> PolicySet:
        """The set of these texts, each with its file name; ignores the directory.

        Raises ConfigError.
        """
        for name, text in texts:
            try:
                self._take(name, FileText(text, digest_of(name, text.encode())))
            except ConfigError as error:
                self._faulty[name] = error.problems
        return self._set()

    def _not_read(self, name: str, problems: list[str]) -> None:
        """Forgets a file that is gone; keeps one that cannot be read at present."""
        if stamp_of(f"{self.directory}/{name}", follow=False) is None:
            self._forget(name)
        else:
            self._faulty[name] = problems
            self.not_read.add(name)

    def release(self) -> bool:
        """Frees some of the replaced files; False if none are left.

        If a mail held the last reference to 100,000 of them, its end would block the event loop.
        """
        del self._let_go[-RELEASE_FILES:]
        return bool(self._let_go)

    def _names(self) -> set[str]:
        """All known files."""
        return {*self._files, *self._beside, *self._faulty}

    def _take(self, name: str, read: FileText) -> None:
        """Parses and stores the text of a file. Raises ConfigError."""
        self._faulty.pop(name, None)
        self.not_read.discard(name)
        before = self._files.get(name)
        if before is None or before.digest != read.digest:
            self._forget(name)
            if name in BESIDE:
                self._take_beside(name, read)
            else:
                source = printable(f"{self.directory}/{name}")
                self._add(parse_policy(name, source, read.text, read.digest, self._peers.keys(), self._known))
            if self._texts is not None:
                self._texts[name] = read.text

    def _add(self, file: PolicyFile) -> None:
        self._files[file.name] = file
        self._total += _term(file.digest)
        self._patterns += file.policy.patterns
        self._count_demand(file, 1)
        if file.policy.groups:
            self._naming_groups[file.name] = file.policy.groups
        self._unfrozen += 1
        if self._unfrozen >= FREEZE_FILES:
            self._unfrozen = 0
            heap.set_aside()

    def _take_beside(self, name: str, read: FileText) -> None:
        source = printable(f"{self.directory}/{name}")
        if not read.text.strip():
            # A file that was truncated and not yet written would lift all its floors.
            raise ConfigError(f"{source}: there is nothing in it; delete it, or write a comment into it")
        if name == FLOORS_FILE:
            self._floors = read_floors(read.text, source)
            self._naming_groups[name] = frozenset(group for floor in self._floors for group in floor.when.groups)
        elif name == GROUPS_FILE:
            self._groups = read_groups(read.text, source)
        else:
            self._tests = read_tests(read.text, source)
        self._beside[name] = read.digest
        self._total += _term(read.digest)

    def _forget(self, name: str) -> None:
        self._faulty.pop(name, None)
        self.not_read.discard(name)
        self._naming_groups.pop(name, None)
        if name in BESIDE:
            if (digest := self._beside.pop(name, None)) is not None:
                self._total -= _term(digest)
            self._floors = () if name == FLOORS_FILE else self._floors
            self._groups = {} if name == GROUPS_FILE else self._groups
            self._tests = () if name == TESTS_FILE else self._tests
        if (file := self._files.pop(name, None)) is not None:
            self._total -= _term(file.digest)
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
        if GROUPS_FILE not in self._faulty:
            unknown = {name: each for name, each in self._naming_groups.items() if not each <= self._groups.keys()}
            faults += unknown_groups(self.directory, unknown, self._groups)
        if len(self._files) + sum(name not in self._files for name in self._faulty) > MAX_FILES:
            faults.append(f"{printable(str(self.directory))}: more than {MAX_FILES} policy files")
        if not faults and not self._files:
            faults.append(f"{printable(str(self.directory))}: no policy file in it; create default.toml")
        if faults:
            raise ConfigError(faults)
        files = MappingProxyType(self._files.copy())
        if len(files) >= FREEZE_FILES:
            heap.set_aside()
        return PolicySet(
            self.directory,
            files,
            self._owners,
            _version(self._total),
            self._work(),
            tuple(demand for demand, number in self._demands.items() if number),
            self._site,
            self._floors,
            self._groups,
            self._tests,
        )

    def _work(self) -> int:
        """The number of texts that the rules compare with a message, at most; 0 if none looks into one."""
        patterns = self._patterns + sum(floor.when.patterns for floor in self._floors)
        return patterns * max((group.work for group in self._groups.values()), default=1)

    def _faults_of_files(self) -> Iterator[str]:
        """The faults of all files; one directory that denies access may be the cause of many."""
        faults = (each[name] for each in (self.listing_faults, self._faulty) for name in sorted(each))
        yield from dict.fromkeys(chain.from_iterable(faults))


_SUM_OCTETS = 512


def _term(digest: int) -> int:
    """The term of a file in the sum from which the version is made."""
    return int.from_bytes(hashlib.shake_256(digest.to_bytes(32, "big")).digest(_SUM_OCTETS), "big")


def _version(total: int) -> str:
    """40 digits of the sum of all files (AdHash), which can be updated from the edited files alone.

    It is collision-resistant. With sums of 4096 bits a collision takes 2^128 steps, however many files there are
    (Wagner 2002). With versions of 160 bits it takes 2^80.
    """
    octets = (total % 2 ** (8 * _SUM_OCTETS)).to_bytes(_SUM_OCTETS, "big")
    return hashlib.sha256(octets).hexdigest()[:40]


def _owners(peers: Mapping[str, Sequence[str]], faults: list[str]) -> dict[str, str]:
    """The peer of each domain; domains are compared in A-labels."""
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
