"""`qumail-relay bench --levels`: time, memory and the event loop's hold, level by level.
Standard: milliseconds; every figure of a line was measured in the same run.
"""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from relay.bench.levels import Cost, LevelsResult, measure_levels

_COLUMNS = ("level", "message", "seal", "open", "bare", "openssl seal", "openssl open", "x reference", "memory", "held")


def run_levels(*, quick: bool, as_json: bool) -> None:
    """Measures and prints; `quick` leaves out the largest messages. Raises BenchmarkFailed."""
    with Console(stderr=True).status("") as status:
        result = measure_levels(quick=quick, progress=lambda doing, share: status.update(f"{share:.0%} {doing}"))
    if as_json:
        Console().print_json(data=asdict(result))
    else:
        _print(Console(), result)


def _print(console: Console, result: LevelsResult) -> None:
    table = Table(*_COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for each in result.figures:
        table.add_row(
            each.level,
            f"{each.size / 1e6:g} MB",
            _ms(each.seal.seconds),
            _ms(each.open.seconds),
            _ms(each.bare),
            _ms(each.openssl_seal),
            _ms(each.openssl_open),
            f"{each.seal.seconds / each.reference:.1f}",
            f"{each.seal.memory:.1f} / {each.open.memory:.1f}",
            f"{_held(each.seal)} / {_held(each.open)}",
        )
    console.print(table)
    console.print(
        "Times in ms, the least of the rounds. bare: the level's primitives alone. x reference: sealing, as a\n"
        "multiple of base64 (pybase64) and AES-256-GCM of the message. memory: peak when sealing / opening, as a\n"
        "multiple of the message. held: the longest that the event loop stood still, in ms, median of the rounds.\n"
        f"openssl: as a process; at pqc it only signs. {result.seconds:.0f} s in all.\n{result.machine}",
        highlight=False,
        soft_wrap=True,
    )


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.2f}" if seconds < 0.01 else f"{seconds * 1000:.0f}"


def _held(cost: Cost) -> str:
    return f"{cost.held * 1000:.0f}"
