"""The kinds of recipients that two sets distinguish: each file's, those below a domain, and everybody else.
Standard: policies/README.md; every address that a file can cover is of one kind, and each set covers a kind alike.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count
from urllib.parse import unquote

from relay.policy.comparing.conditions import Conditions, Globs
from relay.policy.decide import PolicySet
from relay.policy.file import PolicyFile
from relay.policy.names import SUFFIX, FoldedAddress, Step, candidates, encode_local, may_be_route
from relay.policy.patterns import Glob
from relay.policy.people import spellings

Files = tuple[Step, PolicyFile | None, PolicyFile | None]
"""A file that may cover an address: the lookup step, and the file in either set."""

ANYBODY = "anybody"


@dataclass(frozen=True, slots=True)
class Kind:
    """Recipients for whom both sets look up the same files.

    `address` is one of them, and `called` describes all. Each of them fits one of the `patterns`. Without a domain of
    their own (`elsewhere`) they are at none that the sets name.
    """

    address: FoldedAddress
    called: str
    patterns: Globs
    texts: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def text(self) -> str:
        """The address in SMTP syntax."""
        local, domain = self.address
        if encode_local(local) == local:
            return f"{local}@{domain}"
        quoted = local.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"@{domain}'


class Kinds:
    """All kinds of recipients of two sets of one site for whom anything differs."""

    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        self._sets = (old, new)
        self.separators = new.site.tag_separators
        # One by one: what takes 100,000 files in one step would block every thread.
        files = {name: file for each in self._sets for name, file in each.files.items()}
        own = (domain for each in self._sets for domain in (*each.owners, *each.site.domains))
        self.domains: Collection[str] = dict.fromkeys(
            chain((each.domain for each in files.values() if each.domain), own)
        )
        self._changed = _changed(old, new)
        above = {file.domain for each in self._sets for file in each.files.values() if file.policy.subdomains}
        # Strings are not traversed at each full garbage collection.
        self._persons = tuple(
            name for name, file in files.items() if file.scope == "person" and self._differs(_person(name))
        )
        self._at = tuple(each for each in self.domains if self._differs(FoldedAddress(ANYBODY, each)))
        self._below = tuple(
            each for each in sorted(above) if self._differs(FoldedAddress(ANYBODY, self._unknown(f".{each}")))
        )
        self._elsewhere = FoldedAddress(ANYBODY, self._unknown(".invalid"))

    def __len__(self) -> int:
        return len(self._persons) + len(self._at) + len(self._below) + self._differs(self._elsewhere)

    def __iter__(self) -> Iterator[Kind]:
        for address in map(_person, self._persons):
            local, domain = address
            texts = spellings(address, self.separators)
            tagged = [f"{local}{each}*@{domain}" for each in self.separators]
            yield Kind(address, f"{local}@{domain}", tuple(map(Glob.of, (*texts, *tagged))), texts)
        for domain in self._at:
            yield Kind(self._unused(domain), f"everybody else at {domain}", (Glob.of(f"*@{domain}"),))
        for domain in self._below:
            below = FoldedAddress(ANYBODY, self._unknown(f".{domain}"))
            yield Kind(below, f"everybody below {domain}", (Glob.of(f"*@*.{domain}"),), elsewhere=True)
        if self._differs(self._elsewhere):
            yield Kind(self._elsewhere, "everybody else", (Glob.of("*@*"),), elsewhere=True)

    def _differs(self, address: FoldedAddress) -> bool:
        """Whether a file that may cover the address differs, or something that is for all."""
        if self._changed is None:
            return True
        return any(name in self._changed for name, _ in candidates(address, self.separators))

    def arriving(self, kind: Kind) -> list[Files]:
        """The files that may cover a kind as senders, for whom routes are as others."""
        return self.files(kind, routes=False)

    def files(self, kind: Kind, *, routes: bool = True) -> list[Files]:
        """The files of either set that may cover a kind, the first that decides first."""
        files: list[Files] = []
        old, new = self._sets
        for name, step in candidates(kind.address, self.separators):
            before, after = old.files.get(name), new.files.get(name)
            if before is not None or after is not None:
                files.append((step, before, after))
            if routes and may_be_route(kind.address):
                break
        return files

    def left_of(self, kind: Kind, conditions: Conditions) -> Conditions | None:
        """The conditions without those on recipients that hold for all of a kind; None if one never holds."""
        if conditions.recipient is None and conditions.not_recipient is None:
            return conditions
        if may_be_route(kind.address):  # in doubt, whom every condition on recipients fits
            return replace(conditions, recipient=None, not_recipient=None)
        meeting = [glob for glob in conditions.recipient or () if self._meets(kind, glob)]
        left = conditions
        if conditions.recipient is not None:
            if not meeting:
                return None
            every = any(self._holds(kind, glob) for glob in meeting)
            left = replace(left, recipient=None if every else tuple(meeting))
        if conditions.not_recipient is not None:
            excluded = [glob for glob in conditions.not_recipient if self._meets(kind, glob)]
            if any(self._holds(kind, glob) for glob in excluded):
                return None
            left = replace(left, not_recipient=tuple(excluded) or None)
        return left

    def _meets(self, kind: Kind, glob: Glob) -> bool:
        """Whether a recipient pattern may fit one of a kind, with or without their tag."""
        if kind.elsewhere and "*" not in glob.domain and glob.domain in self.domains:
            return False
        return any(glob.meets(each) for each in kind.patterns)

    def _holds(self, kind: Kind, glob: Glob) -> bool:
        """Whether it fits all of a kind."""
        texts = kind.texts or tuple(map(str, kind.patterns))
        return any(glob.matches(text) for text in texts)

    def _unused(self, domain: str) -> FoldedAddress:
        """An address without a file of its own."""
        names = (f"{ANYBODY}{number or ''}" for number in count())
        return next(
            FoldedAddress(name, domain)
            for name in names
            if not any(f"{domain}/{encode_local(name)}{SUFFIX}" in each.files for each in self._sets)
        )

    def _unknown(self, end: str) -> str:
        """A domain with this end that no file and no peer names."""
        names = (f"elsewhere{number or ''}{end}" for number in count())
        return next(name for name in names if name not in self.domains)


def _person(name: str) -> FoldedAddress:
    """The address whose file this is."""
    domain, _, file = name.partition("/")
    return FoldedAddress(unquote(file.removesuffix(SUFFIX)), domain)


def _changed(old: PolicySet, new: PolicySet) -> Collection[str] | None:
    """The files that differ; None where what all of them share does."""
    shared = [([each.when for each in some.floors], some.groups, some.owners, some.site) for some in (old, new)]
    if shared[0] != shared[1]:
        return None
    digests = ({name: file.digest for name, file in each.files.items()} for each in (old, new))
    before, after = digests
    return {name for name in chain(before, after) if before.get(name) != after.get(name)}
