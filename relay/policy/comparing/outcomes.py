"""The outcome for a mail to which some rules apply, and whether one outcome is weaker than another.
Standard: policies/README.md; decide.py decides the same for real mail (tests compare the two).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from relay.levels import ONLY_PLAINTEXT, OTP, PQC, QUANTUM, SEALING, SIGNED, LevelName, strength
from relay.policy.comparing.items import Effect
from relay.policy.raising import raised
from relay.policy.settings import Chosen, KEMNames, Priority
from relay.policy.strength import Quantum, never_weaker

_QUANTA: tuple[Quantum, ...] = ("off", "preferred", "required")
_STRONGEST_SIGNED = max(map(strength, SIGNED))


class TriedLevels(NamedTuple):
    """The levels that are tried, () if the mail does not leave, and the peer whose keys seal it.

    Mail of low `priority` gets none of the reserved keys.
    """

    levels: tuple[LevelName, ...]
    quantum: Quantum = "off"
    kem: KEMNames = ()
    peer: str | None = None
    priority: Priority = "normal"

    @property
    def held(self) -> bool:
        """Whether the mail does not leave: it is held, or refused."""
        return not self.levels

    @property
    def sealed(self) -> bool:
        """Whether it leaves, and not in clear."""
        return not self.held and self.levels != ONLY_PLAINTEXT


HELD = TriedLevels(())


class ComparedMail(NamedTuple):
    """The facts of a mail beside the rules: its size for limits, in bytes, and its peer.

    `max_bounce` is None unless the sender is the null sender. `guarded` says that a file for others may not let it out
    in clear.
    """

    size: int
    max_bounce: int | None
    peer: str | None
    guarded: bool


@lru_cache(maxsize=50_000)
def outcome(base: Chosen | None, effects: tuple[Effect, ...], mail: ComparedMail) -> TriedLevels:
    """The outcome for a mail under `base`, raised by these rules; held without a base."""
    if base is None:
        return HELD
    if mail.guarded and bare_levels(base, effects) == ONLY_PLAINTEXT:
        return HELD
    chosen = raised(base, [each.raising for each in effects], mail.size) if effects else base
    priority: Priority = "low" if mail.max_bounce is not None else chosen.priority
    if chosen.levels == ONLY_PLAINTEXT:
        return (
            HELD if chosen.forbids_clear else TriedLevels(chosen.levels, chosen.quantum, chosen.kem, priority=priority)
        )
    if mail.peer is None:
        return HELD
    limits = dict(chosen.max_size)
    levels = tuple(level for level in chosen.levels if mail.size <= limits.get(level, mail.size))
    if mail.max_bounce is not None and mail.size > mail.max_bounce:
        levels = tuple(level for level in levels if level != OTP.name)
    return TriedLevels(levels, chosen.quantum, chosen.kem, mail.peer, priority) if levels else HELD


def bare_levels(base: Chosen, effects: Sequence[Effect]) -> tuple[LevelName, ...]:
    """The levels that the envelope alone decides."""
    raising = [each.raising for each in effects if each.by_envelope]
    return raised(base, raising, 0).levels if raising else base.levels


def weaker(new: TriedLevels, old: TriedLevels) -> str:
    """What is weaker in the new outcome than in the old one, or ""."""
    if new.held:
        return ""
    if old.held:
        return f"{_said(new)} instead of held or refused"
    if not never_weaker(new.levels, old.levels):
        return f"levels: {_said(new)} instead of {_said(old)}"
    if new.sealed and old.sealed and new.peer != old.peer:
        return f"peer: {new.peer} instead of {old.peer}"
    signed = all(SIGNED & set(each.levels) for each in (new, old))
    if signed and _QUANTA.index(new.quantum) < _QUANTA.index(old.quantum):
        return f"quantum: {new.quantum} instead of {old.quantum}"
    if all(PQC.name in each.levels for each in (new, old)) and (dropped := set(old.kem) - set(new.kem)):
        return f"kem: {', '.join(sorted(dropped))} no longer"
    if PQC.name in old.levels and (added := set(new.kem) - set(old.kem)):
        rest = tuple(level for level in new.levels if level != PQC.name)
        if rest and not never_weaker(rest, old.levels):
            return f"kem: {', '.join(sorted(added))} may be unavailable, and then {', then '.join(rest)}"
    if _gets_fewer_keys(new, old) and _uses_keys(old) and (len(new.levels) > 1 or _may_lose_a_layer(new)):
        return f"{_PRIORITY}, and then {_said(new)} with less"
    return ""


def weaker_with_more(new: TriedLevels, old: TriedLevels, comparable: Collection[LevelName]) -> str:
    """What may be weaker where more rules raise both outcomes, or ""; `comparable` are levels that both may reach.

    For lists of levels in descending order, what holds of each rule alone then holds of all of them together.
    """
    if why := weaker(new, old):
        return why
    if _gets_fewer_keys(new, old):
        return _PRIORITY
    if _above_signatures(new) or _above_signatures(old):
        return ""
    if SIGNED & set(comparable) and _QUANTA.index(new.quantum) < _QUANTA.index(old.quantum):
        return f"quantum: {new.quantum} instead of {old.quantum}"
    if PQC.name in comparable and (dropped := set(old.kem) - set(new.kem)):
        return f"kem: {', '.join(sorted(dropped))} no longer"
    return ""


_PRIORITY = "priority: low, so that keys in reserve are not available"


def _gets_fewer_keys(new: TriedLevels, old: TriedLevels) -> bool:
    return (new.priority, old.priority) == ("low", "normal") and new.sealed


def _uses_keys(each: TriedLevels) -> bool:
    return not QUANTUM.isdisjoint(each.levels) or (each.quantum != "off" and _is_signed(each))


def _may_lose_a_layer(each: TriedLevels) -> bool:
    return each.quantum == "preferred" and _is_signed(each)


def _is_signed(each: TriedLevels) -> bool:
    return not SIGNED.isdisjoint(each.levels)


def _above_signatures(each: TriedLevels) -> bool:
    """Whether all levels are above those with a layer under a quantum key or further KEMs."""
    return all(strength(level) > _STRONGEST_SIGNED for level in each.levels)


def descending(levels: Sequence[LevelName] | None) -> bool:
    """Whether the strongest levels are tried first, as in nearly all lists."""
    return levels is None or all(strength(one) > strength(other) for one, other in pairwise(levels))


def seals(levels: Sequence[LevelName] | None) -> bool:
    """Whether these are levels that seal."""
    return bool(levels) and not set(levels or ()).isdisjoint(SEALING)


def _said(each: TriedLevels) -> str:
    return ", then ".join(each.levels) or "held"
