"""What the relay counts and measures, where every part of it can: names in metrics.py, numbers on a board (board.py).
Standard: the Prometheus naming practices; no number is lost with a process that is killed; labels are bounded.

This file imports nothing, so that programs with keys alone have key_metrics.py and metric.py without the rest.
"""
