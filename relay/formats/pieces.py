"""Bytes that are made in pieces while they are taken: what is large goes through all stages piece by piece.
So there is one copy of it at the end, and not one more for each stage. Each piece is small enough for a core's cache.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

Octets = bytes | bytearray | memoryview

PIECE_OCTETS = 57 * 1024
"""Maximum size of a piece, in bytes; larger ones are slower. It becomes whole base64 lines of 57 bytes each."""


@dataclass(slots=True, eq=False)
class Pieces:
    """Bytes in pieces, each to be used before the next one is taken: `make` is called then, and gives `size` bytes.

    What is encrypted on the way can be taken once: a second time raises.
    """

    size: int
    make: Callable[[], Iterable[Octets]] = field(repr=False)

    @classmethod
    def of(cls, *parts: Octets | Pieces) -> Pieces:
        """These, one behind the other."""
        return cls(sum(map(len, parts)), lambda: (piece for part in parts for piece in part_of(part)))

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return joined(self.size, self.make())


def part_of(octets: Octets | Pieces) -> Iterable[Octets]:
    """The pieces of it: views, no copies."""
    if isinstance(octets, Pieces):
        return octets.make()
    if len(octets) <= PIECE_OCTETS:
        return (octets,)
    view = memoryview(octets)
    return (view[start : start + PIECE_OCTETS] for start in range(0, len(view), PIECE_OCTETS))


def joined(size: int, pieces: Iterable[Octets]) -> bytes:
    """All of them, which have `size` bytes, in the one place where they stay. Raises ValueError for any other size."""
    buffer = io.BytesIO(bytes(size))  # getvalue gives this very object, written over
    for piece in pieces:
        buffer.write(piece)
    if buffer.tell() != size:
        raise ValueError(f"{buffer.tell()} bytes where {size} were announced")
    return buffer.getvalue()
