"""Policies: the level, peer and fallback of each recipient; loaded, checked and explained.
Standard: policies/README.md, the reference for those who write the files.

`load_policies` (load.py) reads a directory into an immutable PolicySet, which decides and explains (decide.py). The
names of its files (file.py) are addresses (names.py), and their rules are in rules.py.
"""
