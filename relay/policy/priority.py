"""Where one sealed copy takes its quantum keys from: the key ring, at the priority that policy gives the copy.
Standard: the FreshKeys contract of relay/schemes; relay/keys/ring.py knows the reserve.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from relay.errors import KMEMisconfigured
from relay.levels import AES, OTP

if TYPE_CHECKING:
    from relay.keys import KeyReference
    from relay.keys.pads import Pad
    from relay.keys.refill import Supply
    from relay.keys.types import SealingKey


class KeysWithReserve(Protocol):
    """FreshKeys of which some may be kept for mail of normal priority."""

    async def take(
        self, peer: str, *, level: str = AES.name, octets: int = 0, low_priority: bool = False
    ) -> SealingKey:
        """A key of 256 bits for one message of `octets` to `peer`. Raises KeyUnavailable."""

    async def take_pad(self, peer: str, hidden: int, *, level: str = OTP.name, low_priority: bool = False) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""

    async def can_supply(self, peer: str, hidden: int, *, low_priority: bool = False) -> Supply:
        """Whether such a pad (0: one key) is available now. Raises KeyUnavailable."""


class CopyKeys:
    """FreshKeys for one copy; a key that was drawn before it was needed is given first, and once."""

    def __init__(self, keys: KeysWithReserve, slave_sae: str, *, low_priority: bool) -> None:
        """Only keys for `slave_sae` are given: the peer may get another SAE ID while the copy is made."""
        self._keys = keys
        self._slave_sae = slave_sae
        self._low_priority = low_priority
        self._drawn: SealingKey | None = None

    async def draw(self, peer: str, octets: int) -> None:
        """Takes the key for a later layer. Raises KeyUnavailable."""
        self._drawn = await self.take(peer, octets=octets)

    async def take(self, peer: str, *, level: str = AES.name, octets: int = 0) -> SealingKey:
        """A key of 256 bits for one message of `octets` to `peer`. Raises KeyUnavailable."""
        drawn, self._drawn = self._drawn, None
        if drawn is None:
            drawn = await self._keys.take(peer, level=level, octets=octets, low_priority=self._low_priority)
            self._check([drawn.reference])
        return drawn

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        """A one-time pad that hides `hidden` octets. Raises KeyUnavailable."""
        pad = await self._keys.take_pad(peer, hidden, low_priority=self._low_priority)
        self._check(each.reference for each in pad.keys)
        return pad

    def _check(self, references: Iterable[KeyReference]) -> None:
        if others := {each.slave_sae for each in references} - {self._slave_sae}:
            raise KMEMisconfigured(f"the peer's SAE has just changed from {self._slave_sae!r} to {others.pop()!r}")
