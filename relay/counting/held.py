"""For which recipients mail was held and has not gone since, as all processes of a relay know it: since when, and why.
Standard: bounded memory without locks; two recipients who share a slot make what is told younger, never older.

The relay has no queue, so it knows of waiting mail what it saw of its tries: one that is not tried any more, because
its sender has given up or somebody has deleted it, is forgotten after FORGET_S.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from relay.aio import boot_time

SLOTS = 16_384
OCTETS = 3 * 8 * SLOTS
"""Of the whole table: when each was first held, when it was last, and how (0: nobody)."""
FORGET_S = 7200.0
"""Twice the longest pause that Postfix makes between two tries (maximal_backoff_time)."""
DIRECTIONS = ("outgoing", "incoming")
CAUSES = ("policy", "keys", "next hop", "store", "other")
"""Why: policy says hold (no listed level can be had, for want of keys mostly), a key is not to be had or not known yet,
the next hop cannot be reached or says later, the store cannot be written."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Recipients who wait in one direction for one cause; `longest` and `tried` (how long ago last) in seconds."""

    direction: str
    cause: str
    recipients: int
    longest: float
    tried: float


class HeldMail:
    """The table, in memory that others may have too."""

    def __init__(self, numbers: memoryview[float]) -> None:
        """`numbers` has OCTETS octets, 0 at first."""
        self._first, self._last, self._how = (numbers[SLOTS * part : SLOTS * (part + 1)] for part in range(3))

    def held(self, direction: str, cause: str, name: bytes, mailbox: str) -> None:
        """A try ended without the mail of this `name` having gone to the mailbox."""
        slot, now = _slot(name, mailbox), boot_time()
        if not self._how[slot] or now - self._last[slot] > FORGET_S:
            self._first[slot] = now
        self._last[slot] = now
        self._how[slot] = 1 + DIRECTIONS.index(direction) * len(CAUSES) + CAUSES.index(cause)

    def over(self, name: bytes, mailbox: str) -> None:
        """It has gone, or will not."""
        slot = _slot(name, mailbox)
        if self._how[slot]:
            self._how[slot] = 0.0

    def waiting(self) -> list[Waiting]:
        """Who waits now."""
        now = boot_time()
        found: dict[int, list[tuple[float, float]]] = {}
        for how, first, last in self._taken():
            if now - last <= FORGET_S:
                found.setdefault(how - 1, []).append((now - first, now - last))
        return [
            Waiting(
                DIRECTIONS[how // len(CAUSES)], CAUSES[how % len(CAUSES)], len(ages),
                max(age for age, _ in ages), min(tried for _, tried in ages),
            )
            for how, ages in sorted(found.items())
        ]  # fmt: skip

    def _taken(self) -> Iterator[tuple[int, float, float]]:
        for slot, how in enumerate(self._how.tolist()):
            if how:
                yield int(how), self._first[slot], self._last[slot]


def _slot(name: bytes, mailbox: str) -> int:
    return zlib.crc32(mailbox.encode("utf-8", "surrogatepass"), zlib.crc32(name)) % SLOTS
