"""The levels in policies: how they are written, and which of two is the stronger.
Standard: the order is that of relay/levels, otp the strongest; a trigger in a message raises and never lowers.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from itertools import combinations
from typing import Literal, get_args

from relay.levels import LEVELS, NAMES, PLAINTEXT, SEALING, LevelName, SealingLevel, strength

Required = Literal[SealingLevel, "sealed"]
"""A requirement for arriving mail; `sealed` is any level."""

Quantum = Literal["off", "preferred", "required"]
"""Whether pqc and rsa get one more layer under a quantum key."""

_NUMBERS = {level.number: level.name for level in LEVELS}
_SUPPLIES = tuple(
    frozenset((PLAINTEXT, *found)) for number in range(len(SEALING) + 1) for found in combinations(SEALING, number)
)
"""All combinations of levels that may be available at once."""
_QUANTA: tuple[Quantum, ...] = get_args(Quantum)


def parse_levels(value: object) -> tuple[LevelName, ...]:
    """`["otp", 2]` as ("otp", "aes"); raises ValueError with the fault and the correct spelling.

    Plaintext has no number and must be alone: nobody shall get it by a slip, nor as the last resort of a list.
    """
    if not isinstance(value, list) or not value:
        raise ValueError('write a list with at least one level, for instance ["otp", "aes"]')
    levels = tuple(parse_level(item) for item in value)
    for place, level in enumerate(levels):
        if level in levels[:place]:
            raise ValueError(f"{level!r} is listed twice; leave one out")
    if PLAINTEXT in levels and len(levels) > 1:
        raise ValueError(
            '"plaintext" stands alone: levels = ["plaintext"] lets this mail out in clear; '
            "leave it out to have the mail sealed"
        )
    return levels


def parse_level(item: object) -> LevelName:
    """`"aes"` or 2 as "aes"; raises ValueError naming the level that was probably meant."""
    for name in NAMES:
        if item == name:
            return name
    if type(item) is int and item in _NUMBERS:
        return _NUMBERS[item]
    close = difflib.get_close_matches(item.lower(), NAMES, n=1) if isinstance(item, str) else ()
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMES)}, or {_numbers()}"
    raise ValueError(f"{item!r} is not a level; {hint}")


def _numbers() -> str:
    """The numbers of levels, for messages: `1 to 4`."""
    first, last = min(_NUMBERS), max(_NUMBERS)
    return f"{first} to {last}" if len(_NUMBERS) == last - first + 1 else ", ".join(map(str, sorted(_NUMBERS)))


@lru_cache(maxsize=256)
def strength_of(protection: str) -> int:
    """The strength of a finished message, whose layers are named from the inside out: `pqc+aes` is as strong as aes.

    A name that is no level counts as nothing.
    """
    return max((strength(name) for name in NAMES if name in protection.split("+")), default=0)


@lru_cache(maxsize=10_000)
def strongest(lists: tuple[tuple[LevelName, ...], ...]) -> tuple[LevelName, ...]:
    """The list of levels that, whatever is available, is never weaker than any of these.

    It is one of them if possible. Else it has the levels of all, the strongest first, without those that are weaker
    than the weakest of any one list.
    """
    for levels in lists:
        if all(never_weaker(levels, other) for other in lists):
            return levels
    least = max(min(map(strength, levels)) for levels in lists)
    return tuple(level for level in NAMES if strength(level) >= least and any(level in levels for levels in lists))


@lru_cache(maxsize=10_000)
def never_weaker(levels: tuple[LevelName, ...], other: tuple[LevelName, ...]) -> bool:
    """Whether, whatever is available, the first available of `levels` is as strong as that of the other list.

    If nothing of the other is available, it must be as strong as the other's weakest.
    """
    for can in _SUPPLIES:
        first, others = (next((each for each in tried if each in can), None) for tried in (levels, other))
        least = strength(others) if others else min(map(strength, other))
        if first and strength(first) < least:
            return False
    return True


def raised_quantum(quantum: Quantum, wanted: Quantum) -> Quantum:
    """The stricter of the two."""
    return max(quantum, wanted, key=_QUANTA.index)
