"""What a store holds of received keys, for asserting on it.
Standard: the store's own look; destroyed keys are none.
"""

from __future__ import annotations

from collections.abc import Iterable

from relay.store import Store


async def held(store: Store, group: str, master_sae: str, key_IDs: Iterable[str]) -> dict[str, bytes]:
    """The octets of those keys that are held, by key_ID. Raises StoreUnavailable."""
    octets, _ = await store.received.look(group, master_sae, key_IDs)
    return octets
