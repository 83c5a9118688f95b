"""Which level, which peer and which fallback each recipient gets: found, checked and explained here.
Standard: policies/README.md, the reference for those who write the files.

`load_policies` reads a directory (load.py) of files (file.py, whose rules are in rules.py) whose names are
addresses (names.py) into an immutable PolicySet, which decides and explains (decide.py).
"""

from __future__ import annotations

from relay.policy.chosen import RuleLook
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.decision import Decision, Explanation, Lookup
from relay.policy.file import Policy, PolicyFile, Unprotected
from relay.policy.load import load_policies
from relay.policy.priority import CopyKeys, KeysWithReserve
from relay.policy.require import Missed, Requirements, author
from relay.policy.settings import Otherwise, Priority
from relay.policy.strength import LevelName, Quantum

__all__ = [
    "CopyKeys",
    "Decision",
    "Explanation",
    "KeysWithReserve",
    "LevelName",
    "Lookup",
    "MessageFacts",
    "Missed",
    "Otherwise",
    "Policy",
    "PolicyFile",
    "PolicySet",
    "Priority",
    "Quantum",
    "Requirements",
    "RuleLook",
    "Unprotected",
    "author",
    "load_policies",
]
