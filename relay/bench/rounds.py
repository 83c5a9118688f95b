"""Mail in rounds: at each size all ways in turn, then all again, so that what else the machine does meets all of them.
Before the first round each way carries a few mails to a sink that looks at them; afterwards they are only counted.
"""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

from relay.bench.cases import CONNECTIONS, Way, case_name
from relay.bench.figures import KEYS_RUN_OUT, Figures
from relay.bench.result import BenchmarkFailed
from relay.bench.servers import Servers
from relay.bench.sink import Sink
from relay.bench.tools import send_new, taking
from relay.bench.traffic import Handover, mails_of, send
from relay.bench.usage import Usage

ROUND_S = 1.0
"""How long the mails of a round shall take."""
MOST_OCTETS = 300_000_000
"""So much is sent in a round at most."""
SETTLE_S = 0.5
"""After a round, until processor time is read: what a relay puts off is work too."""
START_S, CHECK_S = 0.5, 0.3
"""What the start of a case and its first mails take, as expected."""
TIMEOUT_S = 120.0
POLL_S = 0.005
_NO_KEY = re.compile(r"\b4\.7\.[15]\b")
"""How a relay says that there is no quantum key, or that policy holds what cannot have the level that it wants; which
of the two it is, and why, stands in its log."""
_TOO_LOW = "key pool too low"
"""What the development KMEs say then."""


@dataclass(frozen=True, slots=True)
class Case:
    """A way at a size of octets."""

    way: Way
    size: int

    @property
    def name(self) -> str:
        return case_name(self.way.name, self.size)

    @property
    def recipient(self) -> str:
        """For whom policy wants the way's level."""
        return f"{self.way.level}@bob.example"


def expected_seconds(case: Case, rounds: int) -> float:
    """How long a case takes."""
    return START_S + 2 * CHECK_S + rounds * _round_s(case)


def _round_s(case: Case) -> float:
    """Mail that is opened is sealed first."""
    return ROUND_S * (2 if case.way.sealed else 1) + (SETTLE_S if case.way.told else 0.0)


class Rounds:
    """The rounds of one run, over servers that are started for it; their figures go to `figures`."""

    def __init__(self, servers: Servers, figures: Figures, say: Callable[[str, float], None]) -> None:
        """`say` hears of each step before it is taken, and of the seconds that it is expected to take."""
        self._servers = servers
        self._figures = figures
        self._say = say
        self._numbers: dict[Case, int] = {}

    async def run(self, cases: Sequence[Case], *, rounds: int) -> None:
        """With `rounds` of 0 each case is measured just once, with few mails.

        Where mail was refused for other reasons than missing keys, lost, or not as it should be, the case has failed.
        Raises BenchmarkFailed where a server did not start.
        """
        for case in cases:
            self._say(f"starting what {case.name} needs", START_S)
            await self._servers.port(case.way.door)
        async with Sink(self._servers.sink) as sink:
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

    async def _step(self, case: Case, step: Coroutine[None, None, None]) -> None:
        try:
            await step
        except BenchmarkFailed as error:
            self._figures.failed(case.name, error)

    async def _check(self, case: Case, sink: Sink) -> None:
        """As many mails as there are at once in a round, which must arrive as the way says."""
        number = CONNECTIONS[case.size]
        mails = (
            await self._sealed(case, number) if case.way.sealed else [*itertools.islice(mails_of(case.size), number)]
        )
        if not mails or not self._accepted(case, await self._send(case, mails)):
            return
        arrived, until = sink.count(), time.monotonic() + TIMEOUT_S
        while arrived.mails < number and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
            arrived.add(sink.count())
        expected = {"sealed": (number, 0), "same": (0, number), "changed": (0, 0)}[case.way.arrives]
        if arrived.mails != number or (arrived.sealed, arrived.in_clear) != expected:
            raise BenchmarkFailed(f"{case.name}: {number} mails were to arrive ({case.way.arrives}), but: {arrived}")

    async def _round(self, case: Case, arrived: Callable[[], int], *, counts: bool) -> None:
        number = self._numbers.get(case, CONNECTIONS[case.size])
        sealed = await self._sealed(case, number) if case.way.sealed else []
        if case.name in self._figures.notes:
            return
        usage = Usage((await self._servers.server(case.way.told)).pid) if case.way.told else None
        if usage is not None:
            usage.forget_peak()
        spent, before, started = usage.cpu_seconds() if usage else 0.0, arrived(), time.perf_counter()
        sent = await self._send(case, sealed or number)
        if not self._accepted(case, sent):
            return
        seconds = sent.seconds
        while arrived() - before < number:
            seconds = time.perf_counter() - started
            if seconds > TIMEOUT_S:
                raise BenchmarkFailed(f"{case.name}: of {number} mails only {arrived() - before} have arrived")
            await asyncio.sleep(POLL_S)
        self._numbers[case] = max(1, min(int(number / seconds * ROUND_S), MOST_OCTETS // case.size))
        if counts:
            self._figures.add(case.name, "mails/s", number / seconds)
        if counts and usage is not None:
            await asyncio.sleep(SETTLE_S)
            self._figures.add(case.name, "CPU ms", (usage.cpu_seconds() - spent) * 1000 / number)
            self._figures.add(case.name, "peak MB", usage.peak())

    async def _sealed(self, case: Case, number: int) -> list[bytes]:
        """Mails that another relay has sealed; none where keys have run out, which is noted then."""
        port = await self._servers.port("alice-to-bag")
        mails = itertools.islice(mails_of(case.size), number)
        sent = await send(port, mails, connections=CONNECTIONS[case.size], recipient=case.recipient)
        sealed = self._servers.bag.taken()
        return sealed if self._accepted(case, sent) else []

    async def _send(self, case: Case, mails: list[bytes] | int) -> Handover:
        """These mails, or so many new ones."""
        port, connections, way = await self._servers.port(case.way.door), CONNECTIONS[case.size], case.way
        try:
            async with asyncio.timeout(TIMEOUT_S):
                if isinstance(mails, int):
                    return await send_new(
                        port, case.size, mails, connections=connections, recipient=case.recipient, lmtp=way.lmtp
                    )
                return await send(port, mails, connections=connections, recipient=case.recipient, lmtp=way.lmtp)
        except TimeoutError as error:
            raise BenchmarkFailed(f"{case.name}: mails were not accepted in {TIMEOUT_S:.0f} s") from error

    def _accepted(self, case: Case, sent: Handover) -> bool:
        """Whether all were. Raises BenchmarkFailed where something else than missing keys was in the way."""
        if _NO_KEY.search(sent.fault) and _TOO_LOW in self._servers.logs():
            self._figures.note(case.name, KEYS_RUN_OUT)
        elif sent.fault:
            raise BenchmarkFailed(f"{case.name}: a mail was not accepted: {sent.fault}\n{self._servers.logs()}")
        return not sent.fault
