"""Changes inputs so that much of what makes them valid stays: pieces moved, doubled, cut, words of the format put in.
Standard: an edit is plain data, so that hypothesis can shrink a list of them and a loop can draw them at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

MAX_OCTETS = 32 * 1024
"""Edited inputs are cut here: what grows faster than its input shows well before."""
MAX_TIMES = 2000

Kind = Literal["put", "insert", "cut", "repeat", "move", "flip", "end"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Edit:
    """One change: what is done, where (in 65536ths of the length), to how many octets, with which ones."""

    kind: Kind
    at: int
    size: int
    octets: bytes
    times: int = 2

    def apply(self, data: bytes) -> bytes:
        start = len(data) * self.at >> 16
        before, piece, after = data[:start], data[start : start + self.size], data[start + self.size :]
        match self.kind:
            case "put":
                changed = before + self.octets + data[start + len(self.octets) :]
            case "insert":
                changed = before + self.octets + piece + after
            case "cut":
                changed = before + after
            case "repeat":
                changed = before + (piece or self.octets) * self.times + after
            case "move":
                changed = after + piece + before
            case "flip":
                changed = before + bytes(octet ^ (1 << self.times % 8) for octet in piece[:1]) + piece[1:] + after
            case "end":
                changed = before
        return changed[:MAX_OCTETS]


def edited(seed: bytes, edits: Iterable[Edit]) -> bytes:
    """The seed after all edits, one after the other."""
    for edit in edits:
        seed = edit.apply(seed)
    return seed


def random_edits(choose: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> list[Edit]:
    """A few edits; what is put in is a word, a piece of some seed, or noise."""
    return [_random_edit(choose, words, seeds) for _ in range(choose.randint(1, 6))]


def _random_edit(choose: random.Random, words: Sequence[bytes], seeds: Sequence[bytes]) -> Edit:
    source = choose.random()
    if source < 0.5:
        octets = choose.choice(words)
    elif source < 0.8:
        other = choose.choice(seeds)
        start = choose.randrange(len(other) + 1)
        octets = other[start : start + choose.randint(1, 300)]
    else:
        octets = choose.randbytes(choose.randint(1, 8))
    size = choose.choice((1, 2, 4, 16, choose.randint(0, 400)))
    times = choose.choice((2, 3, 7, 50, MAX_TIMES))
    return Edit(choose.choice(KINDS), choose.randrange(1 << 16), size, octets, times)
