"""What the relay counts and measures, where every part of it can: names in metrics.py, numbers on a board (board.py).
Standard: the Prometheus naming practices; no number is lost with a process that is killed; labels are bounded.
"""

from relay.counting.board import Board, Cell, Spread
from relay.counting.metric import Metric

__all__ = ["Board", "Cell", "Metric", "Spread"]
