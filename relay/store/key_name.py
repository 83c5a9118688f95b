"""What a stored key is called: KME group, master SAE and key_ID together, however hostile the strings are.
Standard: ETSI GS QKD 014 makes key_IDs unique within one KME only; different names never share a row.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyName:
    """The three names of one key, all opaque strings of any length.

    A key_ID is kept as the KME spells it, but one that differs in upper and lower case alone names the same key: else a
    key could be used once more under another spelling.
    """

    group: str
    master_sae: str
    key_ID: str

    def context(self, table: str) -> bytes:
        """The table's name and the three, each after its length (4 octets): what a sealed key is bound to."""
        names = (table, self.group, self.master_sae, self.key_ID.casefold())
        parts = [part.encode("utf-8", "surrogatepass") for part in names]
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def place(self, table: str) -> bytes:
        """The primary key of the row: SHA-256 of the context, so 32 octets whatever the names are."""
        return hashlib.sha256(self.context(table)).digest()


def as_column(name: str) -> str:
    """Any name as readable ASCII: PostgreSQL text takes neither NUL nor half a surrogate pair."""
    return name.encode("unicode_escape").decode("ascii")


def from_column(value: str) -> str:
    """The name that as_column was given."""
    return value.encode("ascii").decode("unicode_escape")
