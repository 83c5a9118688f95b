"""Gives memory that messages have left free back to the system, which the C library keeps for itself as long as it can.
Standard: mallopt(3) and malloc_trim(3), which are glibc's; with another C library nothing is done.

The thresholds from which glibc gives memory back at once stay as they are. With low ones all pages of each large
message are faulted in anew, which takes longer than to encrypt it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_M_ARENA_MAX = -8


def use_one_heap() -> None:
    """Makes this process and its children use one heap, before they have threads: each thread's own heap keeps its
    peak.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """All whole pages that are free. It takes some milliseconds where there are many, and next to none otherwise."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


def set_aside() -> None:
    """All that there is now is looked at by no later collection; for what is large and stays, and has no cycles.

    A full collection over 100,000 objects would hold every thread for longer than mail may wait.
    """
    gc.collect(1)
    gc.freeze()


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """Within it, no cycles are looked for among what is made: where all of it stays, that takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
