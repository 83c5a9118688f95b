"""The differences between two policy sets, and the audit entry of a set that comes into force.
Standard: files are compared by SHA-256 over name and text, and named in bounded numbers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from relay.policy.decide import PolicySet
from relay.policy.expected import Expected
from relay.policy.installing import Installer
from relay.policy.load import PolicyFolder

Way = Literal["install", "edit", "start"]
"""By `policy install`, by an edit while the relay served, or found at its start."""

MAX_NAMES = 100
"""Maximum number of added, changed or removed files that are named, each."""


class Names(NamedTuple):
    """The first of some names, and the number of further ones."""

    first: tuple[str, ...] = ()
    more: int = 0

    @classmethod
    def of(cls, names: Collection[str]) -> Names:
        """The names to record."""
        first = tuple(name for name, _ in zip(names, range(MAX_NAMES), strict=False))
        return cls(first, len(names) - len(first))


@dataclass(frozen=True, slots=True)
class SetStep:
    """The audit entry of a set that came into force; `before` is "" if unknown.

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
        """The JSON form, for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> SetStep:
        """The step in the output of `as_json`. Raises ValueError, KeyError and TypeError for anything else."""
        members = json.loads(text)
        installer = members.pop("who")
        names = {name: Names(tuple(members[name][0]), members[name][1]) for name in ("added", "changed", "removed")}
        return cls(**members | names, who=Installer(tuple(installer.pop("uids")), **installer))


class Edits(NamedTuple):
    """The names of the files that differ between two sets."""

    added: Collection[str] = ()
    changed: Collection[str] = ()
    removed: Collection[str] = ()


class SetFiles(NamedTuple):
    """A set with all of its files; `beside` has the digests of those for no domain, by name."""

    policies: PolicySet
    beside: Mapping[str, int]

    @classmethod
    def read(cls, policies: PolicySet, folder: PolicyFolder) -> SetFiles:
        """The set that the folder has read last."""
        return cls(policies, folder.beside)

    @property
    def tests(self) -> tuple[Expected, ...]:
        """Those of tests.toml."""
        return self.policies.tests

    def digest(self, name: str) -> int | None:
        """SHA-256 of name and text of a file; None if the set does not have it."""
        file = self.policies.files.get(name)
        return file.digest if file is not None else self.beside.get(name)

    def names(self) -> Iterator[str]:
        """The names of all files."""
        yield from self.policies.files
        yield from self.beside

    def digests(self) -> Iterator[int]:
        """SHA-256 of name and text of each file."""
        yield from (file.digest for file in self.policies.files.values())
        yield from self.beside.values()

    def edits(self, before: Mapping[str, int]) -> Edits:
        """The differences from the digests of another set, by name."""
        added = [name for name in self.names() if name not in before]
        changed = [name for name in self.names() if before.get(name, self.digest(name)) != self.digest(name)]
        return Edits(added, changed, [name for name in before if self.digest(name) is None])
