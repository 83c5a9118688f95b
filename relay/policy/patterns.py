"""Patterns in which `*` stands for anything, those for addresses, and the named groups of these in groups.toml.
Addresses are compared as policies/README.md says: in lower case, without quotes, and with or without their tag.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydantic import ConfigDict, RootModel

from relay.errors import ConfigError
from relay.files import toml
from relay.formats.mailbox import fold_domain
from relay.policy.names import fold_local
from relay.policy.people import NULL_SENDER, Fit, Reading
from relay.policy.units import Texts

GROUP = "group:"
"""Prefix of a group name in place of a pattern."""
LOGIN = "login:"
"""Prefix of the name of a user in place of the address of a sender."""
_GROUP_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SPECIAL = re.compile(r'[\s()<>\[\]:;@\\,"]')
"""What no local part has without quotes (RFC 5322, 3.2.3): such a pattern would never fit whom it means."""


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern in which `*` stands for any number of characters, and nothing else is special."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, pattern: str) -> Glob:
        """The pattern as written, case included."""
        return cls(tuple(pattern.split("*")))

    def matches(self, text: str) -> bool:
        """Whether the whole text matches; at most one pass over it for each part."""
        parts = self.parts
        first, last = parts[0], parts[-1]
        if len(parts) == 1:
            return text == first
        if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
            return False
        place, end = len(first), len(text) - len(last)
        for part in parts[1:-1]:
            begin = text.find(part, place, end)
            if begin < 0:
                return False
            place = begin + len(part)
        return True

    def occurs_in(self, text: str) -> bool:
        """Whether all its parts occur in the text; if not, it matches no piece of it."""
        return all(part in text for part in self.parts)

    def meets(self, other: Glob) -> bool:
        """Whether some text fits both: with a star in each, their prefixes and suffixes must be compatible."""
        if len(self.parts) == 1 or len(other.parts) == 1:
            return self.matches(str(other)) if len(other.parts) == 1 else other.matches(str(self))
        (begin, *_, end), (other_begin, *_, other_end) = self.parts, other.parts
        begins = begin.startswith(other_begin) or other_begin.startswith(begin)
        return begins and (end.endswith(other_end) or other_end.endswith(end))

    @property
    def domain(self) -> str:
        """The text after the last `@`, or all of it."""
        return str(self).rpartition("@")[2]

    def __str__(self) -> str:
        return "*".join(self.parts)


class Patterns(tuple[Glob, ...]):
    """Alternative patterns of a file, indexed by what a text needs to match them.

    The time does not grow with the number of addresses, nor with that of patterns like `*@example.org`.
    """

    _made: _Index | None = None

    def fit_one_of(self, texts: Iterable[str]) -> bool:
        """Whether one of these patterns matches one of the texts."""
        return any(map(self._fits, texts))

    @property
    def domains(self) -> Collection[str]:
        """The text after the last `@` of each; "" for the null sender."""
        index = self._index
        return index.domains | {glob.domain for glob in index.elsewhere}

    @property
    def work(self) -> int:
        """Maximum number of patterns that a text is compared with."""
        return self._index.work

    def _fits(self, text: str) -> bool:
        index = self._index
        _, at, domain = text.rpartition("@")
        if text in index.exact or (at and domain in index.whole_domains):
            return True
        return any(glob.matches(text) for some in (index.by_domain.get(domain, ()), index.elsewhere) for glob in some)

    @property
    def _index(self) -> _Index:
        """The index; created on first use, which most patterns never need."""
        if self._made is None:
            self._made = _Index.of(self)
        return self._made


class _Index(NamedTuple):
    """Patterns by what a text needs to match them.

    All addresses of `whole_domains` match. `elsewhere` has the patterns with a star in the domain, `by_domain` the
    others with a star. `domains` are those of all but `elsewhere`.
    """

    exact: frozenset[str]
    whole_domains: frozenset[str]
    by_domain: Mapping[str, tuple[Glob, ...]]
    elsewhere: tuple[Glob, ...]
    domains: frozenset[str]
    work: int

    @classmethod
    def of(cls, globs: Iterable[Glob]) -> _Index:
        exact, whole_domains, elsewhere = set(), set(), []
        by_domain: dict[str, list[Glob]] = {}
        domains = set()
        for glob in globs:
            domain = glob.domain
            if "*" in domain:
                elsewhere.append(glob)
                continue
            domains.add(domain)
            if len(glob.parts) == 1:
                exact.add(glob.parts[0])
            elif glob.parts == ("", f"@{domain}"):
                whole_domains.add(domain)
            else:
                by_domain.setdefault(domain, []).append(glob)
        return cls(
            frozenset(exact), frozenset(whole_domains), {name: tuple(each) for name, each in by_domain.items()},
            tuple(elsewhere), frozenset(domains), 1 + len(elsewhere) + max(map(len, by_domain.values()), default=0),
        )  # fmt: skip


Groups = Mapping[str, Patterns]
"""The patterns of each group by its name."""
NONE = Patterns()


@dataclass(frozen=True, slots=True)
class AddressPatterns:
    """The address patterns, group names and names of users of one setting; names of users fit logins alone."""

    globs: Patterns = NONE
    groups: tuple[str, ...] = ()
    users: tuple[Glob, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str], *, logins: bool = False) -> AddressPatterns:
        """The patterns in these texts, with `logins` names of users too; raises ValueError with the right spelling."""
        named, users, addresses = [], [], []
        for text in texts:
            if text.startswith(GROUP):
                named.append(text.removeprefix(GROUP))
            elif logins and text.startswith(LOGIN) and (user := text.removeprefix(LOGIN).strip()):
                if user == NULL_SENDER:
                    raise ValueError(f"{text!r} fits nobody: who has not logged in is named by no pattern")
                users.append(Glob.of(user.casefold()))
            else:
                addresses.append(address_pattern(text))
        return cls(Patterns(addresses), tuple(named), tuple(users))

    def all(self, groups: Groups) -> Iterator[Glob]:
        """These patterns and those of the groups."""
        for some in self._lists(groups):
            yield from some

    def fit(self, person: Reading, groups: Groups) -> Fit:
        """How surely one of them fits this person."""
        lists = self._lists(groups)
        if any(some.fit_one_of(person.surely) for some in lists):
            return Fit.SURELY
        if person.login:
            if any(user.matches(text) for user in self.users for text in person.surely):
                return Fit.SURELY
            # A server may log users in with their domain, or without.
            bare = [text.partition("@")[0] for text in person.surely]
            may = person.doubt or any(user.matches(text) for user in self.users for text in bare)
            return Fit.MAYBE if may and self.users else Fit.NOT
        may = person.doubt or any(some.fit_one_of(each.surely) for each in person.within for some in lists)
        return Fit.MAYBE if may else Fit.NOT

    def lack(self, person: Reading, groups: Groups) -> Fit:
        """How surely this person is not named: all for whom they may stand have to be named as well."""
        fit = self.fit(person, groups)
        if fit is Fit.SURELY and (person.doubt or any(self.fit(each, groups) < Fit.SURELY for each in person.within)):
            return Fit.MAYBE
        return fit.negated

    def domains(self, groups: Groups) -> Iterator[str]:
        """The text after the `@` of each, maybe with duplicates."""
        for some in self._lists(groups):
            yield from some.domains

    def _lists(self, groups: Groups) -> tuple[Patterns, ...]:
        return (self.globs, *(groups.get(name, NONE) for name in self.groups))

    @property
    def said(self) -> str:
        """The patterns as text for messages."""
        return listed(
            (*map(str, self.globs), *(GROUP + name for name in self.groups), *(f"{LOGIN}{user}" for user in self.users))
        )


def address_pattern(text: str) -> Glob:
    """`ceo@alice.example`, `"*@alice.example"` or `"<>"`; raises ValueError saying how to write it."""
    if text == NULL_SENDER:
        return Glob.of(text)
    local, at, domain = text.rpartition("@")
    if not at or not local:
        raise ValueError(f'{text!r}: write an address, "*@example.org", "group:name", or "<>" for the null sender')
    if not local.startswith('"') and (special := _SPECIAL.search(local)):
        raise ValueError(
            f"{text!r}: no address has {special[0]!r} there; write several as a list, and users in sender or not_sender"
        )
    if "*" not in domain:
        domain = fold_domain(domain)
    elif not domain.isascii():
        raise ValueError(f"{text!r}: write a domain with * in A-labels (xn--...)")
    return Glob.of(f"{fold_local(local)}@{domain.lower()}")


def listed(texts: tuple[str, ...]) -> str:
    """Some texts, joined for messages."""
    return " or ".join(map(repr, texts[:5])) + (" or ..." if len(texts) > 5 else "")


class _GroupsFile(RootModel[dict[str, Texts]]):
    model_config = ConfigDict(frozen=True, strict=True)


def read_groups(text: str, source: str) -> Groups:
    """The groups in the text of groups.toml; `source` names it in messages. Raises ConfigError."""
    groups: dict[str, Patterns] = {}
    faults: list[str] = []
    for name, texts in toml.parse(text, _GroupsFile, source=source).root.items():
        where = f"{source}:{toml.line_of(text, (name,)) or 1}: {name[:64]}"
        if not _GROUP_NAME.fullmatch(name):
            faults.append(f"{where}: write a name of letters, digits, - and _")
        try:
            if any(text.startswith(GROUP) for text in texts):
                raise ValueError("a group has addresses and patterns, and no groups")  # noqa: TRY301
            groups[name] = Patterns(map(address_pattern, texts))
        except ValueError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise ConfigError(faults)
    return groups
