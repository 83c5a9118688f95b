"""Policies of a directory whose edits are taken up, and what is in force.
Standard: policies/README.md, edits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from relay.counting import metrics
from relay.policy.reload import PoliciesInForce
from tests.testlib.counted import counted
from tests.testlib.policy_files import PEERS


async def until(true: Callable[[], bool]) -> None:
    """Waits for what a watched directory leads to; fails after 20 s."""
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


def levels(policies: PoliciesInForce, recipient: str = "x@bob.example") -> tuple[str, ...]:
    return policies().decide("", recipient).levels


def count(policies: PoliciesInForce, outcome: str) -> float:
    value = counted(policies.board, metrics.POLICY_RELOADS, outcome)
    return value or 0.0


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[PoliciesInForce]:
    """The policies of a directory, with edits taken up."""
    policies = PoliciesInForce(directory, PEERS)
    task = asyncio.create_task(policies.watch())
    try:
        yield policies
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
