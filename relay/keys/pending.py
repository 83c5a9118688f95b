"""What waits to be asked for with dec_keys: the keys that each message needs, in an order that is fair to all messages.
Standard: ETSI GS QKD 014 V1.1.1, 5.4; pure, and nothing here waits.

A message is of no use without all of its keys, so it is asked for as one wish: a first part shows whether its KME knows
them, and only then the rest is asked for. Wishes take turns, so that one for thousands of keys delays none for a single
one, and those of several messages share a call only while such calls succeed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from relay.errors import KeyUnavailable, StoreUnavailable
from relay.keys.types import Key

MOST_PER_CALL = 128
"""Key IDs in one call where the KME does not say how many it takes."""
MOST_TOGETHER = 128
"""Messages whose keys are asked for in one call."""

Outcome = Key | KeyUnavailable | StoreUnavailable | None
"""What became of one key_ID: the key, what went wrong, or None for "not known to this KME"."""


@dataclass(slots=True, eq=False)
class Wish:
    """The keys that one message needs: `todo` in order, those that are `found`, and how many may be asked for at once.

    `known` says that the KME has given a whole part of them: the next parts may be asked for at the same time.
    `refused`: it did not like a call for more of them. `blocked`: the next ones are in another call now.
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
        """The next key_IDs, which are not to be done any more."""
        portion, self.todo = self.todo[:number], self.todo[number:]
        return portion

    def give_back(self, portion: Sequence[str]) -> None:
        """These come first again, but for those that were found."""
        self.todo = [key_ID for key_ID in portion if key_ID not in self.found] + self.todo

    def receive(self, outcomes: dict[str, Outcome]) -> None:
        """Notes these, where they are wanted."""
        mine = {key_ID: outcome for key_ID, outcome in outcomes.items() if key_ID in self.wanted}
        self.found |= mine
        # What came in another call was next here, or this wish would not have waited for it.
        head = [key_ID for key_ID in self.todo[:MOST_PER_CALL] if key_ID not in mine]
        self.todo[:MOST_PER_CALL] = head


Portion = tuple[Wish, list[str]]
"""A part of a wish that goes into one call."""


@dataclass(slots=True)
class Desk:
    """The wishes for keys of one master SAE: all of them by their key_IDs, and those that wait, in order.

    `under_way` has the key_IDs in calls, each with the wishes that wait for the end of its call. `most` key_IDs
    (until `most_until`, in seconds of the clock) and the keys of `together` messages go into one call.
    """

    master_sae: str
    wishes: dict[tuple[str, ...], Wish] = field(default_factory=dict)
    queue: deque[Wish] = field(default_factory=deque)
    under_way: dict[str, set[Wish]] = field(default_factory=dict)
    most: int = MOST_PER_CALL
    most_until: float = float("-inf")
    together: int = MOST_TOGETHER

    @property
    def ready(self) -> bool:
        """Whether a call can be made for a wish that waits."""
        return any(not wish.blocked for wish in self.queue)

    def take(self, room: int) -> list[Portion]:
        """What goes into the next call of at most `room` key_IDs: the longest waiting first, with their next parts."""
        room = min(room, self.most)
        portions: list[Portion] = []
        for wish in list(self.queue):
            if room <= 0 or len(portions) >= self.together:
                break
            if wish.blocked or self.wait_for_others(wish, min(room, wish.most)):
                continue
            self.queue.remove(wish)
            portion = wish.take(min(room, wish.most))
            room -= len(portion)
            portions.append((wish, portion))
            if wish.known and wish.todo:
                self.queue.append(wish)
        for _, portion in portions:
            self.begin(portion)
        return portions

    def wait_for_others(self, wish: Wish, number: int) -> bool:
        """Whether one of its next key_IDs is in a call now, which ends the waiting."""
        for key_ID in wish.todo[:number]:
            if key_ID in self.under_way:
                self.under_way[key_ID].add(wish)
                wish.blocked = True
        return wish.blocked

    def begin(self, key_IDs: Iterable[str]) -> None:
        """These are in a call from now on."""
        for key_ID in key_IDs:
            self.under_way.setdefault(key_ID, set())

    def end(self, key_IDs: Iterable[str]) -> None:
        """Their call is over."""
        for key_ID in key_IDs:
            for wish in self.under_way.pop(key_ID, ()):
                wish.blocked = False

    def receive(self, portions: Sequence[Portion], outcomes: dict[str, Outcome]) -> None:
        """Gives these to whoever wants them: the wishes in the call, and those that wait for its end."""
        others = {wish for key_ID in outcomes for wish in self.under_way.get(key_ID, ())}
        for wish in others.union(wish for wish, _ in portions):
            wish.receive(outcomes)
            if len(wish.found) == len(wish.key_IDs):
                self.conclude(wish, None)

    def put_back(self, portions: Sequence[Portion]) -> None:
        """They come first again, in their order."""
        for wish, portion in reversed(portions):
            if wish.over.done():
                continue
            wish.give_back(portion)
            if wish in self.queue:
                self.queue.remove(wish)
            self.queue.appendleft(wish)

    def conclude(self, wish: Wish, outcome: Outcome) -> None:
        """Ends a wish: `outcome` is what became of all that was not found."""
        if wish.over.done():
            return
        wish.found = {key_ID: wish.found.get(key_ID, outcome) for key_ID in wish.key_IDs}
        wish.over.set_result(None)
        del self.wishes[wish.key_IDs]
        if wish in self.queue:
            self.queue.remove(wish)
