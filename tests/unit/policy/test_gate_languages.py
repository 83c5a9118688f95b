"""Containment of patterns, and addresses that fit some rules and not others: what is said of them is so.
Standard: automata-lib decides containment a second time; addresses of a few letters are all tried.
"""

from __future__ import annotations

import random
from functools import cache
from itertools import product

import pytest
from automata.fa.dfa import DFA
from automata.fa.nfa import NFA

from relay.policy.comparing.languages import address, address_within, apart, contains, within
from relay.policy.comparing.search import RuleScope, TooHard
from relay.policy.names import untagged
from relay.policy.patterns import Glob

LETTERS = "ab."
OTHER = "z"
"""A letter that is in none of the patterns."""


@cache
def language(pattern: str) -> DFA:
    """All texts of a few letters that fit a pattern."""
    regex = "".join(".*" if letter == "*" else rf"\{letter}" if letter == "." else letter for letter in pattern)
    return DFA.from_nfa(NFA.from_regex(regex, input_symbols={*LETTERS, OTHER}))


def some_patterns(number: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choice(LETTERS + "**") for _ in range(chance.randrange(1, 7))) for _ in range(number)]


def test_a_pattern_lies_within_another_as_automata_say() -> None:
    patterns = some_patterns(600, 1)
    found = {True: 0, False: 0}
    for one, other in zip(patterns[::2], patterns[1::2], strict=True):
        expected = language(one).issubset(language(other))
        assert contains(Glob.of(other), Glob.of(one)) == expected, (one, other)
        found[expected] += 1
    assert min(found.values()) > 20


def test_what_lies_within_several_patterns_lies_within_one_of_them() -> None:
    patterns = some_patterns(600, 2)
    for one, *others in zip(patterns[::3], patterns[1::3], patterns[2::3], strict=True):
        both = language(others[0]).union(language(others[1]))
        assert within(Glob.of(one), list(map(Glob.of, others))) == language(one).issubset(both), (one, others)


ADDRESSES = [
    f"{''.join(local)}@{domain}"
    for length in (1, 2, 3, 4)
    for local in product("a+-z", repeat=length)
    for domain in ("a", "b", "a.b", "z")
]


def some_address_patterns(number: int, seed: int) -> list[Glob]:
    chance = random.Random(seed)
    locals_ = ["".join(chance.choice("a+-z**") for _ in range(chance.randrange(1, 5))) for _ in range(number)]
    return [Glob.of(f"{local}@{chance.choice(['a', 'b', '*', '*.b', 'a.b', 'a*'])}") for local in locals_]


def fits(glob: Glob, text: str, separators: str) -> bool:
    local, _, domain = text.rpartition("@")
    return glob.matches(text) or glob.matches(f"{untagged(local, separators)}@{domain}")


@pytest.mark.parametrize("separators", ["+", "+-", ""])
def test_addresses_lie_within_patterns_with_their_tags_and_without(separators: str) -> None:
    globs = some_address_patterns(400, 3)
    said = 0
    for one, other in zip(globs[::2], globs[1::2], strict=True):
        if address_within(one, [other], separators):
            said += 1
            assert all(fits(other, each, separators) for each in ADDRESSES if fits(one, each, separators)), (one, other)
    assert said > 10


@pytest.mark.parametrize("separators", ["+", "+-", ""])
def test_two_patterns_are_called_apart_where_no_address_fits_both(separators: str) -> None:
    globs = some_address_patterns(300, 4)
    found = {True: 0, False: 0}
    for one, other in zip(globs[::2], globs[1::2], strict=True):
        both = any(fits(one, each, separators) and fits(other, each, separators) for each in ADDRESSES)
        said = apart(one, other, separators)
        assert not (said and both), (one, other)
        found[said] += 1
    assert min(found.values()) > 20


@pytest.mark.parametrize("separators", ["+", "+-"])
def test_an_address_is_found_where_there_is_one_and_is_one_that_is_wanted(separators: str) -> None:
    chance = random.Random(5)
    globs = some_address_patterns(400, 6)

    def who() -> RuleScope:
        fitting = tuple(chance.sample(globs, chance.choice([1, 1, 2]))) if chance.random() < 0.9 else None
        return RuleScope(fitting, tuple(chance.sample(globs, chance.choice([0, 0, 1]))))

    found = {True: 0, False: 0}
    for _ in range(300):
        wanted = [who() for _ in range(chance.choice([1, 2]))]
        unwanted = [who() for _ in range(chance.choice([0, 1, 2]))]
        try:
            one = address(wanted, unwanted, separators)
        except TooHard:
            continue
        if one is not None:
            assert all(each.is_one(one, separators) for each in wanted)
            assert not any(each.is_one(one, separators) for each in unwanted)
        else:
            for text in ADDRESSES:
                is_one = all(each.is_one(text, separators) for each in wanted)
                assert not is_one or any(each.is_one(text, separators) for each in unwanted), (wanted, unwanted, text)
        found[one is not None] += 1
    assert min(found.values()) > 20


def test_a_search_that_is_too_hard_says_so() -> None:
    wanted = [RuleScope(tuple(Glob.of(f"*a{number}*b{number}*@*c{number}*") for number in range(30)))]
    unwanted = [RuleScope((Glob.of("*anybody*@*"),)), RuleScope((Glob.of("*b*a*@*"),))]
    with pytest.raises(TooHard):
        address(wanted, unwanted, "+")
