"""The run that `qumail-relay bench` is: chooses cases, starts what they need, and collects their figures.
What it has so far is in `BenchFigures` at any moment, so that an interrupted run is worth something too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.bench.cases import A_DAY, OTHERS, PARTS, QUICK, WAYS, case_name
from tests.bench.figures import BenchFigures
from tests.bench.others import EXPECTED_S, MEASURED
from tests.bench.result import BenchmarkFailed, Progress
from tests.bench.rounds import BenchCase, Rounds, expected_seconds
from tests.bench.servers import Servers
from tests.bench.tools import why_not

ROUNDS = 5
QUICK_S = 48.0
"""Duration of a quick run of everything, in seconds, without its end; servers are stopped within a minute."""
DAY_ROUNDS = 3
"""Number of rounds for the mails of a day in such a run."""
NO_TIME = "a quick run ends within a minute, and there was no time for it"


@dataclass(slots=True)
class Run:
    """The cases that are measured, and how far they are."""

    only: Sequence[str]
    """Names of parts, ways or cases; none are all."""
    quick: bool
    progress: Progress
    full_rounds: int = ROUNDS
    figures: BenchFigures = field(default_factory=BenchFigures)
    _done_s: float = 0.0
    """Seconds of work that are done, as they were expected."""

    @property
    def rounds(self) -> int:
        """0: each case is measured just once, with few mails."""
        return 0 if self.quick else self.full_rounds

    @property
    def cases(self) -> list[BenchCase]:
        """In the order in which they are measured; those that cannot be are noted."""
        chosen = [
            BenchCase(way, size)
            for way in WAYS
            for size in way.sizes
            if not (self.quick and size not in QUICK)
            and (not self.only or {way.part, way.name, case_name(way.name, size)} & set(self.only))
        ]
        for case in chosen:
            if why := next(filter(None, map(why_not, case.way.needs)), ""):
                self.figures.note(case.name, why)
        return sorted((case for case in chosen if case.name not in self.figures.notes), key=lambda case: case.size)

    @property
    def keeps_to_a_minute(self) -> bool:
        """Whether what there is no time for is left out: not where somebody has named what is to be measured."""
        return self.quick and not self.only

    async def measure(self) -> None:
        """Figures are there as soon as they are known. Raises BenchmarkFailed where a server did not start."""
        cases, others = self.cases, [name for name in OTHERS if not self.only or name in self.only]
        total = sum(expected_seconds(case, self.rounds) for case in cases)
        total += sum(EXPECTED_S[name][0 if self.quick else 1] for name in others)
        say = self._say(total, time.monotonic())
        async with Servers() as servers:
            limit = asyncio.timeout(QUICK_S if self.keeps_to_a_minute else None)
            try:
                async with limit:
                    await self._run(Rounds(servers, self.figures, say), cases)
                    while others:
                        await self._other(others[0], servers, say)
                        del others[0]
            except TimeoutError:
                if not limit.expired():
                    raise
                for name in [*(case.name for case in cases if case.name not in self.figures.rounds), *others]:
                    self.figures.notes.setdefault(name, NO_TIME)
            say("stopping", 0.0)

    async def _run(self, rounds: Rounds, cases: Sequence[BenchCase]) -> None:
        """Runs the cases; where there is a minute, first those of the answer, then one part after the other."""
        if not self.keeps_to_a_minute:
            await rounds.run(cases, rounds=self.rounds)
            return
        await rounds.run([case for case in cases if case.name in A_DAY], rounds=DAY_ROUNDS)
        for part in PARTS:
            if some := [case for case in cases if case.way.part == part and case.name not in A_DAY]:
                await rounds.run(some, rounds=self.rounds)

    async def _other(self, name: str, servers: Servers, say: Callable[[str, float], None]) -> None:
        try:
            await MEASURED[name](servers, self.figures, say, quick=self.quick)
        except BenchmarkFailed as error:
            self.figures.failed(name, error)

    def _say(self, total: float, began: float) -> Callable[[str, float], None]:
        """Hears of each step before it is taken, and of the seconds that it is expected to take."""

        def say(doing: str, seconds: float) -> None:
            # The first minute is believed to go as expected: starting servers reveals little of what comes.
            pace = (time.monotonic() - began + 60) / (self._done_s + 60)
            left = max(0.0, total - self._done_s) * pace
            remaining = f"about {left / 60:.0f} min" if left > 90 else f"{left:.0f} s"
            self.progress(f"{doing}, {remaining} left", min(1.0, self._done_s / total))
            self._done_s += seconds

        return say


def list_cases() -> str:
    """What --only can choose, and why some of it cannot be measured here."""
    lines = []
    for part, text in PARTS.items():
        lines.append(f"{part}: {text}")
        for way in WAYS:
            if way.part == part:
                why = next(filter(None, map(why_not, way.needs)), "")
                sizes = ", ".join(case_name("", size).strip() for size in way.sizes)
                lines.append(f"    {way.name}: {sizes}{f'   ({why})' if why else ''}")
    return "\n".join(lines)


def unknown(names: Sequence[str]) -> list[str]:
    """Those that --only cannot choose."""
    known = {*PARTS, *(way.name for way in WAYS), *(case_name(way.name, size) for way in WAYS for size in way.sizes)}
    return [name for name in names if name not in known]
