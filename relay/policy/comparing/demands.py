"""What mail must arrive with, compared between two sets: whatever arrives, no action may be weaker.
Standard: policies/README.md, "What must arrive sealed"; relay/policy/require.py says what meets a demand.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

from relay.levels import ALL_SEALING
from relay.policy.comparing.differences import Direction
from relay.policy.require import SEVEREST_FIRST, Demand, Requirement

_PROTECTIONS = ("", *ALL_SEALING)
"""Possible protections of a message; "" is unsealed."""
_ANOTHER = "another peer"


def changed_demands(old: Collection[Demand], new: Collection[Demand]) -> tuple[tuple[str, ...], Direction] | None:
    """The changes and their direction; None if both ask for the same."""
    before, after = frozenset(old), frozenset(new)
    if before == after:
        return None
    changed = [f"require: {each} no longer" for each in sorted(map(_said, before - after))]
    changed += [f"require: {each} from now on" for each in sorted(map(_said, after - before))]
    down, up = _weaker(after, before), _weaker(before, after)
    return tuple(changed), "down" if down else "up" if up else "other"


@lru_cache(maxsize=10_000)
def _weaker(new: frozenset[Demand], old: frozenset[Demand]) -> bool:
    """Whether any arriving mail is treated less severely."""
    peers = {each.peer for each in (*new, *old) if each.peer is not None} | {_ANOTHER}
    return any(
        _severity(new, protection, peer) < _severity(old, protection, peer)
        for protection in _PROTECTIONS
        for peer in (peers if protection else {""})
    )


def _severity(demands: Collection[Demand], protection: str, peer: str) -> int:
    missed = (each.otherwise for each in demands if Requirement(each, "").missed(protection, peer))
    return max((len(SEVEREST_FIRST) - SEVEREST_FIRST.index(each) for each in missed), default=0)


def _said(demand: Demand) -> str:
    return f"{demand.level} of peer {demand.peer}, or {demand.otherwise}"
