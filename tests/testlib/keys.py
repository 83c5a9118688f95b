"""Key sources for tests of the levels: keys that are known, and sources that have none.
Standard: the KeySource contract of relay/keys/contract.py; every key handed out is remembered.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence

from relay.errors import KMEExhausted
from relay.keys import Key


class MemorySource:
    """A KME group in memory: what `take` gave, `fetch` gives once."""

    def __init__(self, number: int = 1000, size: int | None = None) -> None:
        self.group = "alice-bob"
        self.issued: dict[str, Key] = {}
        self._left = number
        self._size = size

    async def take(self, slave_sae: str, size: int = 256) -> Key:
        if not self._left:
            raise KMEExhausted("no key left")
        self._left -= 1
        key = Key(str(uuid.uuid4()), secrets.token_bytes((self._size or size) // 8))
        self.issued[key.key_ID] = key
        return key

    async def fetch(self, master_sae: str, key_IDs: Sequence[str]) -> dict[str, Key]:
        return {key_ID: self.issued.pop(key_ID) for key_ID in key_IDs if key_ID in self.issued}

    async def close(self) -> None:
        return None
