"""Which level, which peer and which fallback each recipient gets: found, checked and explained here.
Standard: policies/README.md, the reference for those who write the files.

`load_policies` reads a directory (load.py) of files (file.py, whose rules are in rules.py) whose names are
addresses (names.py) into an immutable PolicySet, which decides and explains (decide.py).
"""
