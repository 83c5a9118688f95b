"""What mail from a sender must arrive with, so that somebody who strips the sealing is noticed.
Standard: the least level by its number; mail from a peer's domain must have been sealed by that peer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from relay.policy.file import Unprotected
from relay.policy.strength import LevelName, strength, strength_of

_SEVEREST_FIRST: tuple[Unprotected, ...] = get_args(Unprotected)


@dataclass(frozen=True, slots=True)
class Requirement:
    """The least `level` for mail from `sender`, and the action otherwise; `source` is the file that says so.

    `peer` is the peer that must have sealed it; None where the sender's domain is no peer's.
    """

    level: LevelName
    otherwise: Unprotected
    sender: str
    peer: str | None
    source: str
    version: str

    def missed(self, protection: str, peer: str) -> str:
        """What is missing of mail that `peer` sealed with `protection` ("" and "" for unsealed), or ""."""
        if strength_of(protection) < strength(self.level):
            arrived = f"it arrived with {protection}" if protection else "it arrived unsealed"
            return f"{self.source}: mail from {self.sender} must arrive with {self.level} at least, and {arrived}"
        if self.peer not in (None, peer):
            return f"{self.source}: mail from {self.sender} must be sealed by peer {self.peer!r}, not by {peer!r}"
        return ""


def strictest(requirements: Iterable[Requirement | None]) -> Requirement | None:
    """The one with the strongest level; of equal ones the one with the severest action; None where there is none."""
    found = [each for each in requirements if each is not None]
    return max(found, key=lambda each: (strength(each.level), -_SEVEREST_FIRST.index(each.otherwise)), default=None)
