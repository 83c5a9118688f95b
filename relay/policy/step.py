"""What differs between two sets of policies, and what is to be recorded of a set that comes into force.
Standard: files are compared by SHA-256 over name and text, and named in bounded numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from relay.policy.decide import PolicySet
from relay.policy.expected import Expected
from relay.policy.installing import Installer
from relay.policy.load import PolicyFolder

Way = Literal["install", "edit", "start"]
"""By `policy install`, by an edit while the relay served, or found when it started."""

MAX_NAMES = 100
"""Maximum number of files named of those that a set adds, changes or removes, each."""


class Names(NamedTuple):
    """The first of some names, and how many more there are."""

    first: tuple[str, ...] = ()
    more: int = 0

    @classmethod
    def of(cls, names: Collection[str]) -> Names:
        """No more than are recorded."""
        first = tuple(name for name, _ in zip(names, range(MAX_NAMES), strict=False))
        return cls(first, len(names) - len(first))


@dataclass(frozen=True, slots=True)
class SetStep:
    """What is to be recorded of a set that came into force; `before` is "" where none is known.

    `time` is in nanoseconds since 1970, and `files` counts the policy files.
    """

    version: str
    before: str
    time: int
    files: int
    way: Way
    who: Installer
    added: Names
    changed: Names
    removed: Names

    def as_json(self) -> str:
        """All of it, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SetStep:
        """Raises ValueError, KeyError and TypeError for anything else than what `as_json` gave."""
        said = json.loads(text)
        who = said.pop("who")
        names = {name: Names(tuple(said[name][0]), said[name][1]) for name in ("added", "changed", "removed")}
        return cls(**said | names, who=Installer(tuple(who.pop("uids")), **who))


class Edits(NamedTuple):
    """The names of the files that differ between two sets."""

    added: Collection[str] = ()
    changed: Collection[str] = ()
    removed: Collection[str] = ()


class SetFiles(NamedTuple):
    """A set with all of its files; those that are for no domain are in `beside`, by name, with their digests.

    `tests` are what tests.toml expects.
    """

    policies: PolicySet
    beside: Mapping[str, int]
    tests: tuple[Expected, ...] = ()

    @classmethod
    def read(cls, policies: PolicySet, folder: PolicyFolder) -> SetFiles:
        """What the folder has read last."""
        return cls(policies, folder.digests_beside, folder.tests)

    def digest(self, name: str) -> int | None:
        """SHA-256 of name and text; None where the set has no such file."""
        file = self.policies.files.get(name)
        return file.digest if file is not None else self.beside.get(name)

    def names(self) -> Iterator[str]:
        """Those of all files."""
        yield from self.policies.files
        yield from self.beside

    def digests(self) -> Iterator[int]:
        """SHA-256 of name and text of each file."""
        yield from (file.digest for file in self.policies.files.values())
        yield from self.beside.values()

    def edits(self, before: SetFiles) -> Edits:
        """What differs from the set before."""
        added: list[str] = []
        changed: list[str] = []
        for name in self.names():
            was = before.digest(name)
            if was is None:
                added.append(name)
            elif was != self.digest(name):
                changed.append(name)
        return Edits(added, changed, [name for name in before.names() if self.digest(name) is None])


def digest_of_all(digests: Iterable[int]) -> str:
    """SHA-256 over the digests of all files of a set, in their order, in hexadecimal."""
    # In parts: to sort all of 100,000 at once would hold every thread.
    parts: list[list[bytes]] = [[] for _ in range(256)]
    for digest in digests:
        octets = digest.to_bytes(32, "big")
        parts[octets[0]].append(octets)
    whole = hashlib.sha256()
    for part in parts:
        whole.update(b"".join(sorted(part)))
    return whole.hexdigest()
