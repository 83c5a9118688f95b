"""Metrics: their names in metrics.py, their values on a shared board (board.py).
Standard: the Prometheus naming practices; no value is lost if a process is killed; labels are bounded.

This file imports nothing, so that key_metrics.py and metric.py can be used without the rest.
"""
