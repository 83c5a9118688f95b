"""Keys for tests of the levels: fresh ones in memory, every one of them remembered.
Standard: the FreshKeys contract of relay/schemes; what was handed out is what opens.
"""

from __future__ import annotations

import secrets
import uuid

from relay.errors import KMEExhausted
from relay.keys import Key, KeyReference
from relay.keys.pads import Pad, pad_of
from relay.keys.types import SealingKey


class MemoryKeys:
    """Fresh keys from Alice (SAE 2) to Bob (SAE 1): `number` of them, of `octets` each, those of pads of `pad_key`.

    `taken_for` has the levels for which single ones were taken, `pads` counts what was taken as pads.
    """

    def __init__(self, number: int = 1000, octets: int = 32, pad_key: int = 4096) -> None:
        self.issued: dict[str, Key] = {}
        self.taken_for: list[str] = []
        self.pads = 0
        self._left = number
        self._octets = octets
        self._pad_key = pad_key

    async def take(self, peer: str, *, level: str = "aes", size: int = 0) -> SealingKey:
        key = self._key(self._octets)
        self.taken_for.append(level)
        return SealingKey(key, self._reference(key))

    async def take_pad(self, peer: str, hidden: int) -> Pad:
        self.pads += 1
        number = max(2, -(-hidden // (self._pad_key - 16)))
        keys = [self._key(self._pad_key) for _ in range(number)]
        return pad_of(keys, [self._reference(key) for key in keys], hidden)[0]

    def _key(self, octets: int) -> Key:
        if not self._left:
            raise KMEExhausted("no key left")
        self._left -= 1
        key = Key(str(uuid.uuid4()), secrets.token_bytes(octets))
        self.issued[key.key_ID] = key
        return key

    def _reference(self, key: Key) -> KeyReference:
        return KeyReference(key.key_ID, "2", "1", "alice-bob")
