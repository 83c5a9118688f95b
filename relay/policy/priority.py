"""Where sealing takes keys from beside the key ring itself: without the reserve, or a key that was drawn before.
Standard: the FreshKeys contract of relay/levels; relay/keys/ring.py knows the reserve.
"""

from __future__ import annotations

from typing import Protocol

from relay.errors import KMEExhausted
from relay.keys.pads import Pad
from relay.keys.types import SealingKey


class KeysWithReserve(Protocol):
    """FreshKeys of which some may be kept for mail of normal priority."""

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0, low_priority: bool = False) -> SealingKey:
        """A key of 256 bits for one message of `octets` to `peer`. Raises KeyUnavailable."""

    async def take_pad(self, peer: str, hidden: int, *, level: str = "otp", low_priority: bool = False) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""


class LowPriority:
    """FreshKeys that leaves the reserve alone."""

    def __init__(self, keys: KeysWithReserve) -> None:
        self._keys = keys

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0) -> SealingKey:
        """A key of 256 bits for one message of `octets` to `peer`. Raises KeyUnavailable."""
        return await self._keys.take(peer, level=level, octets=octets, low_priority=True)

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""
        return await self._keys.take_pad(peer, hidden, low_priority=True)


class DrawnBefore:
    """FreshKeys of one key, which was taken before it was known what it would seal; it is given once."""

    def __init__(self, taken: SealingKey) -> None:
        self._taken: SealingKey | None = taken

    async def take(self, peer: str, *, level: str = "aes", octets: int = 0) -> SealingKey:
        """The key. Raises KMEExhausted the second time."""
        taken, self._taken = self._taken, None
        if taken is None:
            raise KMEExhausted("only one key was drawn")
        return taken

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        """There is none. Raises KMEExhausted."""
        raise KMEExhausted("no pad was drawn")
