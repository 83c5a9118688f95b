"""Which level, which peer and which fallback each recipient gets: found, checked and explained here.
Standard: policies/README.md, the reference for those who write the files.

`load_policies` reads a directory (load.py) of files (file.py) whose names are addresses (names.py) into
an immutable PolicySet, which decides and explains (decide.py).
"""

from __future__ import annotations

from relay.policy.decide import Decision, Explanation, Lookup, PolicySet
from relay.policy.file import LevelName, Otherwise, Policy, PolicyFile, Quantum
from relay.policy.load import load_policies

__all__ = [
    "Decision",
    "Explanation",
    "LevelName",
    "Lookup",
    "Otherwise",
    "Policy",
    "PolicyFile",
    "PolicySet",
    "Quantum",
    "load_policies",
]
