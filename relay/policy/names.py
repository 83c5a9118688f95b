"""Addresses and the names of the policy files that cover them, so that no two files mean one address.
Standard: RFC 5321 (4.1.2) for addresses, RFC 5892 for domains, RFC 3986 (2.1) for percent-encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple
from urllib.parse import unquote

from relay.config import DEFAULT_TAG_SEPARATORS
from relay.files.permissions import printable as printable
from relay.formats.characters import lower, nfc
from relay.formats.mailbox import MAX_ADDRESS, fold_domain

SUFFIX = ".toml"
DEFAULT_FILE = "default.toml"
FLOORS_FILE = "floors.toml"
GROUPS_FILE = "groups.toml"
TESTS_FILE = "tests.toml"
NO_DOMAIN = frozenset({DEFAULT_FILE, FLOORS_FILE, GROUPS_FILE, TESTS_FILE})
"""File names that never stand for a domain."""

Scope = Literal["person", "domain", "default"]
"""The scope of a file: one person, one domain, or everybody else."""

Step = Literal["person", "person without tag", "domain", "parent domain", "default"]
"""The steps of a lookup, in order."""

_DOT_STRING = re.compile(r'[^\x00-\x20\x7f-\x9f"(),:;<>@\[\\\]\ud800-\udfff]+')
_QUOTED_STRING = re.compile(r'"((?:[^\x00-\x1f\x7f-\x9f"\\\ud800-\udfff]|\\[\x20-\x7e])+)"')
_ASCII_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_LITERAL_NAME = re.compile(r"[a-z0-9_+-][a-z0-9_+.-]*")
_LITERAL = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_+.")
_ROUTING = frozenset("%!@")
"""One of these in a local part may be read by a mail server as a route to another domain (RFC 1123, 5.2.16)."""


class FoldedAddress(NamedTuple):
    """An address in comparable form: local part unquoted and in lower case, domain in A-labels.

    `folded_mailbox` defines which mailboxes are the same (relay/formats/mailbox.py). This is a layer on top, for file
    names and patterns: they ignore the case of the local part.
    """

    local: str
    domain: str


@lru_cache(maxsize=1024)
def parse_address(text: str) -> FoldedAddress:
    """`Alice@Example.ORG` as FoldedAddress("alice", "example.org"); raises ValueError with the fault.

    A quoted local part means the same as without quotes (RFC 5321, 4.1.2), so quoting selects no
    other file. An address literal (`[192.0.2.1]`) is refused: it would lead past the files by domain.
    """
    if len(text) > MAX_ADDRESS:
        raise ValueError(f"longer than {MAX_ADDRESS} characters")
    local, at, domain = text.rpartition("@")
    if not at:
        raise ValueError("it has no domain")
    if not _QUOTED_STRING.fullmatch(local) and not _DOT_STRING.fullmatch(local):
        raise ValueError("what stands before the @ is not a local part")
    return FoldedAddress(fold_local(local), fold_domain(domain))


def fold_local(local: str) -> str:
    """A local part in SMTP syntax, or a pattern for one, without quotes, in lower case and NFC."""
    if quoted := _QUOTED_STRING.fullmatch(local):
        local = re.sub(r"\\(.)", r"\1", quoted[1])
    return _lower(local)


def fold_address(local: str, domain: str) -> FoldedAddress:
    """The address of a local part without quotes and a domain or address literal; raises ValueError.

    The cost grows with the square of the length (NFC), which is bounded.
    """
    if len(local) + len(domain) >= MAX_ADDRESS:
        raise ValueError(f"longer than {MAX_ADDRESS} characters")
    return FoldedAddress(_lower(local), domain.lower() if domain.startswith("[") else fold_domain(domain))


def _lower(text: str) -> str:
    """The text in lower case and NFC, each letter on its own."""
    return nfc(lower(text))


def encode_local(local: str) -> str:
    """A folded local part as encoded in a file name.

    Literal are a-z, 0-9, "-", "_", "+", and "." except at the beginning; every other octet of its UTF-8
    is `%XX` with capital hexadecimal digits.
    """
    if _LITERAL_NAME.fullmatch(local):
        return local
    octets = local.encode("utf-8")
    return "".join(
        chr(octet) if octet in _LITERAL and (place or octet != ord(".")) else f"%{octet:02X}"
        for place, octet in enumerate(octets)
    )


def untagged(local: str, separators: str) -> str:
    """The local part without its tag: the text before the first separator, if there is any.

    Postfix splits at recipient_delimiter in the same way; the tag itself may be empty.
    """
    at = min((offset for each in separators if (offset := local.find(each)) >= 0), default=0)
    return local[:at] or local


def candidates(address: FoldedAddress, separators: str = DEFAULT_TAG_SEPARATORS) -> Iterator[tuple[str, Step]]:
    """The names of the files that may cover `address`, the most specific first, each with its lookup step.

    A "parent domain" file covers the address only if it says `subdomains = true`. `separators` are the tag separators.
    """
    local, domain = address
    yield f"{domain}/{encode_local(local)}{SUFFIX}", "person"
    if (bare := untagged(local, separators)) != local:
        yield f"{domain}/{encode_local(bare)}{SUFFIX}", "person without tag"
    step: Step = "domain"
    while domain:
        if (name := domain + SUFFIX) not in NO_DOMAIN:
            yield name, step
        step = "parent domain"
        domain = domain.partition(".")[2]
    yield DEFAULT_FILE, "default"


def may_be_route(address: FoldedAddress) -> bool:
    """Whether a mail server may read the local part as an address elsewhere: `ben%bob.example`, `bob.example!ben`."""
    return not _ROUTING.isdisjoint(address.local)


def domain_file(address: FoldedAddress) -> str:
    """The name of the file for an address's whole domain (default.toml for a domain called `default`)."""
    return address.domain + SUFFIX


def scope_of(name: str) -> tuple[Scope, str]:
    """The scope of the file called `name` (`example.org/alice.toml`), and its domain ("" for the default).

    Raises ValueError with the right name for one that is not the canonical name of its address.
    """
    if name == DEFAULT_FILE:
        return "default", ""
    directory, _, file = name.rpartition("/")
    if directory and _LITERAL_NAME.fullmatch(file) and _ASCII_DOMAIN.fullmatch(directory):
        return "person", directory  # fast path for the usual case
    local, at, domain = _decoded(file.removesuffix(SUFFIX)).rpartition("@")
    if directory:
        local, domain = local + at + domain, _decoded(directory)
    scope: Scope = "person" if directory or at else "domain"
    if scope == "person":
        quoted = re.sub(r'(["\\])', r"\\\1", local)
        meant, _ = next(candidates(parse_address(f'"{quoted}"@{domain}')))
    else:
        meant = fold_domain(domain) + SUFFIX
    if meant != name:
        raise ValueError(f"not the name that the file of its address has; call it {meant!r}")
    return scope, domain


def _decoded(stem: str) -> str:
    try:
        return unquote(stem, errors="strict").encode("utf-8").decode("utf-8")
    except UnicodeError:
        raise ValueError("its name is not UTF-8") from None
