"""The addresses of the people in a group of a directory, and in the groups within it.
Standard: RFC 4519 (member, uniqueMember), RFC 4524 (mail); Active Directory's proxyAddresses, and its ranges of values
(MS-ADTS, 3.1.1.3.1.3.3).

A person without an address sends no mail. A member that cannot be found raises: that person would lose protection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from relay.errors import ConfigError
from relay.formats.characters import is_printable
from relay.groups.ldap import LDAPEntry
from relay.mail import MAILBOX
from relay.policy.patterns import address_pattern
from relay.policy.units import MAX_TEXT

ATTRIBUTES = ("objectClass", "mail", "proxyAddresses", "member", "uniqueMember")
EVERYBODY = "(|(mail=*)(proxyAddresses=*)(member=*)(uniqueMember=*))"
"""People with an address, and groups that are not empty."""
ANY = "(objectClass=*)"
MAX_LOOKED_UP = 1000
"""Maximum number of members that are asked for one by one."""
_RANGE = re.compile(r"member;range=(\d+)-(\d+|\*)")
_SMTP = "smtp:"
Search = Callable[[str, str, str, Sequence[str]], list[LDAPEntry]]
"""As LDAP.search: base, scope, filter, attributes."""


@dataclass
class DirectoryGroup:
    """`addresses` in lower case; `without` are the DNs of people who have none, `unusable` what is no address."""

    addresses: set[str] = field(default_factory=set)
    without: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


class People:
    """What the directory has below one base, read at once."""

    def __init__(self, search: Search, base: str) -> None:
        """Raises LDAPUnanswered."""
        self._search = search
        self._known = {folded(each.dn): each for each in search(base, "sub", EVERYBODY, ATTRIBUTES)}
        self._looked_up = 0

    def group(self, dn: str) -> DirectoryGroup:
        """The group with this DN, with all groups within it. Raises LDAPUnanswered and ConfigError."""
        top = self._entry(dn, "which [ldap.groups] names")
        if not _is_group(top):
            raise ConfigError(f"{dn} is no group with member or uniqueMember")
        group, seen, waiting = DirectoryGroup(), {folded(dn)}, [top]
        while waiting:
            within = waiting.pop()
            for member in self._members(within):
                if folded(member) in seen:
                    continue
                seen.add(folded(member))
                entry = self._entry(member, f"a member of {within.dn}")
                if _is_group(entry):
                    waiting.append(entry)
                else:
                    _add(group, entry)
        return group

    def _members(self, group: LDAPEntry) -> Iterator[str]:
        """Their DNs. A large group's come in ranges, which are asked for until the last."""
        yield from group.of("member")
        yield from (_UNIQUE.sub("", each) for each in group.of("uniquemember"))
        found, number = _range(group), 0
        while found is not None:
            first, last, members = found
            if first != number:
                raise ConfigError(f"{group.dn}: its members from number {number} on were not given")
            yield from members
            if last is None:
                return
            number = last + 1
            more = self._search(group.dn, "base", ANY, [f"member;range={number}-*"])
            found = (_range(more[0]) if more else None) or (-1, None, [])

    def _entry(self, dn: str, what: str) -> LDAPEntry:
        """What stands there; asked for by itself where it has neither address nor members, or is not below the base."""
        if (known := self._known.get(folded(dn))) is not None:
            return known
        self._looked_up += 1
        if self._looked_up > MAX_LOOKED_UP:
            raise ConfigError(f"more than {MAX_LOOKED_UP} members have no address below the base: write a wider base")
        found = self._search(dn, "base", ANY, ATTRIBUTES)
        if not found:
            raise ConfigError(f"{dn}, {what}, is not there, or the account that reads may not see it")
        return self._known.setdefault(folded(dn), found[0])


def _range(entry: LDAPEntry) -> tuple[int, int | None, list[str]] | None:
    """The number of the first member in a range, that of the last (None: of all), and the members."""
    for name, members in entry.values.items():
        if match := _RANGE.fullmatch(name):
            return int(match[1]), None if match[2] == "*" else int(match[2]), members
    return None


_UNIQUE = re.compile(r"#'[01]*'B$")
"""The bit string that a uniqueMember may have behind the DN (RFC 4517, 3.3.21)."""


def folded(dn: str) -> str:
    """A DN for comparing: lower case, without spaces around its commas and equals signs (RFC 4514, 2.4)."""
    return re.sub(r"\s*(?<!\\)([,=])\s*", r"\1", dn.strip()).lower()


def _is_group(entry: LDAPEntry) -> bool:
    classes = map(str.lower, entry.of("objectclass"))
    return any(each.startswith("group") for each in classes) or any(
        name.partition(";")[0] in ("member", "uniquemember") for name in entry.values
    )


def _add(group: DirectoryGroup, person: LDAPEntry) -> None:
    proxies = (each for each in person.of("proxyaddresses") if each[: len(_SMTP)].lower() == _SMTP)
    found = [*person.of("mail"), *(each[len(_SMTP) :] for each in proxies)]
    for address in found:
        if _names_one(address):
            group.addresses.add(address.lower())
        else:
            group.unusable.append(f"{person.dn}: {address}")
    if not found:
        group.without.append(person.dn)


def _names_one(address: str) -> bool:
    """Whether groups.toml can have it, and it fits nobody else: a star would make it a pattern."""
    if not MAILBOX.fullmatch(address) or not is_printable(address) or len(address) > MAX_TEXT or "*" in address:
        return False
    try:
        address_pattern(address)
    except ValueError:
        return False
    return True
