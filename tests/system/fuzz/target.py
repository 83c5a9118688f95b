"""What a fuzz target is, and the bounds of processor time and memory that every input has to keep.
Standard: time is the process's own, so that a busy machine finds nothing, nor does a slow one (speed.py); memory is what
Python objects take.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.testlib.speed import slowness

SECONDS = 0.2
SECONDS_A_MIB = 1.0
"""What any input may take, and what each MiB of it may take beside that; the slowest take two thirds of it, most a tenth."""
TIMES = 3
"""An input is slow that is slow so often in a row: the collector of garbage may have been at work."""
MEMORY_OCTETS = 64 * 1024 * 1024


class Found(AssertionError):
    """A target did what no input may make it do."""


@dataclass(frozen=True)
class Target:
    """One reader. `run` raises for an input that breaks it; `seeds` makes valid inputs, `words` are parts of them.

    `hostile` makes inputs of any size that are meant to take long. Where a MiB is many things to do for `run`, as the
    commands of a conversation are, it may take more than SECONDS_A_MIB.
    """

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: tuple[bytes, ...]
    hostile: Mapping[str, Callable[[int], bytes]] = field(default_factory=dict)
    seconds_a_mib: float = SECONDS_A_MIB

    def timed(self, data: bytes, slower: float = 1.0) -> None:
        """`run` within its processor time, which is longer where the code is `slower` than it is by itself."""
        allowed = slower * self._allowed(data)
        took: list[float] = []
        while len(took) < TIMES:
            start = time.process_time()
            self.run(data)
            took.append(time.process_time() - start)
            if took[-1] <= allowed or took[-1] <= allowed * slowness():
                return
        raise Found(f"{self.name}: {min(took):.3f} s for {len(data)} octets, and {allowed:.3f} s are allowed")

    def measured(self, data: bytes) -> None:
        """Within its processor time and its memory; once more where watching memory, or what is made once, took too much."""
        took, peak = self._watched(data)
        if took > self._allowed(data):
            self.timed(data)
        if peak > MEMORY_OCTETS:
            _, peak = self._watched(data)
        if peak > MEMORY_OCTETS:
            raise Found(f"{self.name}: {peak} octets of memory for {len(data)} octets")

    def _allowed(self, data: bytes) -> float:
        return SECONDS + self.seconds_a_mib * len(data) / 2**20

    def _watched(self, data: bytes) -> tuple[float, int]:
        """What `run` takes of processor time, which is more than without this, and of memory."""
        tracemalloc.start()
        try:
            start = time.process_time()
            self.run(data)
            return time.process_time() - start, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


def check(condition: object, what: str) -> None:
    """Raises Found unless the condition holds; not an assert, since a long run may be optimised."""
    if not condition:
        raise Found(what)
