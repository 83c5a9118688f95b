"""Benchmarks, each a function that returns its figures; the command line shows them.
Standard: everything that a figure compares is measured in one run, on one machine, one after the other.
"""
