"""What the workers of one relay must know of each other at once: which mails are under way, and which the store knows.
Standard: memory that they share (memfd_create(2)), its cells under record locks (fcntl(2)) while they are looked at.

A transaction for each mail would tell the same, and cost as much as sealing it. Here a try of a mail marks its
recipients for its worker before anything is done; the marks of a worker that has ended say that it may have delivered
what it wrote down at that moment (sent.py), which is to be taken over first.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from relay.errors import DeliveryUnderWay

LIVES = 1 << 16
"""So many workers can be told apart, one after the other; their numbers begin at 1."""
_KNOWN = 1 << 20
_BUCKETS = 1 << 14
_WAYS = 16
"""So many recipients whose marks fall into one bucket are under way at once; more are tried later."""
_CELL = struct.Struct("<H6s")
_BUCKET_OCTETS = _WAYS * _CELL.size
_KNOWN_AT = LIVES
_BUCKETS_AT = LIVES + _KNOWN
_OCTETS = _BUCKETS_AT + _BUCKETS * _BUCKET_OCTETS


class Neighbours:
    """The memory, as one process sees it: `life` is its own number, 0 for the one that starts the workers."""

    def __init__(self, descriptor: int, life: int = 0) -> None:
        """`descriptor` is what `shared_memory` gave; it is not closed here."""
        self._descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _OCTETS)
        self._life = life

    def close(self) -> None:
        """Lets go of the memory."""
        self._memory.close()

    # Workers

    def lives(self, life: int) -> None:
        """This worker is about to be started."""
        self._memory[life % LIVES] = 1

    def has_ended(self, life: int) -> None:
        """This worker's process is gone, and with it whatever it had open."""
        self._memory[life % LIVES] = 0

    # Mails that are under way

    def begin(self, places: Sequence[bytes]) -> frozenset[int]:
        """Marks all of these (32 octets each) as under way here, unless workers that have ended had any of them.

        Gives these workers; then nothing is marked, and what they had delivered is to be taken over, before they are
        forgotten and this is tried again. Raises DeliveryUnderWay, with nothing marked, where another worker has one.
        """
        marked: list[bytes] = []
        try:
            for place in places:
                if dead := self._mark(place):
                    self.end(marked)
                    return frozenset({dead})
                marked.append(place)
        except DeliveryUnderWay:
            self.end(marked)
            raise
        return frozenset()

    def end(self, places: Iterable[bytes]) -> None:
        """They are under way no more, and what is to be known of them is in the store."""
        for place in places:
            start, tag = _cell(place)
            for at, life, whose in self._cells(start):  # without the lock: nobody else changes a mark of ours
                if (life, whose) == (self._life, tag):
                    _CELL.pack_into(self._memory, at, 0, bytes(6))

    def the_dead(self) -> frozenset[int]:
        """The workers that have ended with marks of theirs in place."""
        found = {life for start in self._used() for _, life, _ in self._cells(start) if life}
        return frozenset(life for life in found if not self._memory[life])

    def forget(self, lives: frozenset[int]) -> None:
        """What these had delivered was taken over: their marks say nothing more."""
        for start in self._used():
            with self._locked(start):
                for at, life, _ in self._cells(start):
                    if life in lives:
                        _CELL.pack_into(self._memory, at, 0, bytes(6))

    def _mark(self, place: bytes) -> int:
        """Marks it; the worker that had it and has ended, else 0."""
        start, tag = _cell(place)
        with self._locked(start):
            free = -1
            for at, life, whose in self._cells(start):
                if not life:
                    free = at
                elif whose == tag and life == self._life:
                    return 0  # its last try is over, and what became of it could not be written yet
                elif whose == tag:
                    if self._memory[life]:
                        raise DeliveryUnderWay("another worker has a mail for the same recipient under way")
                    return life
            if free < 0:
                raise DeliveryUnderWay("too many mails are under way at the same place")
            _CELL.pack_into(self._memory, free, self._life, tag)
            return 0

    @contextmanager
    def _locked(self, start: int) -> Iterator[None]:
        """Nobody else marks in this bucket. Raises DeliveryUnderWay where somebody does just now."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET_OCTETS, start)
        except OSError as error:
            raise DeliveryUnderWay("another worker looks at the same place at this moment") from error
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, _BUCKET_OCTETS, start)

    def _cells(self, start: int) -> Iterator[tuple[int, int, bytes]]:
        """Where each mark of a bucket is, whose it is, and what of."""
        for at in range(start, start + _BUCKET_OCTETS, _CELL.size):
            yield at, *_CELL.unpack_from(self._memory, at)

    def _used(self) -> Iterator[int]:
        """The buckets in which anything is."""
        nothing = bytes(_BUCKET_OCTETS)
        for start in range(_BUCKETS_AT, _OCTETS, _BUCKET_OCTETS):
            if self._memory[start : start + _BUCKET_OCTETS] != nothing:
                yield start

    # Mails of which there is something in the store

    def add(self, mail: bytes) -> None:
        """There is something of this mail (its name, 32 octets) in the store, or will be when its try has ended."""
        self._memory[_KNOWN_AT + int.from_bytes(mail[:8]) % _KNOWN] = 1

    def __contains__(self, mail: bytes) -> bool:
        """False: there is nothing. True: it has to be looked for."""
        return self._memory[_KNOWN_AT + int.from_bytes(mail[:8]) % _KNOWN] == 1


def shared_memory() -> int:
    """Memory in which nothing is marked and nothing known, as a descriptor that workers inherit."""
    descriptor = os.memfd_create("neighbours")
    os.ftruncate(descriptor, _OCTETS)
    return descriptor


def _cell(place: bytes) -> tuple[int, bytes]:
    """Where the bucket of a place begins, and what tells the place from others in it."""
    mark = hashlib.blake2b(place, digest_size=8).digest()
    return _BUCKETS_AT + int.from_bytes(mark[:2]) % _BUCKETS * _BUCKET_OCTETS, mark[2:]
