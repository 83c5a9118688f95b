"""Reads senders, authors and recipients for comparison with patterns, which fit surely, maybe, or not.
Standard: RFC 5321 4.1.2, RFC 5322 3.4; SRS and BATV forms; doubt is on the strict side (policies/README.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from relay.formats.addresses import read_addresses
from relay.policy.names import FoldedAddress, fold_address, may_be_route, untagged

NULL_SENDER = "<>"
"""The null sender in patterns."""

_SRS0 = re.compile(r"srs0[=+-][^=]+=[^=]+=([^=@]+)=(.+)")
_SRS1 = re.compile(r"srs1[=+-][^=]+=[^=]+=([=+-][^=]+=[^=]+=[^=@]+=.+)")
_BATV = re.compile(r"(?:prvs=[0-9a-z]+=|btv1==[0-9a-z]+==)(.+)")
"""In lower case, as addresses are compared. SRS1 holds an SRS0 without its first four letters."""
_REWRITTEN = re.compile(r"srs[01][=+-]|prvs=|btv1=")
"""Prefix of a local part in one of these forms, or of one that looks like it."""
MAX_REWRITTEN = 5
"""Maximum nesting of these forms; an address nested deeper is in doubt."""


class Fit(IntEnum):
    """How surely a condition fits a mail. Both raise; what raised only by MAYBE is reported."""

    NOT = 0
    MAYBE = 1
    SURELY = 2

    @property
    def negated(self) -> Fit:
        """The fit of the opposite condition."""
        return Fit(Fit.SURELY - self)


class Reading(NamedTuple):
    """One person in comparable form.

    A pattern fits surely where it fits one of the texts in `surely`. It fits maybe where it fits one of those `within`,
    for whom this address may stand.
    If the person is in `doubt`, every other pattern fits maybe. A `login` is compared with the names of users as well;
    one in doubt is not known, and fits no pattern of addresses.
    """

    surely: tuple[str, ...] = ()
    within: tuple[Reading, ...] = ()
    doubt: bool = False
    login: bool = False


IN_DOUBT = Reading(doubt=True)


@lru_cache(maxsize=1024)
def read_mailbox(address: str) -> FoldedAddress | None:
    """An address of an SMTP envelope; None if in doubt."""
    try:
        [mailbox] = read_addresses(f"<{address}>".encode("utf-8", "surrogateescape"))
        return fold_address(*mailbox)
    except ValueError:
        return None


@lru_cache(maxsize=1024)
def read_sender(address: str, separators: str) -> Reading:
    """The envelope sender; "" is the null sender. `separators` are the tag separators.

    One trailing dot of the domain is dropped: Postfix drops it as well, but only after a milter has seen the address.
    """
    if not address:
        return Reading((NULL_SENDER,))
    reading = _read(read_mailbox(address.removesuffix(".")), separators)
    if reading.doubt or not _REWRITTEN.match(reading.surely[0]):
        return reading
    within = tuple(_read(each, separators) for each in _rewritten(reading.surely[0]))
    return reading._replace(within=within, doubt=any(each.doubt for each in within))


@lru_cache(maxsize=1024)
def read_recipient(address: FoldedAddress, separators: str) -> Reading:
    """A recipient; one whose local part may be a route is in doubt."""
    return IN_DOUBT if may_be_route(address) else Reading(spellings(address, separators))


def read_authors(authors: Iterable[FoldedAddress] | None, separators: str) -> tuple[Reading, ...]:
    """Everybody in From (`MessageFacts.authors`); without anybody, or in doubt, one person in doubt."""
    return tuple(_read(each, separators) for each in authors or ()) or (IN_DOUBT,)


def _read(address: FoldedAddress | None, separators: str) -> Reading:
    """One person; an address literal, or a possible route, may be anybody."""
    if address is None or address.domain.startswith("[") or may_be_route(address):
        return IN_DOUBT
    return Reading(spellings(address, separators))


def read_login(name: str | None) -> Reading:
    """The user who has logged in; None if that is not known."""
    return Reading(doubt=True, login=True) if name is None else Reading((name.casefold(),), login=True)


def spellings(address: FoldedAddress, separators: str) -> tuple[str, ...]:
    """The texts of an address for comparison: whole, and without its tag."""
    local, domain = address
    bare = untagged(local, separators)
    whole = f"{local}@{domain}"
    return (whole,) if bare == local else (whole, f"{bare}@{domain}")


def _rewritten(address: str) -> Iterator[FoldedAddress | None]:
    """The original addresses in an SRS or BATV address, the outermost first; None for an unreadable one."""
    for _ in range(MAX_REWRITTEN):
        local, _, domain = address.rpartition("@")
        if not _REWRITTEN.match(local):
            return
        if srs1 := _SRS1.fullmatch(local):
            local = f"srs0{srs1[1]}"
        if srs0 := _SRS0.fullmatch(local):
            address = f"{srs0[2]}@{srs0[1].removesuffix('.')}"
        elif batv := _BATV.fullmatch(local):
            address = f"{batv[1]}@{domain}"
        else:
            yield None
            return
        yield read_mailbox(address)
    yield None
