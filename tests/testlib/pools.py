"""Pools of keys at rest: no refill is under way, and the books agree with what is there.
Standard: relay/keys, the accounts.
"""

from __future__ import annotations

import asyncio

from relay.keys.group import KMEGroup


def accounts_agree(group: KMEGroup) -> bool:
    """Whether what is in the pools is what the accounts say."""
    return all(pool.client.accounts.totals()["in_pool"] == sum(pool.held().values()) for pool in group.pools)


async def settled(group: KMEGroup) -> None:
    """Waits until no refill is under way."""
    names = ("draw keys", "refill keys")
    while tasks := [task for task in asyncio.all_tasks() if task.get_name() in names]:
        await asyncio.wait(tasks)
