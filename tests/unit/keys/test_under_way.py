"""Calls under way at one KME: new ones find a connection, and late answers are listened to for as long as that holds.
Standard: ETSI GS QKD 014 V1.1.1, 5.4: a caller that gives up an answer gives up its keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from relay.key_receiver.receiver import LATE_SHARE, CallsUnderWay


class Calls:
    """Calls by number, none of which is answered."""

    def __init__(self, connections: int) -> None:
        self.under_way = CallsUnderWay(connections)
        self.given_up: list[int] = []
        self.number = 0

    async def begin(self, *, sent: bool = True, late: bool = True) -> None:
        """One more; when this returns, nobody waits for it any more where it is `late`."""
        self.number += 1
        number = self.number
        begun = asyncio.Event()

        async def call(on_sent: Callable[[], None]) -> None:
            if sent:
                on_sent()
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.given_up.append(number)
                raise

        self.under_way.begin(call, 0.0 if late else 1000.0)
        await begun.wait()
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("connections", [1, 2, 10])
async def test_a_late_call_is_ended_only_where_new_ones_find_no_connection_any_more(connections: int) -> None:
    calls = Calls(connections)
    late = (1 + LATE_SHARE) * connections
    for _ in range(late):
        await calls.begin()
    assert calls.given_up == [], "nobody needs the connections"
    for _ in range(connections):
        await calls.begin(late=False)
    assert sorted(calls.given_up) == list(range(LATE_SHARE * connections + 1, late + 1)), "the latest ones"


async def test_a_call_that_has_not_gone_out_when_nobody_waits_any_more_is_not_made() -> None:
    calls = Calls(10)
    await calls.begin(sent=False)
    await calls.begin()
    assert calls.given_up == [1]
