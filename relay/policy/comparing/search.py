"""Searches for an address that fits some patterns and not others, with its tag or without it.
Standard: a pattern is a regular language; its automaton is an integer with one bit for each place reached.
"""

from __future__ import annotations

import string
from collections import deque
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from relay.policy.names import untagged
from relay.policy.patterns import Glob

MAX_WORK = 200_000
"""Maximum number of letters tried in one search, counted once for each pattern."""
_DOMAIN_LETTERS = string.ascii_lowercase + string.digits + "-_"


def letter_outside(text: str) -> str:
    """A letter that a text does not have."""
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)


class TooHard(Exception):
    """The search ended without an answer."""


class RuleScope(NamedTuple):
    """The people a rule applies to: those that fit one of `fits` (anybody if None), and none of `misses`."""

    fits: tuple[Glob, ...] | None = None
    misses: tuple[Glob, ...] = ()

    def is_one(self, address: str, separators: str) -> bool:
        """Whether it includes this address."""
        local, _, domain = address.rpartition("@")
        texts = (address, f"{untagged(local, separators)}@{domain}")

        def any_fits(globs: tuple[Glob, ...]) -> bool:
            return any(glob.matches(text) for glob in globs for text in texts)

        return (self.fits is None or any_fits(self.fits)) and not any_fits(self.misses)


class _ReadSoFar(NamedTuple):
    """How far an address has been read.

    `whole` and `bare` are the states of each pattern for the address with and without its tag.
    """

    part: str
    whole: tuple[int, ...]
    bare: tuple[int, ...]


_BEGIN, _LOCAL, _UNTAGGED, _TAG, _LABEL, _DOMAIN = "begin", "local", "untagged", "tag", "label", "domain"
"""Before everything, in a local part, in one that has no tag, in a tag, before a label, and within a label."""


def searched(wanted: Sequence[RuleScope], unwanted: Sequence[RuleScope], separators: str) -> str | None:
    """The shortest address in all of `wanted` and none of `unwanted`. Raises TooHard."""
    search = _Search(wanted, unwanted, separators)
    queue = deque([search.first])
    predecessors: dict[_ReadSoFar, tuple[_ReadSoFar, str] | None] = {search.first: None}
    left = MAX_WORK
    while queue:
        state = queue.popleft()
        if state.part == _DOMAIN and search.found(state):
            return _spelled(predecessors, state)
        for letter, after in search.steps(state):
            left -= search.width
            if after not in predecessors and search.alive(after):
                predecessors[after] = (state, letter)
                queue.append(after)
        if left < 0:
            raise TooHard
    return None


def _spelled(predecessors: dict[_ReadSoFar, tuple[_ReadSoFar, str] | None], state: _ReadSoFar) -> str:
    letters: list[str] = []
    while (before := predecessors[state]) is not None:
        state, letter = before
        letters.append(letter)
    return "".join(reversed(letters))


class _Search:
    """The automaton of all addresses, with how far each pattern has been read."""

    def __init__(self, wanted: Sequence[RuleScope], unwanted: Sequence[RuleScope], separators: str) -> None:
        globs = list(
            dict.fromkeys(glob for scope in (*wanted, *unwanted) for glob in (*(scope.fits or ()), *scope.misses))
        )
        self._automata = [_automaton(glob) for glob in globs]
        self.width = len(globs) + 1
        place = {glob: number for number, glob in enumerate(globs)}

        def places(scope: RuleScope) -> tuple[list[int] | None, list[int]]:
            return None if scope.fits is None else [place[each] for each in scope.fits], [
                place[each] for each in scope.misses
            ]

        self._wanted, self._unwanted = list(map(places, wanted)), list(map(places, unwanted))
        self._separators = separators
        # The letters that patterns distinguish, and one that represents all others.
        own = {letter for glob in globs for part in glob.parts for letter in part} - {"@"}
        local = own | set(separators)
        other = next((letter for letter in _DOMAIN_LETTERS if letter not in local), letter_outside("".join(local)))
        self._local_letters = (other, *sorted(local))
        others = [letter for letter in _DOMAIN_LETTERS if letter not in own]
        self._domain_letters = (*others[:1], *sorted(own & set(_DOMAIN_LETTERS)))
        start = (1,) * len(globs)
        self.first = _ReadSoFar(_BEGIN, start, start)

    def steps(self, state: _ReadSoFar) -> Iterator[tuple[str, _ReadSoFar]]:
        """Each letter that may come next, and where it leads."""
        part, whole, bare = state
        if part in (_LABEL, _DOMAIN):
            for letter in self._domain_letters:
                yield letter, _ReadSoFar(_DOMAIN, self._moved(whole, letter), self._moved(bare, letter))
            if part == _DOMAIN:
                yield ".", _ReadSoFar(_LABEL, self._moved(whole, "."), self._moved(bare, "."))
            return
        for letter in self._local_letters:
            after, separates = self._moved(whole, letter), letter in self._separators
            if part == _TAG or (part == _LOCAL and separates):
                yield letter, _ReadSoFar(_TAG, after, bare)
            else:  # a separator at the beginning has nothing before it
                begun = _UNTAGGED if part == _UNTAGGED or separates else _LOCAL
                yield letter, _ReadSoFar(begun, after, self._moved(bare, letter))
        if part != _BEGIN:
            yield "@", _ReadSoFar(_LABEL, self._moved(whole, "@"), self._moved(bare, "@"))

    def alive(self, state: _ReadSoFar) -> bool:
        """Whether a wanted address may still be reached from this state."""
        reached = [one | other for one, other in zip(state.whole, state.bare, strict=True)]
        return all(fits is None or any(reached[each] for each in fits) for fits, _ in self._wanted)

    def found(self, state: _ReadSoFar) -> bool:
        """Whether the address read up to this state is wanted."""
        fitting = [
            bool((one | other) & automaton.end)
            for automaton, one, other in zip(self._automata, state.whole, state.bare, strict=True)
        ]

        def is_one(who: tuple[list[int] | None, list[int]]) -> bool:
            fits, misses = who
            return (fits is None or any(fitting[each] for each in fits)) and not any(fitting[each] for each in misses)

        return all(map(is_one, self._wanted)) and not any(map(is_one, self._unwanted))

    def _moved(self, places: tuple[int, ...], letter: str) -> tuple[int, ...]:
        return tuple(
            place and automaton.step(place, letter) for automaton, place in zip(self._automata, places, strict=True)
        )


class _Automaton:
    """One pattern: bit number n of a state says that the first n of its letters may have been read."""

    def __init__(self, glob: Glob) -> None:
        literal = "".join(glob.parts)
        self._after: dict[str, int] = {}
        for place, letter in enumerate(literal, 1):
            self._after[letter] = self._after.get(letter, 0) | 1 << place
        self._stars = 0
        place = 0
        for part in glob.parts[:-1]:
            place += len(part)
            self._stars |= 1 << place
        self.end = 1 << len(literal)

    def step(self, state: int, letter: str) -> int:
        """The state after one more letter; 0 if nothing can fit."""
        return ((state << 1) & self._after.get(letter, 0)) | (state & self._stars)


@lru_cache(maxsize=10_000)
def _automaton(glob: Glob) -> _Automaton:
    return _Automaton(glob)
