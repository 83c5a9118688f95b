"""Bytes that are produced in pieces while they are consumed: large data passes all stages piece by piece.
So there is one copy at the end, and none for each stage. Each piece fits into a core's cache.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Octets = bytes | bytearray | memoryview

PIECE_OCTETS = 57 * 1024
"""Maximum size of a piece, in bytes; larger ones are slower. A multiple of 57, the bytes of a base64 line."""


@dataclass(slots=True, eq=False)
class Pieces:
    """Bytes in pieces, each to be used before the next one is taken; `make` yields `size` bytes.

    Pieces that are encrypted on the way can be consumed only once: a second time raises.
    """

    size: int
    make: Callable[[], Iterable[Octets]] = field(repr=False)

    @classmethod
    def of(cls, *parts: Octets | Pieces) -> Pieces:
        """The concatenation of these parts."""
        return cls(sum(map(len, parts)), lambda: (piece for part in parts for piece in part_of(part)))

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return joined(self.size, self.make())


def part_of(octets: Octets | Pieces) -> Iterable[Octets]:
    """The pieces as views, without copies."""
    if isinstance(octets, Pieces):
        return octets.make()
    if len(octets) <= PIECE_OCTETS:
        return (octets,)
    view = memoryview(octets)
    return (view[start : start + PIECE_OCTETS] for start in range(0, len(view), PIECE_OCTETS))


def joined(size: int, pieces: Iterable[Octets]) -> bytes:
    """The concatenation of pieces of `size` bytes, with one copy. Raises ValueError for any other size."""
    buffer = io.BytesIO(bytes(size))  # getvalue returns this object, overwritten
    for piece in pieces:
        buffer.write(piece)
    if buffer.tell() != size:
        raise ValueError(f"{buffer.tell()} bytes where {size} were announced")
    return buffer.getvalue()
