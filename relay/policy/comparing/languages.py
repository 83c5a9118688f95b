"""Decides whether all that fits one pattern fits others, and finds an address that fits some rules and not others.
Standard: a pattern is a regular language; what is called contained or apart here is so, whatever the text.

**Containment.** Put a letter that no other pattern has in place of each star of a pattern. If one of the others fits
this text, its own stars cover that letter, and so they cover whatever may stand there: all of the pattern lies within.
If none fits, the text itself lies outside of all of them. So a pattern lies within several others only where it lies
within one of them, and one match decides. Where an address could not have such a letter, "no" may be said instead of
"yes", which is the safe side.

**Addresses** fit a pattern with their tag or without it, which takes more than a match. One that fits some patterns and
not others is searched for in the product of their automata; each is an integer with one bit for each place reached.
"""

from __future__ import annotations

import string
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice, product
from typing import NamedTuple

from relay.policy.names import untagged
from relay.policy.patterns import Glob

MAX_WORK = 200_000
"""Maximum number of letters tried in one search, counted once for each pattern."""
GUESSED = 20
"""Maximum number of guesses before a search."""
GUESSED_OF = 5
"""Maximum number of patterns of one rule that are guessed from."""
FILLING = "anybody"
"""Stands in the place of a star, where any text may."""
_DOMAIN_LETTERS = string.ascii_lowercase + string.digits + "-_"


class TooHard(Exception):
    """The search ended without an answer."""


@lru_cache(maxsize=100_000)
def contains(wide: Glob, narrow: Glob) -> bool:
    """Whether every text that fits `narrow` fits `wide`."""
    return wide.matches(_letter_outside(str(wide)).join(narrow.parts))


def _letter_outside(text: str) -> str:
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)


def within(narrow: Glob, wide: Collection[Glob]) -> bool:
    """Whether every text that fits `narrow` fits one of the others."""
    return narrow in wide or any(contains(each, narrow) for each in wide)


def address_within(narrow: Glob, wide: Collection[Glob], separators: str) -> bool:
    """The same of addresses, which fit a pattern with their tag or without it.

    If the pattern has a tag before any star, all who fit it have that tag, and fit what it is without it as well.
    """
    if within(narrow, wide):
        return True
    bare = _without_tag(narrow, separators)
    return bare is not None and within(bare, wide)


@lru_cache(maxsize=10_000)
def _without_tag(glob: Glob, separators: str) -> Glob | None:
    local, at, domain = str(glob).rpartition("@")
    start = local.partition("*")[0]
    if not at or (bare := untagged(start, separators)) == start:
        return None
    return Glob.of(f"{bare}@{domain}")


class Who(NamedTuple):
    """Whom a rule is for: those who fit one of `fits` (anybody, where it is None), and none of `misses`."""

    fits: tuple[Glob, ...] | None = None
    misses: tuple[Glob, ...] = ()

    def is_one(self, address: str, separators: str) -> bool:
        """Whether it is for this address."""
        local, _, domain = address.rpartition("@")
        texts = (address, f"{untagged(local, separators)}@{domain}")

        def any_fits(globs: tuple[Glob, ...]) -> bool:
            return any(glob.matches(text) for glob in globs for text in texts)

        return (self.fits is None or any_fits(self.fits)) and not any_fits(self.misses)


def apart(one: Glob, other: Glob, separators: str) -> bool:
    """Whether it is sure that no address fits both."""
    return _apart(*sorted((one, other), key=str), separators)


@lru_cache(maxsize=100_000)
def _apart(one: Glob, other: Glob, separators: str) -> bool:
    domains = [str(each).rpartition("@")[2] for each in (one, other)]
    if domains[0] != domains[1] and "*" not in "".join(domains):
        return True
    try:
        return address((Who((one,)), Who((other,))), (), separators) is None
    except TooHard:
        return False


REWRITTEN = tuple(Glob.of(f"{start}*@*") for start in ("srs0", "srs1", "prvs"))
"""Which SRS and BATV addresses fit (relay/policy/people.py), and a few others."""


def may_be_rewritten(glob: Glob, separators: str) -> bool:
    """Whether an SRS or BATV address, which stands for another one, may fit the pattern as it is."""
    return not all(apart(glob, each, separators) for each in REWRITTEN)


def guessed(wanted: Sequence[Who], unwanted: Sequence[Who], separators: str) -> str | None:
    """An address that is one of all `wanted` and of none of `unwanted`, if one is easily found."""
    for guess in _guesses(wanted):
        is_one = partial(Who.is_one, address=guess, separators=separators)
        if all(map(is_one, wanted)) and not any(map(is_one, unwanted)):
            return guess
    return None


def address(wanted: Sequence[Who], unwanted: Sequence[Who], separators: str) -> str | None:
    """An address that is one of all `wanted` and of none of `unwanted`; None where there is none.

    No address with an @ in its local part is looked for: whose it is, is in doubt. Raises TooHard where it would take
    too long to find out.
    """
    if any(_is_wider(who, each, separators) for who in unwanted for each in wanted or [Who()]):
        return None
    if any(_in_vain(each, wanted, unwanted, separators) for each in wanted):
        return None
    if (guess := guessed(wanted, unwanted, separators)) is not None:
        return guess
    return _searched(_Search(wanted, unwanted, separators))


def _is_wider(wide: Who, narrow: Who, separators: str) -> bool:
    """Whether all of one are of the other, as patterns tell one by one."""
    fits = wide.fits is None or all(address_within(each, wide.fits, separators) for each in narrow.fits or ())
    if wide.fits is not None and narrow.fits is None:
        return False
    return fits and all(address_within(each, narrow.misses, separators) for each in wide.misses)


def _in_vain(who: Who, wanted: Sequence[Who], unwanted: Sequence[Who], separators: str) -> bool:
    """Whether each pattern of one who is wanted lies within what others miss, or are not wanted for."""
    missed = [glob for each in wanted for glob in each.misses]
    missed += [glob for each in unwanted if not each.misses for glob in each.fits or ()]
    return bool(who.fits) and all(address_within(each, missed, separators) for each in who.fits or ())


def _guesses(wanted: Sequence[Who]) -> Iterator[str]:
    """Addresses that may well be wanted, for which no search is needed."""
    globs = [who.fits[:GUESSED_OF] for who in wanted if who.fits]
    if not globs:
        yield f"{FILLING}@{FILLING}.invalid"
        return
    for some in islice(product(*globs), GUESSED):
        yield from (guess for each in some if "@" in (guess := filled(each)))
        local, domain = (_common([str(glob).rpartition("@")[place] for glob in some]) for place in (0, 2))
        yield f"{local}@{domain}"


def filled(glob: Glob) -> str:
    """An address, or another text, that fits the pattern."""
    return FILLING.join(glob.parts)


def _common(patterns: Sequence[str]) -> str:
    """A text that fits all of these in most cases: the longest beginning, all that stands between, the longest end."""
    exact = [pattern for pattern in patterns if "*" not in pattern]
    if exact:
        return exact[0]
    parts = [pattern.split("*") for pattern in patterns]
    begin, end = (max((each[place] for each in parts), key=len) for place in (0, -1))
    return FILLING.join([begin, *(part for each in parts for part in each[1:-1]), end])


class _State(NamedTuple):
    """How far an address has been read.

    `whole` and `bare` have the places reached in each pattern by the address, and by what it is without its tag.
    """

    part: str
    whole: tuple[int, ...]
    bare: tuple[int, ...]


_BEGIN, _LOCAL, _UNTAGGED, _TAG, _LABEL, _DOMAIN = "begin", "local", "untagged", "tag", "label", "domain"
"""Before everything, in a local part, in one that has no tag, in a tag, before a label, and within a label."""


def _searched(search: _Search) -> str | None:
    """The shortest address. Raises TooHard."""
    queue = deque([search.first])
    came: dict[_State, tuple[_State, str] | None] = {search.first: None}
    left = MAX_WORK
    while queue:
        state = queue.popleft()
        if state.part == _DOMAIN and search.found(state):
            return _spelled(came, state)
        for letter, after in search.steps(state):
            left -= search.width
            if after not in came and search.alive(after):
                came[after] = (state, letter)
                queue.append(after)
        if left < 0:
            raise TooHard
    return None


def _spelled(came: dict[_State, tuple[_State, str] | None], state: _State) -> str:
    letters: list[str] = []
    while (before := came[state]) is not None:
        state, letter = before
        letters.append(letter)
    return "".join(reversed(letters))


class _Search:
    """The automaton of all addresses, with how far each pattern has been read."""

    def __init__(self, wanted: Sequence[Who], unwanted: Sequence[Who], separators: str) -> None:
        globs = list(dict.fromkeys(glob for who in (*wanted, *unwanted) for glob in (*(who.fits or ()), *who.misses)))
        self._automata = [_automaton(glob) for glob in globs]
        self.width = len(globs) + 1
        place = {glob: number for number, glob in enumerate(globs)}

        def places(who: Who) -> tuple[list[int] | None, list[int]]:
            return None if who.fits is None else [place[each] for each in who.fits], [
                place[each] for each in who.misses
            ]

        self._wanted, self._unwanted = list(map(places, wanted)), list(map(places, unwanted))
        self._separators = separators
        # Those that patterns tell apart, and one that stands for all others.
        own = {letter for glob in globs for part in glob.parts for letter in part} - {"@"}
        local = own | set(separators)
        other = next((letter for letter in _DOMAIN_LETTERS if letter not in local), _letter_outside("".join(local)))
        self._local_letters = (other, *sorted(local))
        others = [letter for letter in _DOMAIN_LETTERS if letter not in own]
        self._domain_letters = (*others[:1], *sorted(own & set(_DOMAIN_LETTERS)))
        start = (1,) * len(globs)
        self.first = _State(_BEGIN, start, start)

    def steps(self, state: _State) -> Iterator[tuple[str, _State]]:
        """Each letter that may come next, and where it leads."""
        part, whole, bare = state
        if part in (_LABEL, _DOMAIN):
            for letter in self._domain_letters:
                yield letter, _State(_DOMAIN, self._moved(whole, letter), self._moved(bare, letter))
            if part == _DOMAIN:
                yield ".", _State(_LABEL, self._moved(whole, "."), self._moved(bare, "."))
            return
        for letter in self._local_letters:
            after, separates = self._moved(whole, letter), letter in self._separators
            if part == _TAG or (part == _LOCAL and separates):
                yield letter, _State(_TAG, after, bare)
            else:  # nothing stands before a separator at the beginning
                begun = _UNTAGGED if part == _UNTAGGED or separates else _LOCAL
                yield letter, _State(begun, after, self._moved(bare, letter))
        if part != _BEGIN:
            yield "@", _State(_LABEL, self._moved(whole, "@"), self._moved(bare, "@"))

    def alive(self, state: _State) -> bool:
        """Whether those wanted may still be found behind this state."""
        reached = [one | other for one, other in zip(state.whole, state.bare, strict=True)]
        return all(fits is None or any(reached[each] for each in fits) for fits, _ in self._wanted)

    def found(self, state: _State) -> bool:
        """Whether what has been read up to this state is wanted."""
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
        """The state after one more letter; 0 where nothing fits any more."""
        return ((state << 1) & self._after.get(letter, 0)) | (state & self._stars)


@lru_cache(maxsize=10_000)
def _automaton(glob: Glob) -> _Automaton:
    return _Automaton(glob)
