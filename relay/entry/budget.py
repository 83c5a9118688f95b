"""Limits the memory of messages in flight: each holds its share; new ones wait for room, then get 452.
Standard: RFC 5321 4.5.3.1.10 and RFC 3463 4.3.1 (452 4.3.1).
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

from relay.errors import TryLater

STEP_OCTETS = 1024 * 1024
"""Step, in bytes, in which room for content of undeclared size is reserved."""
COPIES = 4
"""Peak memory per byte of content, as measured: 3.3 to seal it, 4 to open two layers."""
WAIT_FOR_ROOM_S = 30.0
"""Maximum wait of a new message for room, in seconds; shorter than any mail server's reply timeout."""


class Overloaded(TryLater):
    """There is no room for this message now."""

    code = 452
    status = "4.3.1"
    public = "Too much mail at once, try again later"


class Budget:
    """The memory, in bytes, that all messages of this process share.

    `used` is the amount held now, `peak` its maximum. A message larger than the budget gets its room when nothing else
    is in flight.
    """

    def __init__(self, size: int, patience: float | None = None) -> None:
        """`size` is the whole budget; `patience` the maximum wait for room, in seconds (default WAIT_FOR_ROOM_S)."""
        self.size = size
        self.patience = WAIT_FOR_ROOM_S if patience is None else patience
        self.used = 0
        self.peak = 0
        self._waiting: deque[_RoomWanted] = deque()

    def _serve_waiting(self) -> None:
        while self._waiting and self._has_room(self._waiting[0].share, self._waiting[0].more):
            waiting = self._waiting.popleft()
            if not waiting.given.done():
                self._give(waiting.share, waiting.more)
                waiting.given.set_result(None)

    def _has_room(self, share: Share, more: int) -> bool:
        return self.used + more <= self.size or self.used == share.held

    def _give(self, share: Share, more: int) -> None:
        share.held += more
        self.used += more
        self.peak = max(self.peak, self.used)


@dataclass(slots=True, eq=False)
class Share:
    """The share of one message, at first 0; released at the end of `with`, or by `reduce`."""

    budget: Budget
    held: int = 0

    async def hold(self, size: int) -> None:
        """Grows the share to at least `size` bytes. Raises Overloaded after waiting too long."""
        budget, more = self.budget, size - self.held
        if more <= 0:
            return
        if budget._has_room(self, more) and (self.held or not budget._waiting):
            budget._give(self, more)
            return
        if self.held and budget.used == self.held + sum(waiting.share.held for waiting in budget._waiting):
            # Deadlock: all others wait too, so none would release any memory.
            raise Overloaded("all messages in flight wait for room; this one gives way")
        waiting = _RoomWanted(self, more, asyncio.get_running_loop().create_future())
        # A message received in part comes before those not begun.
        budget._waiting.appendleft(waiting) if self.held else budget._waiting.append(waiting)
        try:
            async with asyncio.timeout(budget.patience):
                await waiting.given
        except TimeoutError:
            raise Overloaded(f"no room for {size} bytes within {budget.patience:g} s") from None
        finally:
            with suppress(ValueError):
                budget._waiting.remove(waiting)
            budget._serve_waiting()

    def reduce(self, size: int = 0) -> None:
        """Shrinks the share to `size` bytes, by default 0."""
        if size < self.held:
            self.budget.used -= self.held - size
            self.held = size
            self.budget._serve_waiting()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.reduce()


class _RoomWanted(NamedTuple):
    """The waiting tasks: the number of bytes each wants, and the future that is set once it has them."""

    share: Share
    more: int
    given: asyncio.Future[None]


def room_for(size: int) -> int:
    """The part of the memory budget that a message of `size` bytes holds, in bytes; 256 KiB at least."""
    return COPIES * max(size, 64 * 1024)
