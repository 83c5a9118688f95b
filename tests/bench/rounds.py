"""Mail in rounds: at each size all ways in turn, then all again, so that what else the machine does meets all of them.
Before the first round each way carries a few mails to a sink that looks at them; afterwards they are only counted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from tests.bench.cases import CONNECTIONS, BenchWay, case_name
from tests.bench.figures import KEYS_RUN_OUT, BenchFigures
from tests.bench.result import BenchmarkFailed
from tests.bench.servers import KeysRunOut, Servers
from tests.bench.sink import BenchSink
from tests.bench.tools import send_new, taking
from tests.bench.traffic import TIMEOUT_S, Handover, mails_of, send
from tests.bench.usage import Usage

ROUND_S = 1.0
"""Target duration of a round, in seconds."""
MOST_OCTETS = 300_000_000
"""Maximum bytes sent in a round."""
SETTLE_S = 0.5
"""Delay after a round until processor time is read, in seconds: deferred work counts too."""
START_S, CHECK_S = 0.5, 0.3
"""Expected duration of a case's start and of its first mails, in seconds."""
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class BenchCase:
    """A way at a size of bytes."""

    way: BenchWay
    size: int

    @property
    def name(self) -> str:
        return case_name(self.way.name, self.size)

    @property
    def recipient(self) -> str:
        """For whom policy wants the way's level."""
        return f"{self.way.level}@bob.example"


def expected_seconds(case: BenchCase, rounds: int) -> float:
    """How long a case takes."""
    return START_S + 2 * CHECK_S + rounds * _round_s(case)


def _round_s(case: BenchCase) -> float:
    """Mail that is opened is sealed first."""
    return ROUND_S * (2 if case.way.sealed else 1) + (SETTLE_S if case.way.server else 0.0)


class Rounds:
    """The rounds of one run, over servers that are started for it; their figures go to `figures`."""

    def __init__(self, servers: Servers, figures: BenchFigures, say: Callable[[str, float], None]) -> None:
        """`say` hears of each step before it is taken, and of the seconds that it is expected to take."""
        self._servers = servers
        self._figures = figures
        self._say = say
        self._numbers: dict[BenchCase, int] = {}

    async def run(self, cases: Sequence[BenchCase], *, rounds: int) -> None:
        """With `rounds` of 0 each case is measured just once, with few mails.

        Where mail was refused for other reasons than missing keys, lost, or not as it should be, the case has failed.
        Raises BenchmarkFailed where a server did not start.
        """
        for case in cases:
            self._say(f"starting what {case.name} needs", START_S)
            await self._servers.port(case.way.listener)
        async with BenchSink(self._servers.sink) as sink:
            for case in cases:
                self._say(f"{case.name}: does it arrive as it should?", CHECK_S)
                await self._step(case, self._check(case, sink))
        async with taking(self._servers.sink) as arrived:
            for number in range(rounds + 1):
                for case in cases:
                    step = f"round {number} of {rounds}" if number else "trying"
                    self._say(f"{case.name}: {step}", _round_s(case) if number else CHECK_S)
                    if case.name not in self._figures.notes:
                        await self._step(case, self._round(case, arrived, counts=number > 0 or not rounds))

    async def _step(self, case: BenchCase, step: Coroutine[None, None, None]) -> None:
        try:
            await step
        except KeysRunOut:
            self._figures.note(case.name, KEYS_RUN_OUT)
        except BenchmarkFailed as error:
            self._figures.failed(case.name, error)

    async def _check(self, case: BenchCase, sink: BenchSink) -> None:
        """As many mails as there are at once in a round, which must arrive as the way says."""
        number = CONNECTIONS[case.size]
        await self._send(case, await self._mails(case, number) or [*itertools.islice(mails_of(case.size), number)])
        arrived, until = sink.count(), time.monotonic() + TIMEOUT_S
        while arrived.mails < number and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
            arrived.add(sink.count())
        expected = {"sealed": (number, 0), "same": (0, number), "changed": (0, 0)}[case.way.arrives]
        if arrived.mails != number or (arrived.sealed, arrived.in_clear) != expected:
            raise BenchmarkFailed(f"{case.name}: {number} mails were to arrive ({case.way.arrives}), but: {arrived}")

    async def _round(self, case: BenchCase, arrived: Callable[[], int], *, counts: bool) -> None:
        number = self._numbers.get(case, CONNECTIONS[case.size])
        mails = await self._mails(case, number)
        usage = Usage((await self._servers.server(case.way.server)).pid if case.way.server else 0)
        usage.forget_peak()
        spent, before, started = usage.cpu_seconds(), arrived(), time.perf_counter()
        seconds = (await self._send(case, mails or number)).seconds
        while arrived() - before < number:
            seconds = time.perf_counter() - started
            if seconds > TIMEOUT_S:
                raise BenchmarkFailed(f"{case.name}: of {number} mails only {arrived() - before} have arrived")
            await asyncio.sleep(POLL_S)
        self._numbers[case] = max(1, min(int(number / seconds * ROUND_S), MOST_OCTETS // case.size))
        if not counts:
            return
        self._figures.add(case.name, "mails/s", number / seconds)
        if usage.tree():
            await asyncio.sleep(SETTLE_S)
            self._figures.add(case.name, "CPU ms", (usage.cpu_seconds() - spent) * 1000 / number)
            self._figures.add(case.name, "peak MB", usage.peak())

    async def _mails(self, case: BenchCase, number: int) -> list[bytes]:
        """This number of sealed mails, if the way is for such."""
        return await self._servers.sealed(case.size, number, case.recipient) if case.way.sealed else []

    async def _send(self, case: BenchCase, mails: list[bytes] | int) -> Handover:
        """These mails, or a number of new ones. Raises BenchmarkFailed where one was not accepted."""
        port, connections, way = await self._servers.port(case.way.listener), CONNECTIONS[case.size], case.way
        if isinstance(mails, int):
            sent = await send_new(
                port, case.size, mails, connections=connections, recipient=case.recipient, lmtp=way.lmtp
            )
        else:
            sent = await send(port, mails, connections=connections, recipient=case.recipient, lmtp=way.lmtp)
        return self._servers.accepted(sent, case.name)
