"""The figures of a run as tables for persons: what each way carries and costs, what compares with what, and what moved.
Large mails are weighed (1 MB = 1,000,000 bytes of the original), small ones are counted.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.bench.cases import A_DAY, ALL, COMPARISONS, MB, WAYS, Kind, case_name
from tests.bench.figures import FAILED, KEYS_RUN_OUT, BenchFigures, met

_GRIDS: dict[Kind, str] = {
    "mails/s": "carried: mails/s, from 1 MB on MB/s",
    "CPU ms": "processor time a mail, ms, of all processes of the server",
    "peak MB": "largest memory, MB, of all processes of the server",
}
_NAMES = list(dict.fromkeys(way.name for way in WAYS))


def show(figures: BenchFigures, about: str, earlier: BenchFigures | None = None) -> None:
    """On standard output; `earlier` is another run, which stands beside."""
    console = Console()
    for title, table in _tables(figures, earlier):
        if table.row_count:
            console.print(f"\n{title}", highlight=False, soft_wrap=True)
            console.print(table)
    for why, cases in _reasons(figures).items():
        console.print(f"{', '.join(cases)}: {why}", highlight=False, soft_wrap=True)
    console.print(about, highlight=False, soft_wrap=True)
    if line := a_day(figures):
        console.print(line, highlight=False, soft_wrap=True)


def a_day(figures: BenchFigures) -> str:
    """How many mails this machine carries in 24 hours, in one line; "" where that was not measured."""
    rates = [figures.median(case, "mails/s") for case in A_DAY]
    if None in rates:
        return ""
    sealed, opened = (f"{float(f'{rate * 86_400:.2g}'):,.0f}" for rate in rates if rate is not None)
    return f"A day has room for about {sealed} mails of 4 KB to be sealed (level aes), or {opened} to be opened."


def _tables(figures: BenchFigures, earlier: BenchFigures | None) -> Iterator[tuple[str, Table]]:
    """Each with its title."""
    for kind, title in _GRIDS.items():
        yield title, _grid(figures, kind)
    yield "other figures", _others(figures)
    yield "compared", _comparisons(figures, earlier)
    if earlier is not None:
        yield "moved since the earlier run: no round of one lies among those of the other", _moved(figures, earlier)


def _table(*columns: str, names: int = 1) -> Table:
    """The first columns are `names`, the others figures."""
    table = Table(*columns)
    for column in table.columns[names:]:
        column.justify = "right"
    return table


def _grid(figures: BenchFigures, kind: Kind) -> Table:
    sizes = [size for size in ALL if any(figures.median(case_name(name, size), kind) is not None for name in _NAMES)]
    table = _table("", *(case_name("", size).strip() for size in sizes))
    for name in _NAMES:
        cells = [_cell(figures, case_name(name, size), kind, size) for size in sizes]
        if any(cells):
            table.add_row(name, *cells)
    return table


def _cell(figures: BenchFigures, case: str, kind: Kind, size: int) -> str:
    value = figures.median(case, kind)
    if value is None:
        note = figures.notes.get(case, "")
        return note if kind == "mails/s" and note in (KEYS_RUN_OUT, FAILED) else ""
    return number(value * size / MB if kind == "mails/s" and size >= MB else value)


def number(value: float) -> str:
    """With as many digits as a person reads."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _others(figures: BenchFigures) -> Table:
    table = _table("", "", "median", "least", "most")
    for case, kinds in figures.rounds.items():
        for kind, values in kinds.items():
            if kind not in _GRIDS:
                table.add_row(
                    case, kind, number(figures.median(case, kind) or 0.0), number(min(values)), number(max(values))
                )
    return table


def _comparisons(figures: BenchFigures, earlier: BenchFigures | None) -> Table:
    table = _table("case", "beside", "ratio", "least to most", "aim", "was", *(["earlier"] if earlier else []), names=2)
    for one in COMPARISONS:
        if (compared := figures.compared(one)) is None:
            continue
        before = earlier.compared(one) if earlier else None
        table.add_row(
            f"{one.this}{'' if one.kind == 'mails/s' else f', {one.kind}'}",
            f"{'less ' if one.added else ''}{one.beside}",
            number(compared.value),
            f"{number(compared.lowest)} to {number(compared.highest)}",
            f"{'at most ' if one.at_most else ''}{one.aim:g}",
            one.before,
            *([number(before.value) if before else ""] if earlier else []),
            style="green" if met(one, compared) else "",
        )
    return table


def _moved(figures: BenchFigures, earlier: BenchFigures) -> Table:
    """Figures that differ by more than a twentieth, and of which no round of one run lies among those of the other."""
    table = _table("", "", "earlier", "now", "now / earlier")
    for case, kinds in figures.rounds.items():
        for kind, now in kinds.items():
            before = earlier.of(case, kind)
            if before and (min(now) > max(before) or max(now) < min(before)):
                one, other = figures.median(case, kind) or 0.0, earlier.median(case, kind) or 0.0
                if abs(one - other) > other / 20:
                    table.add_row(case, kind, number(other), number(one), f"{one / other:.2f}" if other else "")
    return table


def _reasons(figures: BenchFigures) -> dict[str, list[str]]:
    """For each reason the cases that have no figures for it."""
    reasons: dict[str, list[str]] = {}
    for case, why in figures.notes.items():
        way = next((name for name in _NAMES if case in {case_name(name, size) for size in ALL}), case)
        names = reasons.setdefault(why, [])
        name = case if why == KEYS_RUN_OUT else way
        names += [] if name in names else [name]
    return reasons
