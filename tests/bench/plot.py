"""The picture of a run: what each way carries at two sizes, and how near each comparison is to its aim.
matplotlib draws it, which is installed with the extra `bench` and loaded by nothing else.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from relay.errors import ConfigError
from relay.levels import AES
from tests.bench.cases import COMPARISONS, MB, WAYS, case_name
from tests.bench.figures import BenchFigures
from tests.bench.report import number

MAX_SHARE = 2.0
"""Length of the longest bar, as a multiple of its aim: one that is far beyond it would make all others invisible."""
_OURS, _OTHERS, _AIM = "#1f6fb4", "#b0b7bf", "#c0392b"


def library() -> Any:
    """matplotlib.pyplot, drawing into files. Raises ConfigError where it is not installed."""
    try:
        importlib.import_module("matplotlib").use("agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install 'qumail-relay[bench]'") from error


def plot(figures: BenchFigures, about: str, file: Path) -> None:
    """Writes a PNG. Raises ConfigError where it cannot be drawn or written."""
    pyplot = library()
    figure, (small, large, aims) = pyplot.subplots(1, 3, figsize=(18, 8), layout="constrained")
    _bars(small, figures, 4_000, "mails of 4 KB a second")
    _bars(large, figures, 10 * MB if figures.median(case_name(AES.name, 10 * MB), "mails/s") else MB, "MB/s")
    _aims(aims, figures)
    figure.suptitle(
        "QuMail Relay: mail that is sealed or opened (blue), and mail that is only passed on (grey)", fontsize=15
    )
    figure.supxlabel(about, fontsize=9)
    try:
        figure.savefig(file, format="png", dpi=110)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error
    finally:
        pyplot.close(figure)


def _bars(axes: Any, figures: BenchFigures, size: int, title: str) -> None:
    """One bar for each way at a size; what does not seal is grey."""
    ways = [(way, case_name(way.name, size)) for way in WAYS if figures.median(case_name(way.name, size), "mails/s")]
    by = size / MB if size >= MB else 1
    values = [(figures.median(case, "mails/s") or 0.0) * by for _, case in ways]
    colours = [_OURS if way.server.startswith(("alice", "bob")) else _OTHERS for way, _ in ways]
    bars = axes.barh([way.name for way, _ in ways], values, color=colours)
    axes.bar_label(bars, [number(value) for value in values], padding=3)
    _tidy(axes, title if size < MB else f"{title}, mails of {case_name('', size).strip()}")


def _aims(axes: Any, figures: BenchFigures) -> None:
    """How much of each aim is reached, up to MAX_SHARE: 1 is the aim, more is better also where less is wanted."""
    aims = [(one, compared) for one in COMPARISONS if (compared := figures.compared(one)) and compared.value > 0]
    shares = [one.aim / compared.value if one.at_most else compared.value / one.aim for one, compared in aims]
    names = [
        f"{one.this}{'' if one.kind == 'mails/s' else f', {one.kind}'}"
        f"{f' {chr(8722) if one.added else chr(247)} {one.beside}' if one.beside else ''}"
        for one, _ in aims
    ]
    bars = axes.barh(names, [min(each, MAX_SHARE) for each in shares], color=_OURS)
    labels = [f"{number(compared.value)} (aim {one.aim:g})" for one, compared in aims]
    axes.axvline(1.0, color=_AIM, linestyle="--", zorder=2)
    axes.bar_label(bars, labels, padding=3, fontsize=9, backgroundcolor="white", zorder=3)
    _tidy(axes, "share of each aim that is reached")


def _tidy(axes: Any, title: str) -> None:
    axes.set_title(title)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.spines[["top", "right"]].set_visible(False)
