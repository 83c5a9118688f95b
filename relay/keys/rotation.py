"""Key rotation at level aes: limits of one quantum key, and the key in use for each peer.
Standard: NIST SP 800-57 Part 1, 5.3 (a key has a limited time and a limited amount of data); pure, with a clock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from relay.keys.takes import SECONDS, WHOLE, Parameters
from relay.keys.types import SealingKey


@dataclass(frozen=True, slots=True)
class Rotation(Parameters):
    """One key wraps at most `max_messages` messages of together `max_bytes` bytes, within `max_age` seconds.

    It is never used beyond the lifetime of the key.
    """

    max_messages: int = 1
    max_bytes: int = 64 * 2**20
    max_age: float = 3600.0

    TAKES: ClassVar = {
        "max_messages": WHOLE._replace(least=1, most=10**9),
        "max_bytes": WHOLE._replace(most=2**63),
        "max_age": SECONDS,
    }


@dataclass(slots=True)
class _InUse:
    taken: SealingKey
    messages: int
    size: int
    since: float


class KeysInUse:
    """The keys in use, by peer; none if every message gets its own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_use: dict[str, _InUse] = {}

    def reuse(self, peer: str, rotation: Rotation, size: int) -> SealingKey | None:
        """The key in use, if it may wrap one more message of `size` bytes; else drops it and returns None."""
        current = self._in_use.get(peer)
        if current is None:
            return None
        if (
            current.messages >= rotation.max_messages
            or current.size + size > rotation.max_bytes
            or self._clock() - current.since >= rotation.max_age
            or self._clock() >= current.taken.key.good_until
        ):
            del self._in_use[peer]
            return None
        current.messages += 1
        current.size += size
        return current.taken

    def begin(self, peer: str, rotation: Rotation, size: int, taken: SealingKey) -> None:
        """Starts using a fresh key, for its first message."""
        if rotation.max_messages > 1 and size < rotation.max_bytes:
            self._in_use[peer] = _InUse(taken, 1, size, self._clock())

    def forget(self, peer: str) -> None:
        """Drops the key of a peer."""
        self._in_use.pop(peer, None)

    def forget_all(self) -> None:
        """Drops all keys; expired ones are also dropped at their next use."""
        self._in_use.clear()
