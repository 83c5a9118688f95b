"""Returns free memory to the system, which the C library would otherwise keep.
Standard: mallopt(3) and malloc_trim(3) of glibc; does nothing with another C library.

glibc's thresholds are not changed. With lower ones, all pages of each large message would be faulted in again, which
takes longer than encrypting it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

_M_ARENA_MAX = -8


def use_one_heap() -> None:
    """Makes this process and its children use one heap: the heap of each thread would keep its peak.

    Call it before there are threads.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Returns all free pages; takes some milliseconds if there are many."""
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)


def set_aside() -> None:
    """Excludes all current objects from garbage collection; for large, lasting data without cycles.

    A full collection of 100,000 objects would block all threads for too long.
    """
    gc.collect(1)
    gc.freeze()


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """Context manager without garbage collection: creating many lasting objects takes a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
