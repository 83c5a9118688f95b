"""Mailboxes and domains, and when two are equal.

Standard: relay/FORMAT.md, 7 (end); RFC 5890.
"""

import re
from typing import NewType

import idna

Mailbox = NewType("Mailbox", tuple[str, str])  # local part, domain as it is compared


def domain(name: str) -> str:
    """A domain as it is compared: A-labels in lower case. What has none is only lowered."""
    lowered = name.lower()
    if lowered.isascii():
        return lowered
    try:
        return idna.encode(lowered).decode("ascii")
    except idna.IDNAError:
        return lowered


def mailbox(address: str) -> Mailbox:
    """An address as it is compared; one without a domain has the empty one."""
    local, at, rest = address.rpartition("@")
    return Mailbox((plain(local), domain(rest)) if at else (address, ""))


def plain(local: str) -> str:
    """A local part without quotes and backslashes that change nothing."""
    if len(local) < 2 or not (local.startswith('"') and local.endswith('"')):
        return local
    meant = re.sub(r"\\(.)", r"\1", local[1:-1], flags=re.DOTALL)
    words = meant.split(".")
    if all(words) and not set(meant) & set(' ()<>[]:;@\\,"') and meant.isprintable():
        return meant
    return '"' + meant.replace("\\", "\\\\").replace('"', '\\"') + '"'
