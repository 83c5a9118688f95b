"""How much mail the outgoing relay carries at level aes, beside a bare pass-through that seals nothing.
Standard: interleaved rounds of one run, medians; every mail must have arrived, and sealed where it should be.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from relay.bench.bench_site import BenchSite, bench_site
from relay.bench.children import BenchmarkFailed
from relay.bench.machine import Machine, machine
from relay.bench.sender import Load, Sent

ROUND_TIMEOUT_S = 60.0
"""A round that has not ended by then has failed."""


@dataclass(frozen=True, slots=True)
class Case:
    """Mails of `size` octets, over `connections` at once, for about `seconds` a round."""

    name: str
    size: int
    connections: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: each case in `rounds`, fewer where `limit` (seconds, from the start) would be passed."""

    cases: tuple[Case, ...]
    rounds: int
    limit: float


FULL = Plan((Case("4 KB", 4_000, 16, 1.0), Case("10 MB", 10_000_000, 3, 0.5)), rounds=9, limit=50.0)
QUICK = Plan((Case("4 KB", 4_000, 16, 0.5), Case("10 MB", 10_000_000, 2, 0.1)), rounds=1, limit=6.0)


@dataclass(slots=True)
class Figures:
    """Mails a second of one case, a value for each round."""

    name: str
    size: int
    relay: list[float] = field(default_factory=list)
    pass_through: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The relay's median by the pass-through's: above 1 the relay is faster although it seals."""
        return statistics.median(self.relay) / statistics.median(self.pass_through)

    @property
    def spread(self) -> tuple[float, float]:
        """The smallest and the largest ratio of one round."""
        ratios = [ours / bare for ours, bare in zip(self.relay, self.pass_through, strict=True)]
        return min(ratios), max(ratios)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave; `sealed` mails cost `keys` (those that the relay had ready at the end included)."""

    figures: tuple[Figures, ...]
    sealed: int
    keys: int
    seconds: float
    machine: Machine


def measure(plan: Plan, progress: Callable[[str, float], None]) -> Result:
    """Runs the plan; `progress` hears what is done now and the share of it that is over (0 to 1).

    Raises BenchmarkFailed where a mail was refused, got lost, or was not as it should be.
    """
    started = time.monotonic()
    progress("starting", 0.0)
    with bench_site() as site:
        stock = site.keys.left
        run = _Run(site)
        for case in plan.cases:
            run.round(Case(case.name, case.size, 2, 0.0), site.relay, sealed=True)
            run.round(Case(case.name, case.size, 2, 0.0), site.pass_through, sealed=False)
        figures = tuple(Figures(case.name, case.size) for case in plan.cases)
        for number in range(plan.rounds):
            begun = time.monotonic()
            for place, (case, each) in enumerate(zip(plan.cases, figures, strict=True)):
                done = (number + place / len(plan.cases)) / plan.rounds
                progress(f"round {number + 1} of {plan.rounds}, {case.name}", done)
                each.relay.append(run.round(case, site.relay, sealed=True))
                each.pass_through.append(run.round(case, site.pass_through, sealed=False))
            now = time.monotonic()
            if now - started + (now - begun) > plan.limit:
                break
        progress("stopping", 1.0)
        keys = stock - site.keys.left
    return Result(figures, run.sealed, keys, time.monotonic() - started, machine())


class _Run:
    """The rounds of one run."""

    def __init__(self, site: BenchSite) -> None:
        self._site = site
        self.sealed = 0

    def round(self, case: Case, port: int, *, sealed: bool) -> float:
        """Mails a second through `port`, once it is sure that each of them arrived as it should."""
        load = Load(port, case.size, case.connections, case.seconds)
        sent = Sent(**self._site.sender.ask(asdict(load), ROUND_TIMEOUT_S))
        arrived = self._site.sink.ask(None, ROUND_TIMEOUT_S)
        if sent.fault:
            log = self._site.relay_log.read_text(errors="replace")[-1000:]
            raise BenchmarkFailed(f"a mail was not accepted: {sent.fault}\nThe relay's log ends in: {log}")
        if arrived["mails"] != sent.mails:
            raise BenchmarkFailed(f"{sent.mails} mails were accepted, {arrived['mails']} have arrived")
        octets = sent.mails * case.size
        if sealed and (arrived["sealed"] != sent.mails or arrived["in_clear"] or arrived["octets"] <= octets):
            raise BenchmarkFailed(f"not every mail that left the relay was sealed: {arrived}")
        if not sealed and (arrived["in_clear"], arrived["octets"]) != (sent.mails, octets):
            raise BenchmarkFailed(f"the pass-through changed mails on the way: {arrived}")
        self.sealed += arrived["sealed"]
        return sent.mails / sent.seconds
