"""Curves and bars, as SVG without text, which scales with the page; labels are beside them.
Standard: SVG 2; each has an accessible name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from relay.status.page.html import Html, element

HEIGHT = 100
POINTS = 144
"""Maximum number of points of a curve; each is the lowest of several values."""


def curve(name: str, points: Sequence[tuple[float, float]], *, each_s: float, since: float, until: float) -> Html:
    """Values over time, one every `each_s` seconds, as an area down to 0, with gaps for missing values."""
    width = max(each_s, (until - since) / POINTS)
    slots = max(1, math.ceil((until - since) / width))
    most = max((value for _, value in points), default=0) or 1
    lowest: dict[int, float] = {}
    for at, value in points:
        slot = int((at - since) / width)
        if 0 <= slot < slots:
            lowest[slot] = min(lowest.get(slot, value), value)
    line, area = [], []
    for run in _runs(sorted(lowest)):
        steps = [(slot, _y(lowest[slot], most)) for slot in run]
        last = f"H{run[-1] + 1}"
        path = "L".join(f"{x} {y}" for x, y in steps)
        line.append(f"M{path}{last}")
        area.append(f"M{run[0]} {HEIGHT}L{path}{last}V{HEIGHT}Z")
    return _svg(
        name,
        slots,
        [element("path", class_="area", d="".join(area)), element("path", class_="line", d="".join(line))],
        "curve",
    )


def bars(name: str, columns: Sequence[Mapping[str, float]], order: Sequence[str], most: float) -> Html:
    """Stacked columns, with the parts in this order from below."""
    drawn = []
    for x, parts in enumerate(columns):
        top = 0.0
        for each in order:
            if value := parts.get(each, 0.0):
                top += value
                height = round(value / most * HEIGHT, 2)
                y = round(HEIGHT - top / most * HEIGHT, 2)
                drawn.append(element("rect", class_=f"level-{each}", x=x + 0.1, y=y, width=0.8, height=height))
    return _svg(name, max(1, len(columns)), drawn, "bars")


def _svg(name: str, width: int, drawn: Sequence[Html], kind: str) -> Html:
    grid = [element("line", class_="grid", x1=0, x2=width, y1=y, y2=y) for y in (0, HEIGHT / 2, HEIGHT)]
    return element(
        "svg", grid, drawn,
        role="img", aria_label=name, class_=kind, viewBox=f"0 0 {width} {HEIGHT}", preserveAspectRatio="none",
    )  # fmt: skip


def _y(value: float, most: float) -> float:
    return round(HEIGHT - min(1.0, value / most) * HEIGHT, 1)


def _runs(slots: Sequence[int]) -> list[list[int]]:
    """Runs of points close enough for one line."""
    runs: list[list[int]] = []
    for slot in slots:
        if runs and slot - runs[-1][-1] <= 2:
            runs[-1].append(slot)
        else:
            runs.append([slot])
    return runs
