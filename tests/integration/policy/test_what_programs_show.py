"""What parsers of real mail programs show is what rules see: jsmime (Thunderbird), mailparser, postal-mime, emailjs.
Standard: none of them shows anything that a rule names and does not fit; tests/testlib/spellings has the messages.
"""

from __future__ import annotations

import random

import pytest

from tests.testlib import judges
from tests.testlib.long import sized
from tests.testlib.spellings import ALL, Spelling, harmless
from tests.testlib.spellings.generated import generated
from tests.unit.policy.test_spellings import WANTED, Rules

pytestmark = pytest.mark.skipif(bool(judges.missing()), reason=judges.missing())

GENERATED = 250
SHOWN_BY_EACH = 800
"""Each judge shows at least so many of the spellings: else it does not judge."""


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    """One for all tests here."""
    return Rules(tmp_path_factory.mktemp("rules"))


def past(spellings: list[Spelling], rules: Rules) -> tuple[list[str], dict[str, int]]:
    """What is shown by somebody and not seen by its rule; and how many each judge shows."""
    missed, counts = [], dict.fromkeys(judges.NPM_JUDGES, 0)
    for spelling, replies in zip(spellings, judges.shown([each.message for each in spellings]), strict=True):
        shows = judges.who_shows(spelling, replies.items())
        for judge in shows:
            counts[judge] = counts.get(judge, 0) + 1
        if shows and rules.miss(spelling):
            missed.append(f"{spelling} ({', '.join(shows)}): {spelling.message!r}")
    return missed, counts


def test_no_spelling_that_some_program_shows_gets_past_its_rule(rules: Rules) -> None:
    missed, counts = past(list(ALL), rules)
    assert missed == []
    assert {
        judge: count for judge, count in counts.items() if judge in judges.NPM_JUDGES and count < SHOWN_BY_EACH
    } == {}


def test_nor_does_one_that_is_put_together_at_random(rules: Rules) -> None:
    """The long form tries others each time."""
    number = sized(0, 20_000)
    seed = random.randrange(2**32) if number else 1
    for batch in range(max(1, number // 2000)):
        missed, _ = past(generated(min(number, 1000) or GENERATED, seed + batch), rules)
        assert missed == [], f"seed {seed + batch}"


def test_in_ordinary_mail_no_program_shows_what_rules_name() -> None:
    named = list(harmless.messages())
    for (name, _), replies in zip(named, judges.shown([message for _, message in named]), strict=True):
        for condition, wanted in WANTED if name not in harmless.STRUCTURES else ():
            spelling = Spelling(name, condition, wanted, b"")
            assert judges.who_shows(spelling, replies.items()) == []
