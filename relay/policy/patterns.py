"""Patterns in which `*` stands for anything, those for addresses, and the named groups of these in groups.toml.
Addresses are compared as policies/README.md says: in lower case, without quotes, and with or without their tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import ConfigDict, RootModel

from relay.errors import ConfigError
from relay.files import toml
from relay.formats.mailbox import fold_domain
from relay.policy.names import fold_local
from relay.policy.people import NULL_SENDER, Fit, Reading
from relay.policy.units import Texts

GROUP = "group:"
"""What stands before the name of a group where a pattern may be."""
_GROUP_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Glob:
    """A pattern in which `*` stands for any number of characters, and nothing else is special."""

    parts: tuple[str, ...]

    @classmethod
    def of(cls, pattern: str) -> Glob:
        """The pattern as it is written, case included."""
        return cls(tuple(pattern.split("*")))

    def matches(self, text: str) -> bool:
        """Whether the whole text is covered; never more than one pass over it for each part."""
        parts = self.parts
        first, last = parts[0], parts[-1]
        if len(parts) == 1:
            return text == first
        if not text.startswith(first) or len(text) < len(first) + len(last) or not text.endswith(last):
            return False
        place, end = len(first), len(text) - len(last)
        for part in parts[1:-1]:
            found = text.find(part, place, end)
            if found < 0:
                return False
            place = found + len(part)
        return True

    def meets(self, other: Glob) -> bool:
        """Whether some text fits both: with a star in each, their beginnings and their ends have to agree."""
        if len(self.parts) == 1 or len(other.parts) == 1:
            return self.matches(str(other)) if len(other.parts) == 1 else other.matches(str(self))
        (begin, *_, end), (other_begin, *_, other_end) = self.parts, other.parts
        begins = begin.startswith(other_begin) or other_begin.startswith(begin)
        return begins and (end.endswith(other_end) or other_end.endswith(end))

    def __str__(self) -> str:
        return "*".join(self.parts)


Groups = Mapping[str, tuple[Glob, ...]]
"""The patterns of each group by its name."""


@dataclass(frozen=True, slots=True)
class AddressPatterns:
    """Patterns for addresses, as they stand in a file, and names of groups of them."""

    globs: tuple[Glob, ...] = ()
    groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> AddressPatterns:
        """Raises ValueError saying how to write what is wrong."""
        named = tuple(text.removeprefix(GROUP) for text in texts if text.startswith(GROUP))
        return cls(tuple(address_pattern(text) for text in texts if not text.startswith(GROUP)), named)

    @classmethod
    def of_logins(cls, texts: Iterable[str]) -> AddressPatterns:
        """Patterns for the names of users, which need not be addresses; raises ValueError."""
        if groups := [text for text in texts if text.startswith(GROUP)]:
            raise ValueError(f"{groups[0]!r}: groups are of addresses; list the names of users")
        return cls(tuple(Glob.of(text.casefold()) for text in texts))

    def all(self, groups: Groups) -> Iterator[Glob]:
        """These and those of the groups."""
        yield from self.globs
        for name in self.groups:
            yield from groups.get(name, ())

    def fit(self, person: Reading, groups: Groups) -> Fit:
        """How far one of them fits this person."""
        globs = tuple(self.all(groups)) if self.groups else self.globs
        if any(glob.matches(each) for glob in globs for each in person.surely):
            return Fit.SURELY
        may = person.doubt or any(glob.matches(each) for glob in globs for each in person.maybe)
        return Fit.MAYBE if may else Fit.NOT

    @property
    def said(self) -> str:
        """The patterns as text for a person."""
        return listed((*map(str, self.globs), *(GROUP + name for name in self.groups)))


def address_pattern(text: str) -> Glob:
    """`ceo@alice.example`, `"*@alice.example"` or `"<>"`; raises ValueError saying how to write it."""
    if text == NULL_SENDER:
        return Glob.of(text)
    local, at, domain = text.rpartition("@")
    if not at or not local:
        raise ValueError(f'{text!r}: write an address, "*@example.org", "group:name", or "<>" for the null sender')
    if "*" not in domain:
        domain = fold_domain(domain)
    elif not domain.isascii():
        raise ValueError(f"{text!r}: write a domain with * in A-labels (xn--...)")
    return Glob.of(f"{fold_local(local)}@{domain.lower()}")


def listed(texts: tuple[str, ...]) -> str:
    """Some texts as a person reads them."""
    return " or ".join(map(repr, texts[:5])) + (" or ..." if len(texts) > 5 else "")


class _GroupsFile(RootModel[dict[str, Texts]]):
    model_config = ConfigDict(frozen=True, strict=True)


def read_groups(text: str, source: str) -> Groups:
    """The groups in the text of groups.toml; `source` is its name for messages. Raises ConfigError."""
    groups: dict[str, tuple[Glob, ...]] = {}
    faults: list[str] = []
    for name, texts in toml.parse(text, _GroupsFile, source=source).root.items():
        where = f"{source}:{toml.line_of(text, (name,)) or 1}: {name[:64]}"
        if not _GROUP_NAME.fullmatch(name):
            faults.append(f"{where}: write a name of letters, digits, - and _")
        try:
            groups[name] = tuple(map(address_pattern, texts))
        except ValueError as error:
            faults.append(f"{where}: {error}")
    if faults:
        raise ConfigError(faults)
    return groups
