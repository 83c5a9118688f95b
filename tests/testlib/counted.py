"""What stands on a board, for asserting on it: as /metrics would tell it."""

from __future__ import annotations

from relay.counting.board import Board
from relay.counting.metric import Metric


def counted(board: Board, metric: Metric, *labels: str) -> float | None:
    """A counter or gauge of all processes together; of a histogram how many values; None where there is none."""
    numbers = board.totals_now().get(metric, {}).get(labels)
    if numbers is None:
        return None
    return sum(numbers[:-1]) if metric.kind == "histogram" else numbers[0]
