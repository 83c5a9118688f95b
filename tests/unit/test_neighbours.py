"""What workers tell each other at once: one has a mail under way, one was killed with it, the store knows of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from relay.errors import DeliveryUnderWay
from relay.store.neighbours import Neighbours, shared_memory

MAIL = bytes(range(32))
OTHER = bytes(range(1, 33))


@pytest.fixture(name="memory")
def _memory() -> Iterator[int]:
    memory = shared_memory()
    yield memory
    os.close(memory)


@contextmanager
def _worker(memory: int, life: int, does: Callable[[Neighbours], object]) -> Iterator[int]:
    """Another process, which has done this when the block begins, and is killed at its end; gives its number."""
    Neighbours(memory).lives(life)
    done, told = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            does(Neighbours(memory, life))
            os.write(told, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(told)
    try:
        assert os.read(done, 1) == b"."
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(done)


def test_a_mail_that_another_worker_has_under_way_is_held(memory: int) -> None:
    mine = Neighbours(memory, 1)
    with _worker(memory, 2, lambda theirs: theirs.begin([MAIL])):
        with pytest.raises(DeliveryUnderWay):
            mine.begin([OTHER, MAIL])
        with _worker(memory, 3, lambda third: third.begin([OTHER])):
            pass  # nothing stayed marked of what was refused


def test_a_mail_that_another_worker_has_brought_to_its_end_is_free(memory: int) -> None:
    mine = Neighbours(memory, 1)

    def whole(theirs: Neighbours) -> None:
        theirs.begin([MAIL])
        theirs.end([MAIL])

    with _worker(memory, 2, whole):
        assert mine.begin([MAIL]) == frozenset()


def test_what_a_killed_worker_had_under_way_is_told_until_it_was_taken_over(memory: int) -> None:
    mine = Neighbours(memory, 1)
    mine.lives(1)
    with _worker(memory, 2, lambda theirs: theirs.begin([MAIL])):
        pass
    with pytest.raises(DeliveryUnderWay):
        mine.begin([MAIL])  # nobody has said yet that its process is gone, and its files may be locked
    mine.has_ended(2)
    assert mine.begin([OTHER, MAIL]) == {2}
    assert mine.begin([MAIL]) == {2}
    assert mine.the_dead() == {2}
    mine.forget(frozenset({2}))
    assert mine.the_dead() == frozenset()
    assert mine.begin([OTHER, MAIL]) == frozenset()


def test_what_the_store_knows_all_workers_know(memory: int) -> None:
    mine = Neighbours(memory, 1)
    assert MAIL not in mine
    with _worker(memory, 2, lambda theirs: theirs.add(MAIL)):
        assert MAIL in mine
        assert OTHER not in mine


def test_of_many_that_are_under_way_each_is_known(memory: int) -> None:
    mine, theirs = Neighbours(memory, 1), Neighbours(memory, 2)
    mine.lives(1)
    places = [os.urandom(32) for _ in range(2000)]
    assert mine.begin(places) == frozenset()
    for each in places:
        with pytest.raises(DeliveryUnderWay):
            theirs.begin([each])
    mine.end(places)
    assert theirs.begin(places) == frozenset()
