"""`qumail-relay bench`: how much mail this machine carries, sealed, beside a pass-through that seals nothing.
Standard: progress on standard error, the result on standard output; nothing is left behind.
"""

from __future__ import annotations

import signal
import statistics
import sys
from dataclasses import asdict
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from relay.bench.throughput import FULL, QUICK, Figures, Result, measure
from relay.cli.bench_keys import run_keys, run_soak
from relay.cli.bench_levels import run_levels
from relay.cli.bench_milter import run_milter
from relay.cli.bench_policy import run_policy


@click.command()
@click.option("--quick", is_flag=True, help="One short round: shows that all works, says little about speed.")
@click.option("--keys", "what", flag_value="keys", help="The KM client instead, over a slow simulated KME.")
@click.option("--levels", "what", flag_value="levels", help="What each level costs instead, without any network.")
@click.option("--policy", "what", flag_value="policy", help="100,000 policy files instead: load, reload, decide.")
@click.option("--milter", "what", flag_value="milter", help="The milter in a Postfix instead (root, Postfix).")
@click.option("--soak", "soak_s", type=click.FloatRange(1, 86400), help="So many seconds of mail over failing KMEs.")
@click.option("--json", "as_json", is_flag=True, help="For programs: all figures of all rounds.")
def bench(quick: bool, what: str | None, soak_s: float | None, as_json: bool) -> None:
    """Measure the outgoing relay at level aes, beside a bare aiosmtpd-to-aiosmtplib pass-through.

    Everything runs on this machine, on free ports, with development keys: sender, relay, pass-through, and a
    sink that checks that each mail arrived and was sealed. It takes up to a minute, --quick up to 10 s.
    """
    signal.signal(signal.SIGTERM, _stopped)
    if soak_s is not None:
        run_soak(soak_s, as_json=as_json)
        return
    if what == "keys":
        run_keys(as_json=as_json)
        return
    if what == "policy":
        run_policy(quick=quick, as_json=as_json)
        return
    if what == "milter":
        run_milter(quick=quick, as_json=as_json)
        return
    if what == "levels":
        run_levels(quick=quick, as_json=as_json)
        return
    result = _measured(quick)
    if as_json:
        Console().print_json(data=_as_json(result))
    else:
        _print(Console(), result)


def _measured(quick: bool) -> Result:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=1.0)

        def progress(doing: str, share: float) -> None:
            bar.update(task, description=doing, completed=share)

        return measure(QUICK if quick else FULL, progress)


def _stopped(number: int, frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that the processes that were started are ended too."""
    sys.exit(128 + number)


def _print(console: Console, result: Result) -> None:
    table = Table("", "relay, sealing", "pass-through", "relay / pass-through")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in result.figures:
        low, high = each.spread
        ratio = f"{each.ratio:.2f} ({low:.2f} to {high:.2f})"
        table.add_row(each.name, _figure(each, each.relay), _figure(each, each.pass_through), ratio)
    console.print(table)
    rounds = len(result.figures[0].relay)
    console.print(
        f"{f'Medians of {rounds} rounds' if rounds > 1 else 'One round'}, each target in turn; "
        f"{result.seconds:.0f} s in all.\n"
        f"{result.sealed} mails sealed and arrived; {result.keys} keys left the KME.\n{result.machine}",
        highlight=False,
        soft_wrap=True,
    )


def _figure(figures: Figures, rounds: list[float]) -> str:
    """Small mails are counted, large ones weighed (1 MB = 1,000,000 octets of the original)."""
    median = statistics.median(rounds)
    if figures.size >= 1_000_000:
        return f"{median * figures.size / 1e6:,.0f} MB/s"
    return f"{median:,.0f} mails/s"


def _as_json(result: Result) -> dict[str, Any]:
    """The result's own fields, with what follows from the rounds."""
    data = asdict(result)
    for figures, each in zip(result.figures, data["figures"], strict=True):
        each["ratio"] = figures.ratio
        for name in ("relay", "pass_through"):
            median = statistics.median(each[name])
            each[name] = {"mails_per_s": median, "octets_per_s": median * figures.size, "rounds": each[name]}
    return data
