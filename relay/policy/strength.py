"""The levels in policies: how they are written, which of two is the stronger, and how lists are put together.
Standard: the one order of relay/levels; of all that is listed, what is weaker than the strictest guarantee is cut.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from relay.levels import LEVELS, NAMES, ON_TOP, PLAINTEXT, LevelName, strength

Required = LevelName | Literal["sealed"]
"""The weakest level that mail may arrive with, of those that seal; `sealed` is any between relays."""

ANY_QUANTUM_KEY = '["otp", "aes", "pqc+aes"]'
"""The list for any level with a quantum key, as a file has it; rsa+aes is left out, since pqc is stronger."""

_NUMBERS: dict[int, LevelName] = {level.number: level.name for level in LEVELS}


def parse_levels(value: object) -> tuple[LevelName, ...]:
    """`["otp", 2]` as ("otp", "aes"), strongest first; raises ValueError with the fault and the correct spelling.

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
    return _descending(levels)


def parse_level(item: object) -> LevelName:
    """`"aes"` or 2 as "aes"; raises ValueError naming the level that was probably meant."""
    for name in NAMES:
        if item == name:
            return name
    if type(item) is int and item in _NUMBERS:
        return _NUMBERS[item]
    word = item.lower() if isinstance(item, str) else ""
    close = difflib.get_close_matches(word, NAMES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(NAMES)}, or {_numbers()}"
    if word in ("clear", "cleartext", "none"):
        hint = f"did you mean {PLAINTEXT!r}?"
    if "quantum" in word or "qkd" in word:
        hint = f"any level that uses a quantum key is {ANY_QUANTUM_KEY}"
    raise ValueError(f"{item!r} is not a level; {hint}")


def _numbers() -> str:
    """The numbers of levels, for messages: `1 to 4`."""
    first, last = min(_NUMBERS), max(_NUMBERS)
    return f"{first} to {last}" if len(_NUMBERS) == last - first + 1 else ", ".join(map(str, sorted(_NUMBERS)))


def _descending(levels: Iterable[LevelName]) -> tuple[LevelName, ...]:
    return tuple(sorted(levels, key=strength, reverse=True))


@lru_cache(maxsize=256)
def strength_of(protection: str) -> int:
    """The strength of a finished message, whose layers are named from the inside out: `pqc+hqc-256` is that of pqc.

    A name that is no level counts as nothing.
    """
    first, *around = protection.split("+")
    level = f"{first}+{ON_TOP}" if around and around[-1] == ON_TOP else first
    return next((strength(name) for name in NAMES if name == level), 0)


def guarantee(levels: tuple[LevelName, ...]) -> LevelName:
    """The level that a list guarantees: the weakest in it."""
    return min(levels, key=strength)


@lru_cache(maxsize=10_000)
def united(lists: tuple[tuple[LevelName, ...], ...]) -> tuple[LevelName, ...]:
    """All levels of these lists, strongest first, without those weaker than the strictest of their guarantees.

    Whatever is available, it is never weaker than any of the lists, and no other such list is less strict. The order
    of the lists does not matter. Plaintext, which stands alone in its list, is left only if all lists are that.
    """
    least = max(strength(guarantee(levels)) for levels in lists)
    return _descending({level for levels in lists for level in levels if strength(level) >= least})


def never_weaker(levels: tuple[LevelName, ...], other: tuple[LevelName, ...]) -> bool:
    """Whether, whatever is available, mail leaves by `levels` as strong as by the other list, or does not leave.

    If nothing of the other is available, it is as strong as the other's guarantee.
    """
    return united((levels, other)) == levels
