"""`qumail-relay bench --policy`: loading, reloading and deciding with many policy files.
Standard: every figure is of the same run, beside a look-up in a dictionary of as many entries.
"""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from relay.bench.policy import FULL_FILES, QUICK_FILES, measure_policy


def run_policy(*, quick: bool, as_json: bool) -> None:
    """Measures and prints; `quick` takes fewer files."""
    with Console(stderr=True).status("") as status:
        figures = measure_policy(
            QUICK_FILES if quick else FULL_FILES,
            lambda doing, share: status.update(f"{share:.0%} {doing}"),
        )
    console = Console()
    if as_json:
        console.print_json(data=asdict(figures))
        return
    table = Table("what", "measured", "aim", title=f"{figures.files:,} policy files")
    table.add_row("load", f"{figures.load_s:.1f} s", "10 s")
    table.add_row("reload of one edited file", f"{figures.reload_ms:.1f} ms", "50 ms")
    table.add_row("decision, median", f"{figures.decision_us:.1f} us", "20 us")
    table.add_row("decision, p99", f"{figures.decision_p99_us:.1f} us", "")
    table.add_row("dictionary look-up", f"{figures.lookup_us:.2f} us", "")
    console.print(table)
    console.print(str(figures.machine), highlight=False)
