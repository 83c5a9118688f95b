"""Concurrent writes that share one commit.
Standard: fewer commits, but nobody's write is lost, and nobody is told "done" too early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from relay.errors import StoreUnavailable
from relay.store.group_commit import GroupCommit


class Disk:
    """Remembers what was committed, and holds a commit up until it is let go."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self.error: Exception | None = None
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def commit(self, items: Sequence[str]) -> None:
        self.begun.set()
        await self.go.wait()
        if self.error:
            raise self.error
        self.commits.append(list(items))


async def started(write: GroupCommit[str], disk: Disk, *items: str) -> list[asyncio.Task[None]]:
    """The first item's commit has begun; the others wait for their turn."""
    tasks = [asyncio.ensure_future(write(item)) for item in items]
    await disk.begun.wait()
    await asyncio.gather(*(asyncio.sleep(0) for _ in items))
    return tasks


async def test_writes_that_come_during_a_commit_share_the_next() -> None:
    disk = Disk()
    write = GroupCommit(disk.commit)
    [first] = await started(write, disk, "a")
    others = await started(write, disk, "b", "c", "d")
    disk.go.set()
    await asyncio.gather(first, *others)
    assert disk.commits == [["a"], ["b", "c", "d"]]


async def test_nobody_is_told_done_before_the_commit() -> None:
    disk = Disk()
    write = GroupCommit(disk.commit)
    tasks = await started(write, disk, "a", "b", "c")
    assert not any(task.done() for task in tasks)
    disk.go.set()
    await asyncio.gather(*tasks)


async def test_trouble_is_everybodys_whose_write_was_in_it_and_is_over_then() -> None:
    disk = Disk()
    write = GroupCommit(disk.commit)
    [first] = await started(write, disk, "a")
    others = await started(write, disk, "b", "c")
    disk.error = StoreUnavailable("disk full")
    disk.go.set()
    outcomes = await asyncio.gather(first, *others, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["disk full"] * 3
    disk.error = None
    await write("d")
    assert disk.commits == [["d"]]


async def test_others_do_the_work_of_one_that_was_cancelled() -> None:
    disk = Disk()
    write = GroupCommit(disk.commit)
    first, second = await started(write, disk, "a", "b")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    disk.go.set()
    await second
    assert disk.commits == [["b"]]


async def test_one_that_was_cancelled_while_waiting_is_not_written() -> None:
    disk = Disk()
    write = GroupCommit(disk.commit)
    [first] = await started(write, disk, "a")
    second, third = await started(write, disk, "b", "c")
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    disk.go.set()
    await asyncio.gather(first, third)
    assert disk.commits == [["a"], ["c"]]


async def test_a_fault_in_the_program_is_not_hidden_and_stops_nobody_else() -> None:
    disk = Disk()
    write = GroupCommit(disk.commit)
    disk.error = ZeroDivisionError()
    disk.go.set()
    with pytest.raises(ZeroDivisionError):
        await write("a")
    disk.error = None
    await write("b")
    assert disk.commits == [["b"]]
