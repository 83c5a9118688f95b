"""Work beside the event loop: all Python goes on in one thread at a time, and what is small is done at once.
Standard: relay/runtime/aio.py.
"""

from __future__ import annotations

import asyncio
import threading

import pytest

from relay.runtime.aio import SMALL_OCTETS, InDaemon, off_loop_in_turn


async def test_work_that_is_all_python_goes_on_in_one_thread_at_a_time() -> None:
    at_work, most = 0, 0
    first_is_there, go_on = threading.Event(), threading.Event()

    def work() -> str:
        nonlocal at_work, most
        at_work += 1
        most = max(most, at_work)
        first_is_there.set()
        assert go_on.wait(30)
        at_work -= 1
        return threading.current_thread().name

    running = [asyncio.create_task(off_loop_in_turn(SMALL_OCTETS + 1, work)) for _ in range(5)]
    await asyncio.to_thread(first_is_there.wait, 30)
    here = await off_loop_in_turn(SMALL_OCTETS, lambda: threading.current_thread())
    go_on.set()
    names = await asyncio.gather(*running)
    assert most == 1
    assert here is threading.main_thread()
    assert threading.main_thread().name not in names


async def test_one_that_was_given_up_does_not_keep_the_others_waiting() -> None:
    go_on, begun = threading.Event(), threading.Event()

    def waits() -> None:
        begun.set()
        go_on.wait(30)

    given_up = asyncio.create_task(off_loop_in_turn(SMALL_OCTETS + 1, waits))
    await asyncio.to_thread(begun.wait, 30)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)
    async with asyncio.timeout(30):
        assert await off_loop_in_turn(SMALL_OCTETS + 1, lambda: 7) == 7
    go_on.set()


async def test_work_that_hangs_is_under_way_once_and_what_comes_after_it_is_done() -> None:
    go_on, times = threading.Event(), 0

    def work() -> None:
        nonlocal times
        times += 1
        assert go_on.wait(30)

    reading = InDaemon(work)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await reading.run()
    assert times == 1
    go_on.set()
    await reading.run()
    await reading.run()
    assert times == 2


async def test_after_work_that_fails_and_a_thread_that_cannot_start_the_next_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[Exception | None] = [ValueError("broken"), None]

    def work() -> None:
        if (error := answers.pop(0)) is not None:
            raise error

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    reading = InDaemon(work)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError, match="can't start"):
            await reading.run()
    with pytest.raises(ValueError, match="broken"):
        await reading.run()
    await reading.run()
    assert not answers
