"""Groups of thousands: a mail is compared with them by look-ups, and what is left to compare counts as work.
Standard: policies/README.md says what fits; comparisons are counted, and no time is measured.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from relay.policy.content import MessageFacts
from relay.policy.load import load_policies
from relay.policy.patterns import Glob, Patterns
from tests.testlib.policy_files import PEERS, write

CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
FLOORS = "".join(f'[[floor]]\nsender = ["group:a", "group:b"]\nlevels = ["{level}"]\n' for level in ("otp", "aes"))


@pytest.fixture(name="compared")
def _compared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each text that was compared with one pattern."""
    texts: list[str] = []
    matches = Glob.matches

    def counted(self: Glob, text: str) -> bool:
        texts.append(text)
        return matches(self, text)

    monkeypatch.setattr(Glob, "matches", counted)
    return texts


def groups(*patterns: str, size: int = 1000) -> str:
    """Two groups of so many patterns each."""
    numbers = range(size // len(patterns))
    lists = {name: [each.format(f"{name}{number}") for each in patterns for number in numbers] for name in "ab"}
    return "".join(f"{name} = {texts!r}\n".replace("'", '"') for name, texts in lists.items())


def mail_of_many() -> MessageFacts:
    authors = ",\r\n ".join(f"x{number}+t@alice.example" for number in range(100))
    return MessageFacts(f"From: {authors}\r\nSender: a@alice.example\r\nSubject: x\r\n\r\nx\r\n".encode())


@pytest.mark.promise("One mail does not hold up the others")
def test_many_authors_and_groups_of_thousands_take_no_comparison_of_each_with_each(
    tmp_path: Path, compared: list[str]
) -> None:
    files = {"default.toml": CLEAR, "floors.toml": FLOORS, "groups.toml": groups("{}@alice.example", "*@{}.example")}
    policies = load_policies(write(tmp_path, files), PEERS)
    assert policies.decide("a@alice.example", "b@customer.example", mail_of_many()).levels == ("plaintext",)
    assert not compared
    member = MessageFacts(b"From: a7+t@alice.example\r\n\r\n")
    assert policies.decide("a@alice.example", "b@customer.example", member).levels == ("otp",)
    assert policies.decide("a@b7.example", "b@customer.example", mail_of_many()).levels == ("otp",)


@pytest.mark.parametrize("pattern", ["{}*@alice.example", "*@{}*.example"])
def test_patterns_that_have_to_be_compared_count_as_work_for_each_floor_that_names_them(
    tmp_path: Path, pattern: str, compared: list[str]
) -> None:
    """So that such a mail is decided beside the event loop (journey/sealing.py)."""
    files = {"default.toml": CLEAR, "floors.toml": FLOORS, "groups.toml": groups(pattern, size=50)}
    policies = load_policies(write(tmp_path, files), PEERS)
    policies.decide("a@alice.example", "b@customer.example", mail_of_many())
    people, texts = 100, 2
    assert 0 < len(compared) <= people * texts * policies.patterns


LOCAL = st.text("ab*", max_size=3)
DOMAIN = st.sampled_from(["", "@", "@a", "@a.b", "@b.a.b", "@*.b", "@*", "@a*", "@b@a"])
TEXT = st.text("ab@.", max_size=7)


@given(st.lists(st.builds(str.__add__, LOCAL, DOMAIN), max_size=5), st.lists(TEXT, max_size=3))
def test_a_look_up_finds_what_comparing_with_each_pattern_finds(written: list[str], texts: list[str]) -> None:
    globs = list(map(Glob.of, written))
    found = Patterns(globs).fit_one_of(texts)
    assert found == any(glob.matches(text) for glob in globs for text in texts)
