"""What stands on a board, for asserting on it: as /metrics would tell it."""

from __future__ import annotations

from collections import Counter

from relay.counting.board import Board
from relay.counting.metric import Metric
from relay.keys.stock import Accounts


def counted(board: Board, metric: Metric, *labels: str) -> float | None:
    """A counter or gauge of all processes together; of a histogram how many values; None where there is none."""
    numbers = board.totals_now().get(metric, {}).get(labels)
    if numbers is None:
        return None
    return sum(numbers[:-1]) if metric.kind == "histogram" else numbers[0]


def burnt_by_cause(accounts: Accounts) -> dict[str, int]:
    """Burnt keys by cause, of all slave SAEs."""
    causes: Counter[str] = Counter()
    for (_, _, cause), number in accounts.entries.items():
        if cause:
            causes[cause] += number
    return dict(causes)
