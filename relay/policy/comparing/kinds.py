"""The kinds of recipients that two sets distinguish: each file's, those below a domain, and everybody else.
Standard: policies/README.md; every address that a file can cover is of exactly one kind, and both sets cover it alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Literal
from urllib.parse import unquote

from relay.policy.comparing.items import Conditions
from relay.policy.comparing.languages import apart, contains, filled
from relay.policy.conditions import ON_RECIPIENTS
from relay.policy.decide import PolicySet
from relay.policy.file import PolicyFile
from relay.policy.names import SUFFIX, FoldedAddress, Step, candidates, encode_local, may_be_route, untagged
from relay.policy.patterns import Glob
from relay.policy.people import spellings

Files = tuple[Step, PolicyFile | None, PolicyFile | None]
"""A file that may cover an address: the lookup step, and the file in either set."""
Meeting = Literal["all", "some", "none"]
Part = Literal["one", "tagged", "domain", "below", "else"]
"""One person; the same with a tag; all others at a domain; all others below it; everybody else."""

ELSEWHERE = "elsewhere.invalid{}"
ANYBODY = "anybody"
Recipients = tuple[tuple[Glob, ...] | None, tuple[Glob, ...] | None]
"""Patterns of the conditions on recipients, in the order of ON_RECIPIENTS; None without such a condition."""
MAX_NAMED = 1000
"""Maximum number of recipients checked because floors name them."""
_ANY_ADDRESS = Glob.of("*@*")


@dataclass(frozen=True, slots=True)
class Kind:
    """Recipients for whom both sets look up the same files; `address` is one of them, `called` describes them all."""

    part: Part
    address: FoldedAddress
    called: str

    @property
    def text(self) -> str:
        """The address in SMTP syntax."""
        local, domain = self.address
        if encode_local(local) == local:
            return f"{local}@{domain}"
        quoted = local.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"@{domain}'


@lru_cache(maxsize=10_000)
def _glob(text: str) -> Glob:
    return Glob.of(text)


class Kinds:
    """All kinds of recipients of two sets."""

    def __init__(self, old: PolicySet, new: PolicySet) -> None:
        """Uses file names only; both sets are of one site."""
        self._sets = (old, new)
        self.separators = new.site.tag_separators
        own = (domain for each in self._sets for domain in (*each.owners, *each.site.domains))
        files = (file.domain for each in self._sets for file in each.files.values() if file.domain)
        self._domains = dict.fromkeys([*files, *own])
        self._above = frozenset(
            file.domain for each in self._sets for file in each.files.values() if file.policy.subdomains
        )

    def __iter__(self) -> Iterator[Kind]:
        """Each kind once; those with tags follow their person."""
        persons = dict.fromkeys(
            (name, file.domain) for each in self._sets for name, file in each.files.items() if file.scope == "person"
        )
        for name, domain in persons:
            local = unquote(name.rpartition("/")[2].removesuffix(SUFFIX))
            address = FoldedAddress(local, domain)
            yield Kind("one", address, f"{local}@{domain}")
            starts = [
                start for each in self.separators if untagged(start := f"{local}{each}", self.separators) == local
            ]
            if starts and not may_be_route(address):
                yield Kind("tagged", self._unused(starts[0], domain), f"{local}@{domain} with a tag")
        for domain in self._domains:
            yield Kind("domain", self._unused("", domain), f"everybody else at {domain}")
        for domain in self._domains:
            if domain in self._above:
                address = FoldedAddress(ANYBODY, self._unknown(f"{ANYBODY}{{}}.{domain}", domain))
                yield Kind("below", address, f"everybody below {domain}")
        yield Kind("else", FoldedAddress(ANYBODY, self._unknown(ELSEWHERE, None)), "everybody else")

    def named(self) -> Iterator[Kind]:
        """One recipient for each recipient pattern of the floors, at each domain; up to MAX_NAMED."""
        globs = dict.fromkeys(
            glob
            for each in self._sets
            for floor in each.floors
            for name in ON_RECIPIENTS
            if name in floor.when.people
            for glob in floor.when.people[name].all(each.groups)
        )
        addresses: dict[FoldedAddress, None] = {}
        for glob in globs:
            local, _, domain = filled(glob).rpartition("@")
            domains = self._domains if "*" in str(glob).rpartition("@")[2] else ()
            for each in (domain, *domains):
                if (
                    local
                    and glob.matches(f"{local}@{each}")
                    and not self._has_file(local, each)
                    and len(addresses) < MAX_NAMED
                ):
                    addresses[FoldedAddress(local, each)] = None
        yield from (Kind("one", address, f"{address.local}@{address.domain}") for address in addresses)

    def files(self, kind: Kind, *, arriving: bool = False) -> list[Files]:
        """The files of either set that may cover a kind, the first that decides first, as it is in each set.

        For mail that is `arriving` from them, those of routes are the same as of others.
        """
        files: list[Files] = []
        old, new = self._sets
        for name, step in candidates(kind.address, self.separators):
            before, after = old.files.get(name), new.files.get(name)
            if before is not None or after is not None:
                files.append((step, before, after))
            if may_be_route(kind.address) and not arriving:
                break
        return files

    def meeting(self, kind: Kind, glob: Glob) -> Meeting:
        """How many of a kind a recipient pattern fits, with or without their tag; "some" may in fact be none."""
        local, at, domain = str(glob).rpartition("@")
        if kind.part == "one":
            return "all" if any(map(glob.matches, spellings(kind.address, self.separators))) else "none"
        if not at or "@" in local:  # the null sender, or routes, each of a kind of its own
            return "none"
        if kind.part in ("below", "else"):
            return self._meeting_elsewhere(kind, glob)
        if not _glob(domain).matches(kind.address.domain):
            return "none"
        return self._meeting_tagged(kind, local) if kind.part == "tagged" else self._meeting_others(kind, local)

    def _meeting_tagged(self, kind: Kind, pattern: str) -> Meeting:
        bare = untagged(kind.address.local, self.separators)
        tagged = [_glob(f"{bare}{each}*") for each in self.separators]
        if _glob(pattern).matches(bare) or all(contains(_glob(pattern), each) for each in tagged):
            return "all"
        return "some" if any(map(_glob(pattern).meets, tagged)) else "none"

    def _meeting_others(self, kind: Kind, pattern: str) -> Meeting:
        """The same for those at a domain without a file of their own."""
        if "*" in pattern:
            return "all" if pattern.strip("*") == "" else "some"
        names = {pattern, untagged(pattern, self.separators)}
        return "none" if any(self._has_file(each, kind.address.domain) for each in names) else "some"

    def _meeting_elsewhere(self, kind: Kind, glob: Glob) -> Meeting:
        """The same for those at domains that no file and no peer names."""
        domain = str(glob).rpartition("@")[2]
        if "*" not in domain:
            above = self._nearest_above(kind.address.domain) if kind.part == "below" else None
            return "some" if domain not in self._domains and self._nearest_above(domain) == above else "none"
        everybody = self.pattern(kind)
        if contains(glob, everybody):
            return "all"
        return "none" if apart(glob, everybody, self.separators) else "some"

    def untagged(self, kind: Kind) -> Kind:
        """The person whose tagged addresses are this kind."""
        local, domain = kind.address
        return Kind("one", FoldedAddress(untagged(local, self.separators), domain), kind.called)

    def patterns(self, kind: Kind) -> tuple[tuple[Glob, ...], ...]:
        """Sets of patterns, of each of which one fits each recipient of a kind."""
        if kind.part == "one":
            return ()
        if kind.part != "tagged":
            return ((self.pattern(kind),),)
        bare, domain = untagged(kind.address.local, self.separators), kind.address.domain
        return self._tagged(kind.address), (Glob.of(f"{bare}@{domain}"),)

    def _tagged(self, address: FoldedAddress) -> tuple[Glob, ...]:
        """Patterns of which one fits each tagged address of this person."""
        bare = untagged(address.local, self.separators)
        return tuple(Glob.of(f"{bare}{each}*@{address.domain}") for each in self.separators)

    def pattern(self, kind: Kind) -> Glob:
        """A pattern that fits all of a kind other than a person."""
        if kind.part == "domain":
            return Glob.of(f"*@{kind.address.domain}")
        if kind.part == "below":
            return Glob.of(f"*@*.{self._nearest_above(kind.address.domain)}")
        return _ANY_ADDRESS

    def _nearest_above(self, domain: str) -> str | None:
        """The nearest domain above this one whose file in either set is for those below."""
        while domain := domain.partition(".")[2]:
            if domain in self._above:
                return domain
        return None

    def _has_file(self, local: str, domain: str) -> bool:
        name = f"{domain}/{encode_local(local)}{SUFFIX}"
        return any(name in each.files for each in self._sets)

    def _unused(self, start: str, domain: str) -> FoldedAddress:
        """An address without a file of its own."""
        local, number = f"{start}{ANYBODY}", 1
        while self._has_file(local, domain):
            local, number = f"{start}{ANYBODY}{number}", number + 1
        return FoldedAddress(local, domain)

    def _unknown(self, form: str, above: str | None) -> str:
        """A domain that no file and no peer names, and whose nearest domain above with a file for it is this one."""
        names = (form.format(number or "") for number in count())
        return next(each for each in names if each not in self._domains and self._nearest_above(each) == above)


def left_of(kinds: Kinds, kind: Kind, conditions: Conditions) -> Recipients | None:
    """The conditions on recipients that do not hold for all of a kind; None if one never holds."""
    if kind.part == "one" and may_be_route(kind.address):  # in doubt, whom every condition on recipients fits
        return None, None
    left: list[tuple[Glob, ...] | None] = []
    for name in ON_RECIPIENTS:
        some: tuple[Glob, ...] | None = None
        if (globs := conditions.people.get(name)) is not None:
            meeting = {glob: kinds.meeting(kind, glob) for glob in globs}
            every = "all" in meeting.values()
            some = tuple(glob for glob in globs if meeting[glob] == "some")
            if (every and name != "recipient") or (not every and not some and name == "recipient"):
                return None
            some = None if every or not some else some
        left.append(some)
    return left[0], left[1]
