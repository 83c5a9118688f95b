"""Keys for mail of low priority: the same keys, without what the KME keeps in reserve.
Standard: the FreshKeys contract of relay/levels; relay/keys/keyring.py knows the reserve.
"""

from __future__ import annotations

from typing import Protocol

from relay.keys.pads import Pad
from relay.keys.rotation import Taken


class KeysWithReserve(Protocol):
    """FreshKeys of which some may be kept for mail of normal priority."""

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0, low_priority: bool = False) -> Taken:
        """A key of 256 bits for one message of `octets` to `peer`. Raises KeyUnavailable."""

    async def take_pad(self, peer: str, n_octets: int, *, level: str = "otp", low_priority: bool = False) -> Pad:
        """A one-time pad of exactly `n_octets`. Raises KeyUnavailable."""


class LowPriority:
    """FreshKeys that leaves the reserve alone."""

    def __init__(self, keys: KeysWithReserve) -> None:
        self._keys = keys

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0) -> Taken:
        """A key of 256 bits for one message of `octets` to `peer`. Raises KeyUnavailable."""
        return await self._keys.take(peer, level=level, octets=octets, low_priority=True)

    async def take_pad(self, peer: str, n_octets: int) -> Pad:
        """A one-time pad of exactly `n_octets`. Raises KeyUnavailable."""
        return await self._keys.take_pad(peer, n_octets, low_priority=True)
