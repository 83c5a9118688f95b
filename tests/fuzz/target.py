"""What a fuzz target is, and the bounds of processor time and memory that every input has to keep.
Standard: time is the process's own, so that a busy machine finds nothing; memory is what Python objects take.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

SECONDS = 0.5
SECONDS_A_MIB = 10.0
MEMORY_OCTETS = 64 * 1024 * 1024


class Found(AssertionError):
    """A target did what no input may make it do."""


@dataclass(frozen=True)
class Target:
    """One reader. `run` raises for an input that breaks it; `seeds` makes valid inputs, `words` are parts of them."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...]

    def timed(self, data: bytes) -> None:
        """`run` within its processor time; a slow one gets a second chance, for the collector may have been at work."""
        allowed = SECONDS + SECONDS_A_MIB * len(data) / 2**20
        for last in (False, True):
            start = time.process_time()
            self.run(data)
            took = time.process_time() - start
            if took <= allowed:
                return
            if last:
                raise Found(f"{self.name}: {took:.2f} s for {len(data)} octets")

    def measured(self, data: bytes) -> None:
        """`timed`, then once more within its memory."""
        self.timed(data)
        tracemalloc.start()
        try:
            self.run(data)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if peak > MEMORY_OCTETS:
            raise Found(f"{self.name}: {peak} octets of memory for {len(data)} octets")


def check(condition: object, what: str) -> None:
    """Raises Found unless the condition holds; not an assert, since a long run may be optimised."""
    if not condition:
        raise Found(what)
