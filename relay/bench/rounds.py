"""Ways that mail can take, measured in turn, round after round, so that what else the machine does meets all of them.
Every mail must have arrived, and as it should; the figures are medians.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from relay.bench.result import BenchmarkFailed, Progress
from relay.bench.sink import Sink
from relay.bench.traffic import Traffic

ROUND_TIMEOUT_S = 120.0
"""A round that has not ended by then has failed."""
POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Case:
    """Mails of `size` octets, over `connections` at once, for about `seconds` a round."""

    name: str
    size: int
    connections: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundsPlan:
    """What is measured: each case in `rounds`, fewer where `limit` (seconds, from the start) would be passed."""

    cases: tuple[Case, ...]
    rounds: int
    limit: float


@dataclass(frozen=True, slots=True)
class Route:
    """Mail that comes in at `port` and `arrives` at the sink: sealed, as it was, or changed and in clear nowhere."""

    name: str
    port: int
    arrives: Literal["sealed", "same", "changed"]


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """Mails a second of one case, for each way a value for each round."""

    name: str
    size: int
    rounds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Mails a second."""
        return statistics.median(self.rounds[way])

    def ratio(self, way: str, base: str) -> float:
        """One way's median by that of another."""
        return self.median(way) / self.median(base)

    def spread(self, way: str, base: str) -> str:
        """The ratio, with the smallest and the largest one of a round."""
        ratios = [one / other for one, other in zip(self.rounds[way], self.rounds[base], strict=True)]
        return f"{self.ratio(way, base):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


class Rounds:
    """Sends through ways and looks at what arrives; where mail is `queued`, it is waited for."""

    def __init__(self, sink: Sink, *, queued: bool = False) -> None:
        self._traffic = Traffic()
        self._sink = sink
        self._queued = queued
        self.sealed = 0
        """How many mails have arrived sealed so far."""

    async def run(
        self, plan: RoundsPlan, ways: Sequence[Route], started: float, progress: Progress
    ) -> list[CaseFigures]:
        """All rounds, after one mail for each connection to warm up; `started` is when the limit began to run.

        Raises BenchmarkFailed where a mail was refused, got lost, or was not as it should be.
        """
        for case in plan.cases:
            for way in ways:
                await self._round(Case(case.name, case.size, 2, 0.0), way)
        figures = [CaseFigures(case.name, case.size, {way.name: [] for way in ways}) for case in plan.cases]
        for number in range(plan.rounds):
            begun = time.monotonic()
            for place, (case, each) in enumerate(zip(plan.cases, figures, strict=True)):
                done = (number + place / len(plan.cases)) / plan.rounds
                progress(f"round {number + 1} of {plan.rounds}, {case.name}", done)
                for way in ways:
                    each.rounds[way.name].append(await self._round(case, way))
            now = time.monotonic()
            if now - started + (now - begun) > plan.limit:
                break
        progress("stopping", 1.0)
        return figures

    async def _round(self, case: Case, way: Route) -> float:
        """Mails a second, until the last has been accepted, or where they are queued has arrived."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(ROUND_TIMEOUT_S):
                sent = await self._traffic.send(way.port, case.size, connections=case.connections, seconds=case.seconds)
        except TimeoutError as error:
            raise BenchmarkFailed(f"{way.name}: mails were not accepted in {ROUND_TIMEOUT_S:.0f} s") from error
        if sent.fault:
            raise BenchmarkFailed(f"{way.name}: a mail was not accepted: {sent.fault}")
        arrived = self._sink.count()
        while self._queued and arrived.mails < sent.mails and time.monotonic() - begun < ROUND_TIMEOUT_S:
            await asyncio.sleep(POLL_S)
            arrived.add(self._sink.count())
        seconds = time.monotonic() - begun if self._queued else sent.seconds
        if arrived.mails != sent.mails:
            raise BenchmarkFailed(f"{way.name}: {sent.mails} mails were accepted, {arrived.mails} have arrived")
        sealed, in_clear = (sent.mails if way.arrives == how else 0 for how in ("sealed", "same"))
        octets, original = arrived.octets, sent.mails * case.size
        changed = not self._queued and (octets <= original if sealed else octets != original)
        if (arrived.sealed, arrived.in_clear) != (sealed, in_clear) or changed:
            raise BenchmarkFailed(f"{way.name}: mails arrived otherwise than they should ({way.arrives}): {arrived}")
        self.sealed += sealed
        return sent.mails / seconds
