"""How a long one-time pad is drawn: into how many keys of which size, within the limits of the KME.
Standard: ETSI GS QKD 014 V1.1.1, 6.1 (max_key_size, min_key_size, max_key_per_request); pure.

All keys of a pad have one size, so any number of requests can be alike, and less than one octet a key is
left over. What is left over is discarded, never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from relay.keys.contract import Key, KeyReference
from relay.keys.replies import KeyStatus
from relay.keys.stock import wipe

USUAL_KEY_BITS = 256
"""The size asked for where a KME says nothing about sizes."""


@dataclass(frozen=True, slots=True)
class PadPlan:
    """`number` keys of `size` bits each, asked for at most `per_request` at a time."""

    number: int
    size: int
    per_request: int

    @property
    def requests(self) -> int:
        """How many enc_keys requests that is."""
        return -(-self.number // self.per_request)


def plan_pad(n_octets: int, status: KeyStatus | None, *, any_size: bool = True) -> PadPlan:
    """The plan with the fewest requests for `n_octets` (1 or more).

    `any_size` False is for KMEs that give every key the same size, whatever is asked for.
    """
    usual = (status.key_size if status else None) or USUAL_KEY_BITS
    most = (status.max_key_size if status else None) or usual
    least = (status.min_key_size if status else None) or 8
    per_request = (status.max_key_per_request if status else None) or 1
    if not any_size:
        return PadPlan(-(-n_octets * 8 // usual), usual, per_request)
    most_octets, least_octets = max(1, most // 8), -(-least // 8)
    number = -(-n_octets // most_octets)
    return PadPlan(number, 8 * max(-(-n_octets // number), least_octets), per_request)


@dataclass(frozen=True, slots=True)
class Segment:
    """The octets that one key gives to a pad; `reference` says which key and whose."""

    reference: KeyReference
    octets: bytearray = field(repr=False)

    @property
    def group(self) -> str:
        """The KME group that issued the key."""
        return self.reference.kme_group or ""


@dataclass(frozen=True, slots=True)
class Pad:
    """A one-time pad: segments in their order, exactly as many octets as were asked for.

    Use it in a `with` block, or call `wipe`: the octets are overwritten then.
    """

    segments: tuple[Segment, ...]

    def __len__(self) -> int:
        return sum(len(segment.octets) for segment in self.segments)

    def octets(self) -> bytearray:
        """All octets in one piece; overwrite it too after use (`stock.wipe`)."""
        return bytearray().join(segment.octets for segment in self.segments)

    def wipe(self) -> None:
        """Overwrites the octets of all segments."""
        for segment in self.segments:
            wipe(segment.octets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wipe()


def pad_of(keys: Sequence[Key], references: Sequence[KeyReference], n_octets: int) -> tuple[Pad, int]:
    """The pad of exactly `n_octets` from these keys, and how many octets at their ends were discarded."""
    segments = []
    left = n_octets
    for key, reference in zip(keys, references, strict=True):
        octets = bytearray(key.key[: max(0, left)])
        left -= len(octets)
        segments.append(Segment(reference, octets))
    if left > 0:
        raise ValueError("the keys are shorter than the pad")
    return Pad(tuple(segments)), sum(len(key.key) for key in keys) - n_octets
