"""Group commit: concurrent writes share one transaction and one fsync.
It does not depend on a database: the audit record uses it for files.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from relay.errors import StoreUnavailable

Item = TypeVar("Item")


@dataclass(slots=True, eq=False)
class _QueuedWrite(Generic[Item]):
    item: Item
    done: bool = False
    error: StoreUnavailable | None = None


class GroupCommit(Generic[Item]):
    """Concurrent writes share one transaction, so one fsync: `commit` gets the items of all who wait at that moment.

    No call returns before the commit with its item. An item may be committed twice, if the committing task was
    cancelled: commits must be idempotent.
    """

    def __init__(self, commit: Callable[[Sequence[Item]], Awaitable[None]]) -> None:
        self._commit = commit
        self._turn = asyncio.Lock()
        self._queue: list[_QueuedWrite[Item]] = []

    async def __call__(self, item: Item) -> None:
        """Returns when the item is committed. Raises StoreUnavailable."""
        mine = _QueuedWrite(item)
        self._queue.append(mine)
        try:
            async with self._turn:
                if not mine.done:
                    await self._commit_all()
        finally:
            if not mine.done:
                self._queue.remove(mine)
        if mine.error:
            raise StoreUnavailable(str(mine.error)) from mine.error

    async def _commit_all(self) -> None:
        together = list(self._queue)
        error = None
        try:
            await self._commit([one.item for one in together])
        except StoreUnavailable as trouble:
            error = trouble
        for one in together:
            one.done, one.error = True, error
        self._queue = [one for one in self._queue if not one.done]
