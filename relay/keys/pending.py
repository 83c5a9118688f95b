"""The queue for dec_keys: the keys that each message needs, in an order that is fair to all messages.
Standard: ETSI GS QKD 014 V1.1.1, 5.4; pure, without any waiting.

A message needs all of its keys, so they are requested together. A first batch shows whether its KME knows them; only
then the rest is requested. Messages take turns, so that one with thousands of keys delays none
with a single one. Keys of several messages share a call only while such calls succeed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from relay.errors import KeyUnavailable, StoreUnavailable
from relay.keys.types import Key

MOST_PER_CALL = 128
"""Maximum number of key IDs in one call if the KME states no limit."""
MOST_TOGETHER = 128
"""Maximum number of messages whose keys share one call."""

Outcome = Key | KeyUnavailable | StoreUnavailable | None
"""The outcome for one key_ID: the key, an error, or None for "not known to this KME"."""


@dataclass(slots=True, eq=False)
class PendingFetch:
    """The keys that one message needs: `todo` in order, outcomes in `found`, and at most `most` in one call.

    `known`: the KME has delivered a whole part, so the next parts may be requested concurrently. `refused`: it refused
    a call for more of them. `blocked`: the next ones are in another call now.
    """

    key_IDs: tuple[str, ...]
    most: int = MOST_PER_CALL
    todo: list[str] = field(default_factory=list)
    known: bool = False
    refused: bool = False
    blocked: bool = False
    found: dict[str, Outcome] = field(default_factory=dict)
    wanted: frozenset[str] = frozenset()
    over: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def __post_init__(self) -> None:
        self.todo, self.wanted = list(self.key_IDs), frozenset(self.key_IDs)

    def take(self, number: int) -> list[str]:
        """Removes and returns the next key_IDs."""
        batch, self.todo = self.todo[:number], self.todo[number:]
        return batch

    def give_back(self, batch: Sequence[str]) -> None:
        """Puts back those key_IDs that were not found, in front."""
        self.todo = [key_ID for key_ID in batch if key_ID not in self.found] + self.todo

    def receive(self, outcomes: dict[str, Outcome]) -> None:
        """Records the outcomes that are needed."""
        relevant = {key_ID: outcome for key_ID, outcome in outcomes.items() if key_ID in self.wanted}
        self.found |= relevant
        # Keys from another call are at the head here, or this fetch would not have waited for them.
        head = [key_ID for key_ID in self.todo[:MOST_PER_CALL] if key_ID not in relevant]
        self.todo[:MOST_PER_CALL] = head


Batch = tuple[PendingFetch, list[str]]
"""A part of a fetch that goes into one call."""


@dataclass(slots=True)
class PendingFetches:
    """The fetches for keys of one master SAE: all by key_IDs, and the waiting ones in order.

    `under_way` has the key_IDs in flight, each with the fetches that wait for its call. `most` key_IDs
    (until `most_until`, in seconds of the clock) and the keys of `together` messages go into one call.
    """

    master_sae: str
    by_key_IDs: dict[tuple[str, ...], PendingFetch] = field(default_factory=dict)
    queue: deque[PendingFetch] = field(default_factory=deque)
    under_way: dict[str, set[PendingFetch]] = field(default_factory=dict)
    most: int = MOST_PER_CALL
    most_until: float = float("-inf")
    together: int = MOST_TOGETHER

    def take(self, room: int) -> list[Batch]:
        """The batches of the next call of at most `room` key_IDs: the next parts of the longest waiting fetches."""
        room = min(room, self.most)
        batches: list[Batch] = []
        for fetch in list(self.queue):
            if room <= 0 or len(batches) >= self.together:
                break
            if fetch.blocked or (self.under_way and self.wait_for_others(fetch, min(room, fetch.most))):
                continue
            self.queue.remove(fetch)
            batch = fetch.take(min(room, fetch.most))
            room -= len(batch)
            batches.append((fetch, batch))
            if fetch.known and fetch.todo:
                self.queue.append(fetch)
        for _, batch in batches:
            self.begin(batch)
        return batches

    def wait_for_others(self, fetch: PendingFetch, number: int) -> bool:
        """Whether one of its next key_IDs is in flight; the fetch then waits for that call."""
        for key_ID in fetch.todo[:number]:
            if key_ID in self.under_way:
                self.under_way[key_ID].add(fetch)
                fetch.blocked = True
        return fetch.blocked

    def begin(self, key_IDs: Iterable[str]) -> None:
        """Marks these key_IDs as in flight."""
        for key_ID in key_IDs:
            self.under_way.setdefault(key_ID, set())

    def end(self, key_IDs: Iterable[str]) -> None:
        """Marks their call as finished."""
        for key_ID in key_IDs:
            for fetch in self.under_way.pop(key_ID, ()):
                fetch.blocked = False

    def receive(self, batches: Sequence[Batch], outcomes: dict[str, Outcome]) -> None:
        """Distributes outcomes to the fetches in the call, and to those waiting for it."""
        others = [self.under_way.get(key_ID, ()) for key_ID in outcomes]
        for fetch in {fetch for fetch, _ in batches}.union(*others):
            fetch.receive(outcomes)
            if len(fetch.found) == len(fetch.key_IDs):
                self.conclude(fetch, None)

    def put_back(self, batches: Sequence[Batch]) -> None:
        """Puts the batches back in front, in order."""
        for fetch, batch in reversed(batches):
            if fetch.over.done():
                continue
            fetch.give_back(batch)
            if fetch in self.queue:
                self.queue.remove(fetch)
            self.queue.appendleft(fetch)

    def conclude_all(self, fetches: Iterable[PendingFetch], outcome: Outcome) -> None:
        """Ends these fetches."""
        for fetch in fetches:
            self.conclude(fetch, outcome)

    def conclude(self, fetch: PendingFetch, outcome: Outcome) -> None:
        """Ends a fetch: `outcome` is that of all keys without one."""
        if fetch.over.done():
            return
        fetch.found = {key_ID: fetch.found.get(key_ID, outcome) for key_ID in fetch.key_IDs}
        fetch.over.set_result(None)
        del self.by_key_IDs[fetch.key_IDs]
        if fetch in self.queue:
            self.queue.remove(fetch)
