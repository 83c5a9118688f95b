"""`qumail-relay bench --milter`: what the milter and the content filter cost a Postfix.
Standard: one Postfix, four ways in, in turn; figures are of mail that has left Postfix, medians of the rounds.
"""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from relay.bench.milter import FULL, QUICK, WAYS, MilterFigures, MilterResult, measure_milter

_NAMES = {
    "postfix": "Postfix alone",
    "bare": "milter that only replaces bodies",
    "milter": "milter, sealing",
    "lmtp": "LMTP filter, sealing",
}


def run_milter(*, quick: bool, as_json: bool) -> None:
    """Measures and prints; `quick` takes one short round. Raises BenchmarkFailed."""
    with Console(stderr=True).status("") as status:
        plan = QUICK if quick else FULL
        result = measure_milter(plan, lambda doing, share: status.update(f"{share:.0%} {doing}"))
    if as_json:
        Console().print_json(data={**asdict(result), "ratios": _ratios(result)})
    else:
        _print(Console(), result)


def _ratios(result: MilterResult) -> dict[str, dict[str, float]]:
    return {each.name: {way: each.ratio(way) for way in WAYS[1:]} for each in result.figures}


def _print(console: Console, result: MilterResult) -> None:
    table = Table("", "way", "mails/s", "MB/s", "by Postfix alone")
    for column in table.columns[2:]:
        column.justify = "right"
    for figures in result.figures:
        for way in WAYS:
            rate = figures.median(way)
            table.add_row(
                figures.name, _NAMES[way], f"{rate:,.1f}", f"{rate * figures.size / 1e6:,.1f}", _ratio(figures, way)
            )
    console.print(table)
    rounds = len(result.figures[0].rounds["postfix"])
    console.print(
        f"{f'Medians of {rounds} rounds' if rounds > 1 else 'One round'}, each way in turn; "
        f"{result.seconds:.0f} s in all. The milter is to reach 0.75.\n"
        f"{result.sealed} mails sealed and arrived.\n{result.machine}, load {result.machine.load}",
        highlight=False,
        soft_wrap=True,
    )


def _ratio(figures: MilterFigures, way: str) -> str:
    if way == "postfix":
        return ""
    low, high = figures.spread(way)
    return f"{figures.ratio(way):.2f} ({low:.2f} to {high:.2f})"
