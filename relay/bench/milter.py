"""What the milter costs: Postfix alone, with a milter that seals nothing, with ours at aes, and with the LMTP filter.
Standard: one Postfix, interleaved rounds of one run, medians; a round ends when its last mail has left Postfix.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from relay.bench.bench_postfix import bench_postfix, free_ports
from relay.bench.bench_site import sealing_relay
from relay.bench.children import BenchmarkFailed, Child, child
from relay.bench.machine import Machine, machine
from relay.bench.sender import Load, Sent
from relay.bench.throughput import Case, Plan

WAYS = ("postfix", "bare", "milter", "lmtp")
SEALING = ("milter", "lmtp")
ROUND_TIMEOUT_S = 120.0
POLL_S = 0.01

FULL = Plan((Case("4 KB", 4_000, 16, 2.0), Case("10 MB", 10_000_000, 4, 2.0)), rounds=7, limit=120.0)
QUICK = Plan((Case("4 KB", 4_000, 8, 0.2), Case("10 MB", 10_000_000, 2, 0.1)), rounds=1, limit=30.0)

_BACK = "-o content_filter= -o receive_override_options=no_header_body_checks,no_address_mappings,no_milters"


@dataclass(frozen=True, slots=True)
class MilterFigures:
    """Mails a second of one case, for each way a value for each round."""

    name: str
    size: int
    rounds: dict[str, list[float]]

    def median(self, way: str) -> float:
        """Mails a second."""
        return statistics.median(self.rounds[way])

    def ratio(self, way: str) -> float:
        """The way's median by that of Postfix alone: 0.75 or more is wanted of the milter."""
        return self.median(way) / self.median("postfix")

    def spread(self, way: str) -> tuple[float, float]:
        """The smallest and the largest ratio of one round."""
        ratios = [one / bare for one, bare in zip(self.rounds[way], self.rounds["postfix"], strict=True)]
        return min(ratios), max(ratios)


@dataclass(frozen=True, slots=True)
class MilterResult:
    """What a run gave, how many `seconds` it took, and how many mails were `sealed`."""

    figures: tuple[MilterFigures, ...]
    sealed: int
    seconds: float
    machine: Machine


def measure_milter(plan: Plan, progress: Callable[[str, float], None]) -> MilterResult:
    """Runs the plan; `progress` hears what is done now and the share of it that is over (0 to 1).

    Raises BenchmarkFailed where this is not root or has no Postfix, and where a mail got lost or was not as it should.
    """
    started = time.monotonic()
    progress("starting", 0.0)
    with ExitStack() as stack:
        sink = stack.enter_context(child("relay.bench.sink"))
        *ports, back = free_ports(5)
        relay = stack.enter_context(sealing_relay(back, 'lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"'))
        bare = stack.enter_context(child("relay.bench.bare_milter")).greeting
        options = (
            "",
            f"-o smtpd_milters=inet:127.0.0.1:{bare}",
            f"-o smtpd_milters=inet:127.0.0.1:{relay.ports['outgoing_milter']}",
            f"-o content_filter=qumail:[127.0.0.1]:{relay.ports['outgoing_lmtp']}",
        )
        stack.enter_context(bench_postfix({**dict(zip(ports, options, strict=True)), back: _BACK}, sink.greeting))
        run = _Run(stack.enter_context(child("relay.bench.sender")), sink, dict(zip(WAYS, ports, strict=True)))
        for case in plan.cases:
            for way in WAYS:
                run.round(Case(case.name, case.size, 2, 0.0), way)
        figures = tuple(MilterFigures(case.name, case.size, {way: [] for way in WAYS}) for case in plan.cases)
        for number in range(plan.rounds):
            begun = time.monotonic()
            for place, (case, each) in enumerate(zip(plan.cases, figures, strict=True)):
                done = (number + place / len(plan.cases)) / plan.rounds
                progress(f"round {number + 1} of {plan.rounds}, {case.name}", done)
                for way in WAYS:
                    each.rounds[way].append(run.round(case, way))
            now = time.monotonic()
            if now - started + (now - begun) > plan.limit:
                break
        progress("stopping", 1.0)
    return MilterResult(figures, run.sealed, time.monotonic() - started, machine())


class _Run:
    """The rounds of one run."""

    def __init__(self, sender: Child, sink: Child, ports: dict[str, int]) -> None:
        self._sender = sender
        self._sink = sink
        self._ports = ports
        self.sealed = 0

    def round(self, case: Case, way: str) -> float:
        """Mails a second from the first command to the last mail's arrival behind Postfix."""
        load = Load(self._ports[way], case.size, case.connections, case.seconds)
        begun = time.monotonic()
        sent = Sent(**self._sender.ask(asdict(load), ROUND_TIMEOUT_S))
        if sent.fault:
            raise BenchmarkFailed(f"{way}: a mail was not accepted: {sent.fault}")
        arrived = dict.fromkeys(("mails", "octets", "sealed", "in_clear"), 0)
        while arrived["mails"] < sent.mails:
            for name, number in self._sink.ask(None, ROUND_TIMEOUT_S).items():
                arrived[name] += number
            if time.monotonic() - begun > ROUND_TIMEOUT_S:
                raise BenchmarkFailed(f"{way}: {sent.mails} mails were accepted, {arrived['mails']} have arrived")
            time.sleep(POLL_S)
        seconds = time.monotonic() - begun
        wanted = (sent.mails if way in SEALING else 0, sent.mails if way == "postfix" else 0)
        if (arrived["sealed"], arrived["in_clear"]) != wanted or arrived["mails"] != sent.mails:
            raise BenchmarkFailed(f"{way}: mails arrived otherwise than they should: {arrived}")
        self.sealed += arrived["sealed"]
        return sent.mails / seconds
