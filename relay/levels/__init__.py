"""The levels at which a message is sealed; each file holds both directions of one level.
Standard: DER-encoded CMS (RFC 5652) in and out; what every level promises is the contract below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from relay.keys import Key, KeyReference, KeySource


@dataclass(frozen=True, slots=True)
class Parties:
    """The two ends of one sealed message: SAE IDs of the site that seals (master) and that opens (slave)."""

    master_sae: str
    slave_sae: str


@dataclass(frozen=True, slots=True)
class Sealed:
    """What sealing gave: the CMS as DER, and the keys that were spent on it, for the log."""

    der: bytes
    keys: tuple[KeyReference, ...]


class Level(Protocol):
    """One way to seal. `open` gives back exactly the payload that `seal` got, or raises and gives nothing."""

    name: str

    async def seal(self, payload: bytes, parties: Parties, source: KeySource) -> Sealed:
        """Seal `payload`, taking from `source` the keys that this level needs. Raises KeyUnavailable."""

    def references(self, der: bytes) -> tuple[KeyReference, ...]:
        """Which keys a sealed message names; any one of them opens it. Raises BadStructure."""

    async def open(self, der: bytes, keys: Mapping[str, Key]) -> bytes:
        """The payload, verified, with `keys` by key_ID. Raises BadStructure or BadTag."""
