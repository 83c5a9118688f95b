"""An in-memory filter of a table's rows, so that mail with a new key needs no query.
Standard: a Bloom filter (B. H. Bloom, 1970), with false positives, but no false negatives.
"""

from __future__ import annotations

from collections.abc import Iterable
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

BITS_OF_PLACE = 24
"""Number of bits of a place that choose one bit of the filter, which has 2 MB; untouched pages take no memory."""
_OCTETS = BITS_OF_PLACE // 8


class Places:
    """Primary keys of a table, each a SHA-256; of 3 million, one in ten others seems to be there as well."""

    def __init__(self) -> None:
        self._bits = mmap(-1, 2**BITS_OF_PLACE // 8, MAP_PRIVATE | MAP_ANONYMOUS)
        self.complete = False
        """Whether all rows were added. Until then any row may exist."""

    def add(self, places: Iterable[bytes]) -> None:
        """Adds places of rows that exist, or will."""
        for place in places:
            for begin in (0, _OCTETS):
                at = int.from_bytes(place[begin : begin + _OCTETS], "big")
                self._bits[at >> 3] |= 1 << (at & 7)

    def none_of(self, places: Iterable[bytes]) -> bool:
        """Whether certainly no row exists at any of these."""
        return self.complete and not any(map(self._may_have, places))

    def _may_have(self, place: bytes) -> bool:
        ats = (int.from_bytes(place[begin : begin + _OCTETS], "big") for begin in (0, _OCTETS))
        return all(self._bits[at >> 3] & (1 << (at & 7)) for at in ats)
