"""What a store holds of received keys, for asserting on it, and keys that were used.
Standard: the store's own look; destroyed keys are none.
"""

from __future__ import annotations

from collections.abc import Collection

from relay.store import received_table
from relay.store.store import Store


async def held(store: Store, group: str, master_sae: str, key_IDs: Collection[str]) -> dict[str, bytes]:
    """The octets of those keys that are held, by key_ID. Raises StoreUnavailable."""
    octets, _ = await store.received.look(group, master_sae, key_IDs)
    return octets


async def state(store: Store, group: str, master_sae: str, key_ID: str) -> str:
    """Whether a key is held, was destroyed, or is unknown. Raises StoreUnavailable."""
    octets, destroyed = await store.received.look(group, master_sae, [key_ID])
    return "held" if octets else "destroyed" if destroyed else "unknown"


async def mark_used(store: Store, group: str, master_sae: str, key_IDs: Collection[str], keep_for: float) -> None:
    """As if all mails had arrived that these keys have opened. Raises StoreUnavailable."""
    database, now = store.received._database, store.received._clock()
    used = [received_table.KeysUsed(group, master_sae, tuple(key_IDs), keep_for)]
    marking = database.writing(lambda connection: received_table.mark_used(connection, used, now))
    await database.to_its_end(marking)
