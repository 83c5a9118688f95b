"""What workers tell each other at once: one has a mail under way, one was killed with it, the store knows of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
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
def _worker(memory: int, worker_id: int, *does: str) -> Iterator[None]:
    """Another process, which has done this with MAIL (OTHER where it says so) when the block begins, and is killed."""
    Neighbours(memory).lives(worker_id)
    calls = "; ".join(f"mine.{each}" for each in does)
    code = f"""
import signal
from relay.store.neighbours import Neighbours
mine, mail, other = Neighbours({memory}, {worker_id}), {MAIL!r}, {OTHER!r}
{calls}
print(flush=True)
signal.pause()
"""
    process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[memory], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_mail_that_another_worker_has_under_way_is_held(memory: int) -> None:
    mine = Neighbours(memory, 1)
    with _worker(memory, 2, "begin([mail])"):
        with pytest.raises(DeliveryUnderWay):
            mine.begin([OTHER, MAIL])
        with _worker(memory, 3, "begin([other])"):
            pass  # nothing stayed marked of what was refused


def test_a_mail_that_another_worker_has_brought_to_its_end_is_free(memory: int) -> None:
    mine = Neighbours(memory, 1)
    with _worker(memory, 2, "begin([mail])", "end([mail])"):
        mine.begin([MAIL])


def test_what_a_killed_worker_had_under_way_is_held_until_it_was_taken_over(memory: int) -> None:
    mine = Neighbours(memory, 1)
    mine.lives(1)
    with _worker(memory, 2, "begin([mail])"):
        pass
    with pytest.raises(DeliveryUnderWay):
        mine.begin([MAIL])  # nobody has said yet that its process is gone, and its files may be locked
    assert not mine.ended()
    mine.has_ended(2)
    assert mine.ended() == {2}
    with pytest.raises(DeliveryUnderWay):
        mine.begin([OTHER, MAIL])
    mine.forget(frozenset({2}))
    assert not mine.ended()
    mine.begin([OTHER, MAIL])


def test_a_worker_that_ends_while_another_is_taken_over_is_not_forgotten(memory: int) -> None:
    mine = Neighbours(memory, 1)
    for worker_id in (2, 3):
        mine.lives(worker_id)
        mine.has_ended(worker_id)
    mine.forget(frozenset({2}))
    assert mine.ended() == {3}
    mine.forget(frozenset({3}))
    assert not mine.ended()


def test_what_the_store_knows_all_workers_know(memory: int) -> None:
    mine = Neighbours(memory, 1)
    assert MAIL not in mine
    with _worker(memory, 2, "add(mail)"):
        assert MAIL in mine
        assert OTHER not in mine


def test_of_many_that_are_under_way_each_is_known(memory: int) -> None:
    mine, theirs = Neighbours(memory, 1), Neighbours(memory, 2)
    mine.lives(1)
    places = [os.urandom(32) for _ in range(2000)]
    mine.begin(places)
    for each in places:
        with pytest.raises(DeliveryUnderWay):
            theirs.begin([each])
    mine.end(places)
    theirs.begin(places)
