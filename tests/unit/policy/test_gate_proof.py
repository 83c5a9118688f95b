"""What a proof stands on: lists of levels as a lattice, outcomes as the relay decides, and which rule implies which.
Standard: policies/README.md; everything small is tried in all ways.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import combinations, permutations

import pytest

from relay.levels import SEALING, LevelName
from relay.policy.comparing.implied import Assumptions, implies
from relay.policy.comparing.items import Conditions, conditions_of
from relay.policy.comparing.outcomes import descending
from relay.policy.floors import read_floors
from relay.policy.strength import never_weaker, strongest
from tests.system.gate.campaign import Figures, run
from tests.testlib.long import sized

CLEAR: tuple[LevelName, ...] = ("plaintext",)
LISTS = [
    *(tuple(level for level in SEALING if level in some) for number in range(1, len(SEALING) + 1) for some in combinations(SEALING, number)),
    CLEAR,
]  # fmt: skip
"""All lists of levels in descending order."""


def test_lists_in_descending_order_are_a_lattice_and_the_strongest_of_some_is_their_join() -> None:
    assert all(map(descending, LISTS))
    assert len(LISTS) == 2 ** len(SEALING)
    for one in LISTS:
        for other in LISTS:
            assert one == other or not (never_weaker(one, other) and never_weaker(other, one))
            join = strongest((one, other))
            assert join in LISTS
            assert join == strongest((other, one))
            for third in LISTS:
                above = never_weaker(third, one) and never_weaker(third, other)
                assert above == never_weaker(third, join), (one, other, third)
                assert strongest((one, other, third)) == strongest((join, third))
                assert strongest((one, other, third)) == strongest((third, other, one))


def test_without_that_order_they_are_none() -> None:
    """Therefore all combinations of rules are tried there."""
    every = [*(some for number in range(1, len(SEALING) + 1) for some in permutations(SEALING, number)), CLEAR]
    assert any(
        never_weaker(one, other) and never_weaker(other, third) and not never_weaker(one, third)
        for one in every[:20]
        for other in every
        for third in every
    )


@pytest.mark.parametrize("bounce", [False, True])
def test_levels_that_are_too_large_leave_a_join_as_it_is(bounce: bool) -> None:
    """The null sender's mail loses level otp after lists have been joined, and may lose it before as well."""
    lost = {"otp"} if bounce else set()
    for one in LISTS:
        for other in LISTS:
            after = tuple(level for level in strongest((one, other)) if level not in lost)
            before = [tuple(level for level in each if level not in lost) for each in (one, other)]
            assert after == (strongest(tuple(before)) if all(before) else ())


def of(condition: str) -> Conditions:
    [floor] = read_floors(f'[[floor]]\n{condition}\nlevels = ["otp"]\n', "floors.toml")
    return conditions_of(floor.when, {})


IMPLIED = [
    ('sender = "ceo@a.example"', 'sender = ["x@b.example", "*@a.example"]'),
    ('sender = "ceo+x@a.example"', 'sender = "ceo@a.example"'),
    ('not_sender = "*@a.example"', 'not_sender = "ceo@a.example"'),
    ('author = "ceo@a.example"', 'not_author = "*@b.example"'),
    ('login = "ann"', 'login = "a*"'),
    ('login = "ann"', 'not_login = "b*"'),
    ('login = "<>"', 'login = "*"'),
    ('subject_tag = "[secret]"', 'subject_tag = ["plan", "secret"]'),
    ('header = "X-A: yes"', 'header = "x-a"'),
    ('header = "X-A"', 'header = "X-A: *"'),
    ('attachment_name = "*.xlsx"\nattachment_type = "application/pdf"', 'attachment_name = "*.xls*"'),
    ('attachment_name = "*.xlsx"\nsender = "ceo@a.example"', 'sender = "*@a.example"'),
    ('recipient = "a@b.example"', 'not_recipient = "*@c.example"'),
]
NOT_IMPLIED = [
    ('sender = "*@a.example"', 'sender = "ceo@a.example"'),
    ('sender = "ceo@a.example"', 'sender = "ceo+x@a.example"'),
    ('not_sender = "ceo@a.example"', 'not_sender = "*@a.example"'),
    ('sender = "ceo@a.example"', 'not_sender = "ceo+x@a.example"'),
    ('sender = "ceo@a.example"', 'author = "ceo@a.example"'),
    ('subject_tag = "secret"', 'subject_tag = "[secret]"'),
    ('header = "X-A"', 'header = "X-A: y*"'),
    ('header = "X-A: y*"', 'header = "X-B: y*"'),
    ('attachment_name = "*.xlsx"', 'attachment_type = "*/*"'),
    ('subject_tag = "secret"', 'header = "Subject: *secret*"'),
    ('author = ["a@a.example", "b@a.example"]', 'author = "a@a.example"'),
]


@pytest.mark.parametrize(("narrow", "wide"), IMPLIED)
def test_a_rule_applies_wherever_a_narrower_one_does(narrow: str, wide: str) -> None:
    assert implies(of(narrow), of(wide), Assumptions("+"))


@pytest.mark.parametrize(("narrow", "wide"), NOT_IMPLIED)
def test_of_another_rule_that_is_not_said(narrow: str, wide: str) -> None:
    assert not implies(of(narrow), of(wide), Assumptions("+"))


def test_whom_an_exception_names_may_be_an_address_that_stands_for_another_one() -> None:
    """SRS0=...=ceo@relay.example is the ceo for one rule, and at relay.example for the other."""
    narrow, wide = of('sender = "ceo@a.example"'), of('not_sender = "*@relay.example"')
    assert implies(narrow, wide, Assumptions("+"))
    assert not implies(narrow, wide, Assumptions("+", rewritten=True))


def test_the_gate_misses_nothing_that_an_independent_reference_finds() -> None:
    figures = Figures()
    run(range(1, 1 + sized(24, 20_000)), figures, mails=150, today=datetime.now(UTC).date())
    assert not figures.missed
    assert not figures.disagreed
    assert figures.false_alarms.total() <= sized(5, 2000)
