"""The levels as policies name and compare them: how they are written, and which of two is the stronger.
Standard: the order is that of their numbers, otp (1) the strongest; a trigger in a message raises and never lowers.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from itertools import combinations
from typing import Literal, get_args

LevelName = Literal["otp", "aes", "pqc", "rsa", "plaintext"]
"""How a message is sealed; `plaintext` is not at all."""

Required = Literal["otp", "aes", "pqc", "rsa", "sealed"]
"""What arriving mail must have; `sealed` is any level."""

Quantum = Literal["off", "preferred", "required"]
"""Whether pqc and rsa get one more layer under a quantum key."""

NAMES: tuple[LevelName, ...] = get_args(LevelName)
SEALING = NAMES[:4]
"""Levels that seal, with the numbers 1 to 4."""
_SUPPLIES = tuple(
    frozenset(("plaintext", *found)) for number in range(len(SEALING) + 1) for found in combinations(SEALING, number)
)
"""All that may be available at once."""
_QUANTA: tuple[Quantum, ...] = get_args(Quantum)


def parse_levels(value: object) -> tuple[LevelName, ...]:
    """`["otp", 2]` as ("otp", "aes"); raises ValueError saying what is wrong and how to write it.

    There is no number for plaintext, and it stands alone: nobody shall get it by a slip, nor as the last
    resort of a list.
    """
    if not isinstance(value, list) or not value:
        raise ValueError('write a list with at least one level, for instance ["otp", "aes"]')
    levels = tuple(parse_level(item) for item in value)
    for place, level in enumerate(levels):
        if level in levels[:place]:
            raise ValueError(f"{level!r} is listed twice; leave one out")
    if "plaintext" in levels and len(levels) > 1:
        raise ValueError(
            '"plaintext" stands alone: levels = ["plaintext"] lets this mail out in clear; '
            "leave it out to have the mail sealed"
        )
    return levels


def parse_level(item: object) -> LevelName:
    """`"aes"` or 2 as "aes"; raises ValueError naming the level that was probably meant."""
    for number, name in enumerate(NAMES, 1):
        if item == name or (name in SEALING and type(item) is int and item == number):
            return name
    close = difflib.get_close_matches(item.lower(), NAMES, n=1) if isinstance(item, str) else ()
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMES)}, or 1 to {len(SEALING)}"
    raise ValueError(f"{item!r} is not a level; {hint}")


def strength(level: LevelName) -> int:
    """From 4 (otp) down to 0 (plaintext)."""
    return len(SEALING) - NAMES.index(level)


@lru_cache(maxsize=256)
def strength_of(protection: str) -> int:
    """The strength of a finished message, whose layers are named from the inside out: `pqc+aes` is as strong as aes.

    A name that is no level counts as nothing.
    """
    return max((strength(name) for name in NAMES if name in protection.split("+")), default=0)


@lru_cache(maxsize=10_000)
def strongest(lists: tuple[tuple[LevelName, ...], ...]) -> tuple[LevelName, ...]:
    """What comes of several lists of levels that all count; whatever is available, it is never weaker than any of them.

    That is one of them where it does. Else the levels of all, the strongest first, without those that are weaker than
    the weakest of any one list.
    """
    for levels in lists:
        if all(never_weaker(levels, other) for other in lists):
            return levels
    least = max(min(map(strength, levels)) for levels in lists)
    return tuple(level for level in NAMES if strength(level) >= least and any(level in levels for levels in lists))


@lru_cache(maxsize=10_000)
def never_weaker(levels: tuple[LevelName, ...], other: tuple[LevelName, ...]) -> bool:
    """Whether, whatever is available, the first available of `levels` is as strong as that of the other list.

    Where nothing of the other is available, it has to be as strong as the weakest there.
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
