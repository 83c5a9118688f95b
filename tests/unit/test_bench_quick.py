"""A quick run of the benchmark answers first how many mails a day has room for, and ends within a minute.
Standard: what there was no time for is said, and is no fault.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from tests.bench import mail
from tests.bench.cases import A_DAY
from tests.bench.figures import BenchFigures
from tests.bench.mail import DAY_ROUNDS, NO_TIME, Run
from tests.bench.report import a_day, show
from tests.bench.rounds import BenchCase
from tests.bench.servers import Servers

Runs = list[tuple[list[str], int]]
"""What was run: names of cases, and the number of rounds."""


@dataclass
class QuickRounds:
    """In the place of rounds: each has figures at once, and only so many runs come to an end."""

    servers: Servers
    figures: BenchFigures
    say: Callable[[str, float], None] = field(repr=False)
    ran: ClassVar[Runs] = []
    ends: ClassVar[int] = 1000

    async def run(self, cases: Sequence[BenchCase], *, rounds: int) -> None:
        if len(self.ran) == self.ends:
            await asyncio.Event().wait()
        self.ran.append(([case.name for case in cases], rounds))
        for case in cases:
            for _ in range(max(1, rounds)):
                self.figures.add(case.name, "mails/s", 100.0)


@pytest.fixture(autouse=True)
def ran(monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(QuickRounds, "ran", [])
    monkeypatch.setattr(mail, "Rounds", QuickRounds)
    monkeypatch.setattr(mail, "OTHERS", {})
    monkeypatch.setattr(mail, "why_not", lambda _: "")
    return QuickRounds.ran


def quick(*only: str) -> Run:
    return Run(only, quick=True, progress=lambda *_: None)


async def test_the_mails_of_a_day_come_first_and_then_every_other_case_once(ran: Runs) -> None:
    run = quick()
    await run.measure()
    assert ran[0] == (list(A_DAY), DAY_ROUNDS)
    others = [name for names, rounds in ran[1:] for name in names if rounds == 0]
    assert sorted([*A_DAY, *others]) == sorted(case.name for case in run.cases)
    assert not run.figures.notes


async def test_what_there_is_no_time_for_is_named_and_the_answer_stands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mail, "QUICK_S", 0.1)
    monkeypatch.setattr(QuickRounds, "ends", 1)
    run = quick()
    left = {case.name for case in run.cases} - {*A_DAY}
    await run.measure()
    assert not run.figures.faults
    assert {name for name, why in run.figures.notes.items() if why == NO_TIME} == left
    show(run.figures, "")
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == a_day(run.figures)
    assert [line for line in shown if line.endswith(NO_TIME)]


async def test_cases_that_somebody_has_named_are_measured_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, ran: Runs
) -> None:
    monkeypatch.setattr(mail, "QUICK_S", 0.0)
    run = quick("opening aes 4 KB", "aes 1 MB")
    await run.measure()
    assert ran == [(["opening aes 4 KB", "aes 1 MB"], 0)]
    assert not run.figures.notes
