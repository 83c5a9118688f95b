"""Decides whether all that fits one pattern fits others, and finds an address that fits some rules and not others.
Standard: a pattern is a regular language; what is called contained or apart here is so, whatever the text.

**Containment.** Put a letter that no other pattern has in place of each star of a pattern. If one of the others fits
this text, its own stars cover that letter. So they cover whatever may stand there: all of the pattern lies within. If
none fits, the text itself lies outside of all of them. So a pattern lies within several others only where it lies
within one of them, and one match decides. Where an address could not have such a letter, "no" may be said instead of
"yes", which is the safe side.

**Addresses** fit a pattern with their tag or without it, which takes more than a match. One that fits some patterns and
not others is searched for in the product of their automata. Each is an integer with one bit for each place reached.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice, product

from relay.policy.comparing.search import RuleScope, TooHard, letter_outside, searched
from relay.policy.comparing.time_limit import check_time
from relay.policy.names import untagged
from relay.policy.patterns import Glob

GUESSED = 20
"""Maximum number of guesses before a search."""
GUESSED_OF = 5
"""Maximum number of patterns of one rule that are guessed from."""
FILLING = "anybody"
"""Replaces a star, where any text may be."""


@lru_cache(maxsize=100_000)
def contains(wide: Glob, narrow: Glob) -> bool:
    """Whether every text that fits `narrow` fits `wide`."""
    return wide.matches(letter_outside(str(wide)).join(narrow.parts))


def within(narrow: Glob, wide: Collection[Glob]) -> bool:
    """Whether every text that fits `narrow` fits one of the others."""
    return narrow in wide or any(contains(each, narrow) for each in wide)


def address_within(narrow: Glob, wide: Collection[Glob], separators: str) -> bool:
    """The same for addresses, which fit a pattern with or without their tag.

    If the pattern has a tag before any star, all that fit it have that tag, and also fit the pattern without it.
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


def apart(one: Glob, other: Glob, separators: str) -> bool:
    """Whether certainly no address fits both."""
    check_time()
    return _apart(*sorted((one, other), key=str), separators)


@lru_cache(maxsize=100_000)
def _apart(one: Glob, other: Glob, separators: str) -> bool:
    domains = [str(each).rpartition("@")[2] for each in (one, other)]
    if domains[0] != domains[1] and "*" not in "".join(domains):
        return True
    try:
        return address((RuleScope((one,)), RuleScope((other,))), (), separators) is None
    except TooHard:
        return False


REWRITTEN = tuple(Glob.of(f"{start}*@*") for start in ("srs0", "srs1", "prvs"))
"""Patterns for SRS and BATV addresses (relay/policy/people.py); a few others fit as well."""


def may_be_rewritten(glob: Glob, separators: str) -> bool:
    """Whether an SRS or BATV address, which stands for another one, may fit the pattern as it is."""
    return not all(apart(glob, each, separators) for each in REWRITTEN)


def guessed(wanted: Sequence[RuleScope], unwanted: Sequence[RuleScope], separators: str) -> str | None:
    """An address in all of `wanted` and none of `unwanted`, if one is easily found."""
    for guess in _guesses(wanted):
        is_one = partial(RuleScope.is_one, address=guess, separators=separators)
        if all(map(is_one, wanted)) and not any(map(is_one, unwanted)):
            return guess
    return None


def address(wanted: Sequence[RuleScope], unwanted: Sequence[RuleScope], separators: str) -> str | None:
    """An address in all of `wanted` and none of `unwanted`; None if there is none.

    Addresses with an @ in the local part are left out, since their owner is in doubt. Raises TooHard if the search
    takes too long.
    """
    if any(_is_wider(scope, each, separators) for scope in unwanted for each in wanted or [RuleScope()]):
        return None
    if any(_in_vain(each, wanted, unwanted, separators) for each in wanted):
        return None
    if (guess := guessed(wanted, unwanted, separators)) is not None:
        return guess
    return searched(wanted, unwanted, separators)


def _is_wider(wide: RuleScope, narrow: RuleScope, separators: str) -> bool:
    """Whether each pattern of one scope lies within the other's, compared one by one."""
    check_time()
    fits = wide.fits is None or all(address_within(each, wide.fits, separators) for each in narrow.fits or ())
    if wide.fits is not None and narrow.fits is None:
        return False
    return fits and all(address_within(each, narrow.misses, separators) for each in wide.misses)


def _in_vain(scope: RuleScope, wanted: Sequence[RuleScope], unwanted: Sequence[RuleScope], separators: str) -> bool:
    """Whether each pattern of a wanted scope lies within what other scopes exclude."""
    check_time()
    missed = [glob for each in wanted for glob in each.misses]
    missed += [glob for each in unwanted if not each.misses for glob in each.fits or ()]
    return bool(scope.fits) and all(address_within(each, missed, separators) for each in scope.fits or ())


def _guesses(wanted: Sequence[RuleScope]) -> Iterator[str]:
    """Candidate addresses for which no search is needed."""
    globs = [scope.fits[:GUESSED_OF] for scope in wanted if scope.fits]
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
    """A text that fits all of these in most cases: the longest prefix, all parts between, the longest suffix."""
    exact = [pattern for pattern in patterns if "*" not in pattern]
    if exact:
        return exact[0]
    parts = [pattern.split("*") for pattern in patterns]
    begin, end = (max((each[place] for each in parts), key=len) for place in (0, -1))
    return FILLING.join([begin, *(part for each in parts for part in each[1:-1]), end])
