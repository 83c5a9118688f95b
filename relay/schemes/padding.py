"""Hides the true length of a payload before it is sealed by one-time pad, and optionally compresses it.
Standard: Padmé (Nikitin et al., PoPETs 2019/4), which leaks O(log log L) bits; DEFLATE is RFC 1951.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Literal

from relay.errors import BadStructure
from relay.formats.pieces import Octets, Pieces, part_of

LENGTH_OCTETS = 8
PIECE_OCTETS = 256 * 1024
"""Size of the pieces of decompression, in bytes."""
MAX_EXPANSION = 200
"""Maximum decompressed size, as a multiple of the compressed size: a bomb is refused."""
MIN_BOUND_OCTETS = 1024 * 1024
MAX_BOUND_OCTETS = 32 * 1024 * 1024
"""Range of the limit on decompressed size, in octets."""

Padding = Literal["padme", "none"]


def padme(length: int) -> int:
    """The padded size of `length` octets: at most 12 % more, with few distinct values."""
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    low_bits = exponent - exponent.bit_length()
    mask = (1 << low_bits) - 1
    return (length + mask) & ~mask


def padded_size(length: int, padding: Padding = "padme") -> int:
    """The padded size of a payload of `length` octets, without compression."""
    size = LENGTH_OCTETS + length
    return padme(size) if padding == "padme" else size


def pad(payload: Octets | Pieces, padding: Padding = "padme") -> Pieces:
    """Length (8 octets, big-endian), payload, zero octets."""
    size = padded_size(len(payload), padding)
    return Pieces.of(len(payload).to_bytes(LENGTH_OCTETS), payload, bytes(size - LENGTH_OCTETS - len(payload)))


def unpad(padded: Octets) -> bytes:
    """The payload; raises BadStructure if length or zeros are invalid."""
    length = int.from_bytes(padded[:LENGTH_OCTETS])
    if len(padded) < LENGTH_OCTETS or length > len(padded) - LENGTH_OCTETS:
        raise BadStructure("the padded payload is shorter than it says")
    zeros = bytes(padded[LENGTH_OCTETS + length :])
    if zeros.count(0) != len(zeros):
        raise BadStructure("the padding is not zero octets")
    return bytes(padded[LENGTH_OCTETS : LENGTH_OCTETS + length])


def pack(payload: Octets | Pieces) -> tuple[Octets | Pieces, bool]:
    """The payload, compressed unless the receiver would refuse it as a bomb, and whether it is."""
    small = compress(payload)
    return (small, True) if len(payload) <= bound(len(small)) else (payload, False)


def bound(size: int) -> int:
    """Maximum decompressed size of `size` compressed octets; a sender must not compress larger payloads."""
    return min(max(MIN_BOUND_OCTETS, MAX_EXPANSION * size), MAX_BOUND_OCTETS)


def compress(payload: Octets | Pieces) -> bytes:
    """DEFLATE without a header; see `bound` for the receiver's limit."""
    compressor = zlib.compressobj(level=9, wbits=-15)
    return b"".join([*map(compressor.compress, part_of(payload)), compressor.flush()])


def decompress(compressed: bytes) -> bytes:
    """The payload; raises BadStructure for invalid, truncated, trailing or too large data."""
    most = bound(len(compressed))
    pieces: list[bytes] = []
    try:
        for piece in _inflated(compressed):
            most -= len(piece)
            if most < 0:
                raise BadStructure(f"the compressed payload grows beyond {bound(len(compressed))} octets")
            pieces.append(piece)
    except zlib.error as error:
        raise BadStructure(f"the compressed payload: {error}") from error
    return b"".join(pieces)


def _inflated(compressed: bytes) -> Iterator[bytes]:
    """The decompressed data in pieces. Raises zlib.error and BadStructure."""
    decompressor = zlib.decompressobj(wbits=-15)
    for start in range(0, len(compressed), PIECE_OCTETS):
        rest = compressed[start : start + PIECE_OCTETS]
        while rest and not decompressor.eof:
            yield decompressor.decompress(rest, PIECE_OCTETS)
            rest = decompressor.unconsumed_tail
        if decompressor.unused_data or (decompressor.eof and start + PIECE_OCTETS < len(compressed)):
            raise BadStructure("the compressed payload goes on after its end")
    yield decompressor.flush()
    if not decompressor.eof:
        raise BadStructure("the compressed payload is cut off")
