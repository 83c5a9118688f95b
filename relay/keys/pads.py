"""Plans one-time pads: number and size of their keys, within the limits of the KME.
Standard: relay/FORMAT.md (use of each key in a pad); ETSI GS QKD 014 V1.1.1, 6.1 (limits of a KME); pure.

The first bytes of each key authenticate and never hide anything; the rest hides. All keys of a pad have one size, so
any number of requests can be alike. Excess bytes of the last key are discarded, never used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from relay.errors import KMEMisconfigured
from relay.keys.replies import USUAL_KEY_BITS, KeyStatus
from relay.keys.stock import wipe
from relay.keys.types import Key, KeyReference

TAG_OCTETS = 16
"""Number of bytes of each key that are not XORed: those of the first two are the tag's key."""
MIN_KEY_OCTETS = 32
MIN_KEYS = 2
GOOD_KEY_OCTETS = 64
"""Preferred minimum key length, in bytes: a shorter key is worth half as much, or less."""


@dataclass(frozen=True, slots=True)
class PadPlan:
    """`number` keys of `size` bits each."""

    number: int
    size: int

    @property
    def cost(self) -> int:
        """Cost of the pad, in bytes of quantum key."""
        return self.number * self.size // 8


def plan_pad(hidden: int, status: KeyStatus | None, *, any_size: bool = True) -> PadPlan:
    """The plan with the fewest keys for a pad that hides `hidden` bytes (1 or more).

    `any_size` False is for KMEs whose keys all have one size. Raises KMEMisconfigured if that is too short.
    """
    usual = (status.key_size if status else None) or USUAL_KEY_BITS
    least = (status.min_key_size if status else None) or 8
    most = max((status.max_key_size if status else None) or usual, least)
    most_octets = (most if any_size else usual) // 8
    if most_octets < MIN_KEY_OCTETS:
        raise KMEMisconfigured(f"keys of {8 * most_octets} bits; a key of a pad has {8 * MIN_KEY_OCTETS} at least")
    number = max(MIN_KEYS, -(-hidden // (most_octets - TAG_OCTETS)))
    if not any_size:
        return PadPlan(number, usual)
    enough = -(-hidden // number) + TAG_OCTETS
    return PadPlan(number, 8 * max(enough, -(-least // 8), min(most_octets, GOOD_KEY_OCTETS)))


def plan_keys(hidden: int, status: KeyStatus | None, *, any_size: bool = True) -> PadPlan:
    """The keys for one message: a pad that hides `hidden` bytes, or with 0 one key of the usual size, and no pad.

    The rest is as for `plan_pad`.
    """
    return plan_pad(hidden, status, any_size=any_size) if hidden else PadPlan(1, USUAL_KEY_BITS)


@dataclass(frozen=True, slots=True)
class PadKey:
    """One complete key of a pad; `reference` identifies it."""

    reference: KeyReference
    octets: bytearray = field(repr=False)

    @property
    def group(self) -> str:
        """The KME group that issued the key."""
        return self.reference.kme_group or ""


@dataclass(frozen=True, slots=True)
class Pad:
    """A one-time pad: its keys, whose IDs ascend as UTF-8 bytes. `hides` is the number of bytes they can hide.

    Use it in a `with` block, or call `wipe`: that overwrites the bytes.
    """

    keys: tuple[PadKey, ...]

    @property
    def hides(self) -> int:
        """Maximum number of bytes that the pad hides."""
        return sum(len(key.octets) - TAG_OCTETS for key in self.keys)

    @property
    def cost(self) -> int:
        """Bytes of quantum key in all."""
        return sum(len(key.octets) for key in self.keys)

    def wipe(self) -> None:
        """Overwrites the bytes of all keys."""
        for key in self.keys:
            wipe(key.octets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()


def pad_of(keys: Sequence[Key], references: Sequence[KeyReference], hidden: int) -> tuple[Pad, int]:
    """The pad that hides `hidden` bytes with these keys, and the number of bytes discarded at its end."""
    pad = Pad(
        tuple(
            PadKey(reference, bytearray(key.key))
            for key, reference in sorted(zip(keys, references, strict=True), key=lambda each: each[0].key_ID.encode())
        )
    )
    if pad.hides < hidden or len(keys) < MIN_KEYS:
        raise ValueError("the keys are too few or too short for the pad")
    return pad, pad.hides - hidden
