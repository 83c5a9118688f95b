"""How much mail the outgoing relay carries at level aes, beside a bare pass-through that seals nothing.
Above 1 the ratio says that the relay is faster although it seals.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from relay.bench.processes import sealing_relay, server
from relay.bench.result import BenchmarkFailed, BenchResult, Progress, machine
from relay.bench.rounds import Case, CaseFigures, Rounds, RoundsPlan, Route
from relay.bench.sink import Sink

FULL = RoundsPlan((Case("4 KB", 4_000, 16, 1.0), Case("10 MB", 10_000_000, 3, 0.5)), rounds=9, limit=50.0)
QUICK = RoundsPlan((Case("4 KB", 4_000, 16, 0.5), Case("10 MB", 10_000_000, 2, 0.1)), rounds=1, limit=6.0)


async def measure_mail(*, quick: bool, progress: Progress) -> BenchResult:
    """Runs one of the plans. Raises BenchmarkFailed where a mail was refused, got lost, or was not as it should be."""
    started = time.monotonic()
    progress("starting", 0.0)
    async with (
        Sink() as sink,
        sealing_relay(sink.port) as relay,
        server("relay.bench.baselines", str(sink.port)) as pass_through,
    ):
        ways = (
            Route("relay", relay.ports["outgoing"], "sealed"),
            Route("pass_through", pass_through, "same"),
        )
        rounds = Rounds(sink)
        stock = await relay.keys_left()
        try:
            figures = await rounds.run(QUICK if quick else FULL, ways, started, progress)
        except BenchmarkFailed as error:
            log = relay.log.read_text(errors="replace")[-1000:]
            raise BenchmarkFailed(f"{error}\nThe relay's log ends in: {log}") from error
        keys = stock - await relay.keys_left()
    seconds, where = time.monotonic() - started, machine()
    number = len(figures[0].rounds["relay"])
    return BenchResult(
        columns=("", "relay, sealing", "pass-through", "relay / pass-through"),
        rows=[
            (each.name, _figure(each, "relay"), _figure(each, "pass_through"), each.spread("relay", "pass_through"))
            for each in figures
        ],
        notes=f"{f'Medians of {number} rounds' if number > 1 else 'One round'}, each target in turn; "
        f"{seconds:.0f} s in all.\n{rounds.sealed} mails sealed and arrived; {keys} keys left the KME.\n{where}",
        data={
            "figures": [_data(each) for each in figures],
            "sealed": rounds.sealed, "keys": keys, "seconds": seconds, "machine": asdict(where),
        },
    )  # fmt: skip


def _figure(figures: CaseFigures, way: str) -> str:
    """Small mails are counted, large ones weighed (1 MB = 1,000,000 octets of the original)."""
    median = figures.median(way)
    return f"{median * figures.size / 1e6:,.0f} MB/s" if figures.size >= 1_000_000 else f"{median:,.0f} mails/s"


def _data(figures: CaseFigures) -> dict[str, object]:
    """All figures of one case."""
    ways = {
        way: {"mails_per_s": figures.median(way), "octets_per_s": figures.median(way) * figures.size, "rounds": rounds}
        for way, rounds in figures.rounds.items()
    }
    return {"name": figures.name, "size": figures.size, **ways, "ratio": figures.ratio("relay", "pass_through")}
