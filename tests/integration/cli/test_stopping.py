"""A command that is told to stop: its work is ended and awaited, what it had finished counts, its parts close in peace.
Standard: SIGTERM and SIGINT; nothing but the work is cancelled.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from relay.runtime.stopping import Stopped, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_work_is_ended_and_then_the_parts_are_closed_whatever_signals_still_come(number: signal.Signals) -> None:
    order: list[str] = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            order.append("ended")

    with stop_on_signals() as stop:
        try:
            with pytest.raises(Stopped):
                await stop.or_end(work())
        finally:
            os.kill(os.getpid(), number)
            for _ in range(10):
                await asyncio.sleep(0)
            order.append("closed")
        assert stop.requested
    assert order == ["ended", "closed"]
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


async def test_what_was_done_already_counts_and_errors_stay_what_they_are() -> None:
    async def done() -> int:
        return 42

    async def wrong() -> int:
        raise ValueError("wrong")

    async def holds_out() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return 43
        return 0

    with stop_on_signals() as stop:
        assert await stop.or_end(done()) == 42
        with pytest.raises(ValueError, match="wrong"):
            await stop.or_end(wrong())
        stop.request()
        assert await stop.or_end(holds_out()) == 43
