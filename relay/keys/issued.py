"""Records fresh keys before use, and refuses keys that are already recorded.
Standard: left open by ETSI GS QKD 014 V1.1.1: a KME that was reset may issue the same keys again.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.errors import StoreUnavailable
from relay.keys.events import Events
from relay.keys.types import IssuedKeyStore, Key

log = Events(__name__)


class IssuedKeys:
    """The record of the keys issued by one KME, if there is a store."""

    def __init__(self, kme: str) -> None:
        self._kme = kme
        self._store: IssuedKeyStore | None = None
        self._group = ""
        self.withheld = ""
        """Why no key is drawn while the store is unavailable."""

    def remember_in(self, store: IssuedKeyStore, group: str) -> None:
        """Sets the store: keys recorded for this KME group are refused, and others are recorded first."""
        self._store, self._group = store, group

    async def ready(self) -> None:
        """Returns if keys can be recorded now. Raises StoreUnavailable: then none may be drawn."""
        if self._store is None:
            return
        try:
            await self._store.ready()
        except StoreUnavailable as error:
            if not self.withheld:
                log.error("keys_not_drawn", kme=self._kme, cause=str(error))
            self.withheld = str(error)
            raise
        self._is_well()

    async def seen_before(self, slave_sae: str, keys: Sequence[Key]) -> frozenset[str]:
        """Records new keys; returns the key_IDs of those that may not be used.

        Raises StoreUnavailable: then none of them may be used yet.
        """
        if self._store is None:
            return frozenset()
        try:
            before = await self._store.remember(self._group, {key.key_ID: key.key for key in keys})
        except StoreUnavailable as error:
            fields = {"kme": self._kme, "slave_sae": slave_sae, "number": len(keys)}
            log.error("issued_keys_not_remembered", **fields, cause=str(error))
            self.withheld = str(error)
            raise
        self._is_well()
        return before

    def _is_well(self) -> None:
        if self.withheld:
            log.info("keys_drawn_again", kme=self._kme)
        self.withheld = ""
