"""State that the workers of one relay share: mails under way, and mails with rows in the store.
Standard: shared memory (memfd_create(2)), whose buckets are protected by record locks (fcntl(2)).

A transaction for each mail would do the same, and cost as much as sealing it. Here a delivery attempt first marks its
recipients for its worker, and removes the marks when its client got the reply. A worker that has ended leaves its last
deliveries in its own files (sent.py). No other worker begins a mail before these are taken over.
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

_NOTICE, _LIVES, _ENDED = 0, 1, 2
"""Where it stands that a worker has ended, and what stands at the number of each worker."""
WORKER_IDS = 1 << 16
"""Number of workers that can be distinguished, one after the other; their numbers begin at 1."""
_KNOWN = 1 << 20
_BUCKETS = 1 << 14
_WAYS = 16
"""Maximum number of recipients under way whose marks fall into one bucket; more are tried later."""
_CELL = struct.Struct("<H6s")
_BUCKET_OCTETS = _WAYS * _CELL.size
_KNOWN_AT = WORKER_IDS
_BUCKETS_AT = WORKER_IDS + _KNOWN
COUNTERS, _COUNTED = 1024, 64
"""Number of shared counters, and of workers that count each in a place of their own."""
_COUNTERS_AT = _BUCKETS_AT + _BUCKETS * _BUCKET_OCTETS
_PRESENT = 1 << 16
_PRESENT_OCTETS = 4 * _PRESENT
"""Of each of the `_COUNTED` workers: how many there are at it now of what falls into each place."""
_KEY_AT = _COUNTERS_AT + COUNTERS * _COUNTED * 8
_KEY_OCTETS = 16
_HERE_AT = _KEY_AT + _KEY_OCTETS
_PRESENT_AT = _HERE_AT + _COUNTED
_OCTETS = _PRESENT_AT + _COUNTED * _PRESENT_OCTETS


class Neighbours:
    """The memory, as one process sees it: `worker_id` is its own number, 0 for the one that starts the workers."""

    def __init__(self, descriptor: int, worker_id: int = 0) -> None:
        """`descriptor` is what `shared_memory` gave; it is not closed here."""
        self._descriptor = descriptor
        self.memory = mmap.mmap(descriptor, _OCTETS)
        self.worker_id = worker_id

    # Workers

    def lives(self, worker_id: int) -> None:
        """Marks a worker as alive, before it is started."""
        self.memory[worker_id] = _LIVES
        self.memory[_HERE_AT + worker_id % _COUNTED] = 1

    def has_ended(self, worker_id: int) -> None:
        """Marks a worker as ended; its process, file locks and connections no longer exist."""
        self.memory[_HERE_AT + worker_id % _COUNTED] = 0
        at = _PRESENT_AT + worker_id % _COUNTED * _PRESENT_OCTETS
        self.memory[at : at + _PRESENT_OCTETS] = bytes(_PRESENT_OCTETS)
        self.memory[worker_id] = _ENDED  # first: the remover of the notice looks at it afterwards
        self.memory[_NOTICE] = 1

    def ended(self) -> frozenset[int]:
        """The ended workers whose files must be taken over before any mail begins."""
        return frozenset(self._that_ended()) if self.memory[_NOTICE] else frozenset()

    def forget(self, lives: frozenset[int]) -> None:
        """Removes all marks of ended workers, after their files were taken over.

        Raises DeliveryUnderWay if another worker is marking now; then call it again.
        """
        for start in self._used():
            with self._locked(start):
                for at, worker_id, _ in self._cells(start):
                    if worker_id in lives:
                        _CELL.pack_into(self.memory, at, 0, bytes(6))
        for worker_id in lives:
            self.memory[worker_id] = 0
        self.memory[_NOTICE] = 0
        if any(self._that_ended()):
            self.memory[_NOTICE] = 1

    def _that_ended(self) -> Iterator[int]:
        worker_id = 0
        while (worker_id := self.memory.find(bytes([_ENDED]), worker_id + 1, WORKER_IDS)) > 0:
            yield worker_id

    # Mails that are under way

    def begin(self, places: Sequence[bytes]) -> None:
        """Marks all of these (32 bytes each) as under way here; what was marked here before stays so.

        Raises DeliveryUnderWay, without new marks, if another worker has one of them, or had when it ended.
        """
        marked: list[bytes] = []
        try:
            for place in places:
                self._mark(place, marked)
        except DeliveryUnderWay:
            self.end(marked)
            raise

    def end(self, places: Iterable[bytes]) -> None:
        """Removes these marks; their results are in the store."""
        for place in places:
            start, tag = _cell(place)
            for at, worker_id, whose in self._cells(start):  # without the lock: nobody else changes a mark of ours
                if (worker_id, whose) == (self.worker_id, tag):
                    _CELL.pack_into(self.memory, at, 0, bytes(6))

    def _mark(self, place: bytes, marked: list[bytes]) -> None:
        """Adds it to those that are `marked`, if it was not before."""
        start, tag = _cell(place)
        with self._locked(start):
            free = -1
            for at, worker_id, whose in self._cells(start):
                if not worker_id:
                    free = at
                elif whose == tag and worker_id == self.worker_id:
                    return  # marked by an earlier attempt whose result could not be written yet
                elif whose == tag:
                    raise DeliveryUnderWay("another worker has a mail for the same recipient under way")
            if free < 0:
                raise DeliveryUnderWay("too many mails are under way at the same place")
            _CELL.pack_into(self.memory, free, self.worker_id, tag)
            marked.append(place)

    @contextmanager
    def _locked(self, start: int) -> Iterator[None]:
        """Locks this bucket for marking. Raises DeliveryUnderWay where another worker has it."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, _BUCKET_OCTETS, start)
        except OSError as error:
            raise DeliveryUnderWay("another worker looks at the same place at this moment") from error
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, _BUCKET_OCTETS, start)

    def _cells(self, start: int) -> Iterator[tuple[int, int, bytes]]:
        """Yields each mark of a bucket: its offset, its worker and its tag."""
        for at in range(start, start + _BUCKET_OCTETS, _CELL.size):
            yield at, *_CELL.unpack_from(self.memory, at)

    def _used(self) -> Iterator[int]:
        """The buckets in which anything is."""
        nothing = bytes(_BUCKET_OCTETS)
        for start in range(_BUCKETS_AT, _COUNTERS_AT, _BUCKET_OCTETS):
            if self.memory[start : start + _BUCKET_OCTETS] != nothing:
                yield start

    # Mails of which there is something in the store

    def add(self, mail: bytes) -> None:
        """Notes that this mail (its name, 32 bytes) has rows in the store, or will have after its attempt."""
        self.memory[_KNOWN_AT + int.from_bytes(mail[:8]) % _KNOWN] = 1

    def __contains__(self, mail: bytes) -> bool:
        """False: the mail has no rows. True: it may have some."""
        return self.memory[_KNOWN_AT + int.from_bytes(mail[:8]) % _KNOWN] == 1


class CountedTogether:
    """A counter shared by all workers; the share of a worker stays when it ends."""

    def __init__(self, neighbours: Neighbours, counter: int) -> None:
        """`counter` is its number, the same for all workers, below COUNTERS."""
        self._memory = neighbours.memory
        self._all = struct.Struct(f"<{_COUNTED}Q")
        self._at = _COUNTERS_AT + counter * self._all.size
        self._mine = self._at + neighbours.worker_id % _COUNTED * 8

    def add(self, amount: int) -> None:
        """Adds `amount`."""
        # Only this worker writes there, unless so many were restarted that another one has the same place.
        struct.pack_into("<Q", self._memory, self._mine, struct.unpack_from("<Q", self._memory, self._mine)[0] + amount)

    @property
    def total(self) -> int:
        """The total of all workers."""
        return sum(self._all.unpack_from(self._memory, self._at))


class PresentTogether:
    """Current counts over all living workers."""

    def __init__(self, neighbours: Neighbours) -> None:
        self._memory = neighbours.memory
        self._mine = neighbours.worker_id % _COUNTED
        self._key = self._memory[_KEY_AT : _KEY_AT + _KEY_OCTETS]

    def change(self, key: str, by: int) -> int:
        """Adds `by`, which may be negative, for this worker; returns the count over all workers.

        Keys with the same hash share a count. The hash is keyed, so outsiders cannot cause collisions.
        """
        mark = hashlib.blake2b(key.encode(), digest_size=8, key=self._key).digest()
        at = _PRESENT_AT + int.from_bytes(mark) % _PRESENT * 4
        mine = at + self._mine * _PRESENT_OCTETS
        struct.pack_into("<I", self._memory, mine, max(0, struct.unpack_from("<I", self._memory, mine)[0] + by))
        return sum(
            struct.unpack_from("<I", self._memory, at + each * _PRESENT_OCTETS)[0]
            for each, here in enumerate(self._memory[_HERE_AT : _HERE_AT + _COUNTED])
            if here
        )


def shared_memory() -> int:
    """Empty shared memory, as a descriptor that workers inherit."""
    descriptor = os.memfd_create("neighbours")
    os.ftruncate(descriptor, _OCTETS)
    os.pwrite(descriptor, os.urandom(_KEY_OCTETS), _KEY_AT)
    return descriptor


def _cell(place: bytes) -> tuple[int, bytes]:
    """Returns the offset of the place's bucket, and the tag of the place in it."""
    mark = hashlib.blake2b(place, digest_size=8).digest()
    return _BUCKETS_AT + int.from_bytes(mark[:2]) % _BUCKETS * _BUCKET_OCTETS, mark[2:]
