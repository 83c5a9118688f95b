"""Records fresh keys before use, and refuses keys that are already recorded.
Standard: left open by ETSI GS QKD 014 V1.1.1: a KME that was reset may issue the same keys again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from relay.errors import StoreUnavailable
from relay.formats.characters import casefold
from relay.keys.events import Events
from relay.keys.types import IssuedKeyStore, Key

log = Events(__name__)

Done = TypeVar("Done")

SEEN_KEYS = 200_000
"""Number of keys remembered in memory, beside the store, to detect keys issued twice."""

_TELLING_OCTETS = 16
"""Minimum length of keys that are also compared by their bytes, in bytes; shorter ones may be equal by chance."""


class SeenKeys:
    """Keys issued before, by ID (ignoring case) and by a keyed hash of their bytes: none may be used again."""

    def __init__(self, most: int = SEEN_KEYS) -> None:
        self._most = most
        self._marks: OrderedDict[bytes, None] = OrderedDict()
        self._secret = secrets.token_bytes(32)

    def first_time(self, key: Key) -> bool:
        """Remembers the key; False if its ID or its bytes were seen before."""
        marks = [self._mark(b"id", casefold(key.key_ID).encode())]
        if len(key.key) >= _TELLING_OCTETS:
            marks.append(self._mark(b"octets", key.key))
        new = not any(mark in self._marks for mark in marks)
        self._marks.update(dict.fromkeys(marks))
        while len(self._marks) > 2 * self._most:
            self._marks.popitem(last=False)
        return new

    def _mark(self, kind: bytes, octets: bytes) -> bytes:
        return hashlib.blake2b(octets, digest_size=16, key=self._secret, person=kind).digest()


class IssuedKeys:
    """The record of the keys issued by one KME: in memory, and in the store if there is one."""

    def __init__(self, kme: str, seen: SeenKeys) -> None:
        self._kme = kme
        self._seen = seen
        self._store: IssuedKeyStore | None = None
        self._group = ""
        self.withheld = ""
        """Why no key is drawn while the store is unavailable."""

    def remember_in(self, store: IssuedKeyStore, group: str) -> None:
        """Sets the store: keys recorded for this KME group are refused, and others are recorded first."""
        self._store, self._group = store, group

    async def ready(self) -> None:
        """Returns if keys can be recorded now. Raises StoreUnavailable: then none may be drawn."""
        if self._store is not None:
            await self._by_the_store(self._store.ready())

    async def seen_before(self, keys: Sequence[Key]) -> frozenset[str]:
        """Records new keys; returns the key_IDs of those that may not be used.

        Raises StoreUnavailable: then none of them may be used.
        """
        before = frozenset(key.key_ID for key in keys if not self._seen.first_time(key))
        if self._store is None:
            return before
        octets = {key.key_ID: key.key for key in keys}
        return before | await self._by_the_store(self._store.remember(self._group, octets))

    async def _by_the_store(self, work: Awaitable[Done]) -> Done:
        try:
            done = await work
        except StoreUnavailable as error:
            if not self.withheld:
                log.error("keys_not_drawn", kme=self._kme, cause=str(error))
            self.withheld = str(error)
            raise
        self.withheld = ""
        return done
