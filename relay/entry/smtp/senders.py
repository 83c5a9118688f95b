"""The sender addresses that a user may use, in MAIL FROM and in the fields that readers see.
Standard: RFC 5321 2.4 (domains in any case, local parts exactly), RFC 6409 6.1, RFC 5322 3.6.2 and 3.6.6.

Reply-To is unrestricted: mail programs only use it as the address of replies.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from relay.errors import MalformedMessage, Refuse
from relay.formats import mime
from relay.formats.addresses import read_addresses
from relay.formats.doubt import InDoubt
from relay.formats.mailbox import fold_domain

ANY = "*"
"""Any address but the null sender."""
NULL = "<>"
"""The null reverse-path, which mail programs use for notices such as read receipts (RFC 8098, 3)."""

WHOM_FROM = {
    b"from": "From",
    b"sender": "Sender",
    b"resent-from": "Resent-From",
    b"resent-sender": "Resent-Sender",
}
"""The fields that mail programs show as the author; with Sender, "boss on behalf of ann"."""

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_RIGHT = re.compile(r"[^\s,:<>\"@]*@[^\s,:<>\"@]+")


class SenderNotAllowed(Refuse):
    """The user may not send from this address."""

    code = 553
    public = "You may not send from this address"


class FromNotAllowed(Refuse):
    """A field that shows the author names somebody other than the user."""

    public = "You may not write this address in From, Sender or a Resent field"


@dataclass(frozen=True, slots=True)
class SenderRights:
    """The addresses that one user may send from.

    `addresses` are full addresses; `domains`, folded (lower case, A-labels), permit every address in them.
    """

    addresses: frozenset[tuple[str, str]] = frozenset()
    domains: frozenset[str] = frozenset()
    any_address: bool = False
    null: bool = False

    def check_sender(self, sender: str) -> None:
        """`sender` is the reverse-path, "" for the null one. Raises SenderNotAllowed."""
        if not (self.null if not sender else self._allow(sender)):
            raise SenderNotAllowed(f"sender <{sender}> is none of the user's addresses")

    def check_from(self, message: bytes) -> None:
        """Checks that every author and sender is the user, also in Resent fields.

        Raises FromNotAllowed, and MalformedMessage unless there is exactly one From. A line that is no field is refused
        too: some programs read it as one, without its first octets.
        """
        if self.any_address:
            return
        lines = mime.lines_by_field(mime.searched_header(message))
        if not all(name for name, _ in lines):
            raise MalformedMessage("a line of the header is no field")
        fields = [(name, raw) for name, raw in lines if name in WHOM_FROM]
        authors = sum(name == b"from" for name, _ in fields)
        if authors != 1:
            raise MalformedMessage(f"the header has {authors or 'no'} From fields; it must have one")
        for name, raw in fields:
            self._check_field(WHOM_FROM[name], raw.partition(b":")[2])

    def _check_field(self, name: str, value: bytes) -> None:
        try:
            addresses = read_addresses(value, by_standard=True)
        except InDoubt as error:
            raise FromNotAllowed(f"the {name} field cannot be read without doubt: {error}") from error
        for address in addresses:
            if not self._may(*address):
                raise FromNotAllowed(f"<{address}> in the {name} field is none of the user's addresses")

    def _allow(self, address: str) -> bool:
        try:
            return self._may(*_parts(address))
        except ValueError:
            return False

    def _may(self, local: str, domain: str) -> bool:
        """Whether the user may use this mailbox, its local part without quotes."""
        try:
            folded = fold_domain(domain)
        except ValueError:
            return False
        return self.any_address or folded in self.domains or (local, folded) in self.addresses


def parse_rights(entries: Iterable[str]) -> SenderRights:
    """`ann@alice.example`, `@alice.example` (the whole domain), `*` and `<>` as rights; raises ValueError."""
    addresses: set[tuple[str, str]] = set()
    domains: set[str] = set()
    plain = set(entries)
    for entry in plain - {ANY, NULL}:
        if not _RIGHT.fullmatch(entry):
            raise ValueError(f"{entry[:80]!r} is no address; write user@domain, @domain, {ANY} or {NULL}")
        local, domain = _parts(entry)
        if local:
            addresses.add((local, domain))
        else:
            domains.add(domain)
    return SenderRights(frozenset(addresses), frozenset(domains), any_address=ANY in plain, null=NULL in plain)


def own_name(name: str, domains: Iterable[str]) -> SenderRights:
    """The rights of a user without an entry: the name itself, or name@domain in each of `domains`."""
    if name.startswith("@"):  # would be a whole domain
        return SenderRights()
    try:
        return parse_rights([name] if "@" in name else [f"{name}@{domain}" for domain in domains])
    except ValueError:
        return SenderRights()


def _parts(address: str) -> tuple[str, str]:
    """Local part (unquoted, case kept) and folded domain. Raises ValueError."""
    local, _, domain = address.rpartition("@")
    if quoted := _QUOTED.fullmatch(local):
        local = re.sub(r"\\(.)", r"\1", quoted[1])
    return local, fold_domain(domain)
