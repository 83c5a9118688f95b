"""How long one QKD key may wrap messages at level aes: by default once, and never beyond what is set.
Standard: NIST SP 800-57 part 1, 5.3 (cryptoperiods); a key for one-time pads is never used twice, whatever is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.keys.contract import Key, KeyReference


@dataclass(frozen=True, slots=True)
class Rotation:
    """One key wraps at most `max_messages` messages of together `max_bytes` octets, within `max_age` seconds."""

    max_messages: int = 1
    max_bytes: int = 64 * 2**20
    max_age: float = 3600.0


@dataclass(frozen=True, slots=True)
class Taken:
    """A key to seal with, and what the sealed message has to say about it."""

    key: Key
    reference: KeyReference


@dataclass(slots=True)
class _InUse:
    taken: Taken
    messages: int
    octets: int
    since: float


class KeysInUse:
    """The key that each peer's messages are wrapped under at present; nothing where every message gets its own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._in_use: dict[str, _InUse] = {}

    def again(self, peer: str, rotation: Rotation, octets: int) -> Taken | None:
        """The key in use, if it may wrap one more message of `octets`; else None, and it is forgotten."""
        current = self._in_use.get(peer)
        if current is None:
            return None
        if (
            current.messages >= rotation.max_messages
            or current.octets + octets > rotation.max_bytes
            or self._clock() - current.since >= rotation.max_age
        ):
            del self._in_use[peer]
            return None
        current.messages += 1
        current.octets += octets
        return current.taken

    def began(self, peer: str, rotation: Rotation, octets: int, taken: Taken) -> None:
        """A fresh key wraps its first message."""
        if rotation.max_messages > 1 and octets < rotation.max_bytes:
            self._in_use[peer] = _InUse(taken, 1, octets, self._clock())

    def forget(self) -> None:
        """Drops all keys, and those whose age is over are dropped at the next use anyway."""
        self._in_use.clear()
