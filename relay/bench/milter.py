"""What the milter costs: Postfix alone, with a milter that seals nothing, with ours at aes, and with the LMTP filter.
One Postfix, four ways in, in turn; a round ends when its last mail has left Postfix.
"""

from __future__ import annotations

import time
from dataclasses import asdict

from relay.bench.postfix import bench_postfix, free_ports
from relay.bench.processes import sealing_relay, server
from relay.bench.result import BenchResult, Progress, machine
from relay.bench.rounds import Case, Rounds, RoundsPlan, Route
from relay.bench.sink import Sink

NAMES = {
    "postfix": "Postfix alone",
    "bare": "milter that only replaces bodies",
    "milter": "milter, sealing",
    "lmtp": "LMTP filter, sealing",
}
FULL = RoundsPlan((Case("4 KB", 4_000, 16, 2.0), Case("10 MB", 10_000_000, 4, 2.0)), rounds=7, limit=120.0)
QUICK = RoundsPlan((Case("4 KB", 4_000, 8, 0.2), Case("10 MB", 10_000_000, 2, 0.1)), rounds=1, limit=30.0)

_BACK = "-o content_filter= -o receive_override_options=no_header_body_checks,no_address_mappings,no_milters"


async def measure_milter(*, quick: bool, progress: Progress) -> BenchResult:
    """Runs one of the plans.

    Raises BenchmarkFailed where this is not root or has no Postfix, and where a mail got lost or was not as it should.
    """
    started = time.monotonic()
    progress("starting", 0.0)
    back, *ports = free_ports(5)
    async with (
        Sink() as sink,
        sealing_relay(back, 'lmtp = "127.0.0.1:0"\nmilter = "127.0.0.1:0"') as relay,
        server("relay.bench.baselines") as bare,
    ):
        options = (
            "",
            f"-o smtpd_milters=inet:127.0.0.1:{bare}",
            f"-o smtpd_milters=inet:127.0.0.1:{relay.ports['outgoing_milter']}",
            f"-o content_filter=qumail:[127.0.0.1]:{relay.ports['outgoing_lmtp']}",
        )
        ways = [
            Route(name, port, "same" if name == "postfix" else "changed" if name == "bare" else "sealed")
            for name, port in zip(NAMES, ports, strict=True)
        ]
        rounds = Rounds(sink, queued=True)
        with bench_postfix({**dict(zip(ports, options, strict=True)), back: _BACK}, sink.port):
            figures = await rounds.run(QUICK if quick else FULL, ways, started, progress)
    seconds, where = time.monotonic() - started, machine()
    number = len(figures[0].rounds["postfix"])
    return BenchResult(
        columns=("", "way", "mails/s", "MB/s", "by Postfix alone"),
        rows=[
            (
                each.name, NAMES[way], f"{each.median(way):,.1f}", f"{each.median(way) * each.size / 1e6:,.1f}",
                "" if way == "postfix" else each.spread(way, "postfix"),
            )
            for each in figures
            for way in NAMES
        ],
        names=2,
        notes=f"{f'Medians of {number} rounds' if number > 1 else 'One round'}, each way in turn; "
        f"{seconds:.0f} s in all. The milter is to reach 0.75.\n"
        f"{rounds.sealed} mails sealed and arrived.\n{where}",
        data={
            "figures": [asdict(each) for each in figures],
            "ratios": {each.name: {way: each.ratio(way, "postfix") for way in [*NAMES][1:]} for each in figures},
            "sealed": rounds.sealed, "seconds": seconds, "machine": asdict(where),
        },
    )  # fmt: skip
