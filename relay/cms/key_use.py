"""What a received quantum key may open: one ciphertext at one level, however often that one comes.
Standard: relay/FORMAT.md; it is more than one only at level aes, where a peer's key may wrap several messages.
"""

from __future__ import annotations

from dataclasses import dataclass

FINGERPRINT_OCTETS = 32


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a key is to open: a ciphertext, by its fingerprint (32 octets), at a level; at most `most` such in all."""

    level: str
    fingerprint: bytes
    most: int = 1

    def trouble(self, level: str | None, bound_to: bytes | None) -> str:
        """Why a key that opened these at this level (None: nothing yet) may not, or ""."""
        if level is None or not bound_to:
            return ""
        if level != self.level:
            return f"it has opened something at level {level}"
        if self.opened_before(bound_to) or len(bound_to) // FINGERPRINT_OCTETS < self.most:
            return ""
        return "it has opened another message"

    def opened_before(self, bound_to: bytes | None) -> bool:
        """Whether this very ciphertext is among these."""
        known = bound_to or b""
        starts = range(0, len(known), FINGERPRINT_OCTETS)
        return any(known[start : start + FINGERPRINT_OCTETS] == self.fingerprint for start in starts)
