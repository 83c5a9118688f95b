"""Rules find what they name however it is written, and nothing in ordinary mail.
Standard: policies/README.md; what mail programs read differently counts as matching.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from tests.testlib.policy_files import PEERS, write
from tests.testlib.spellings import ALL, Spelling, harmless
from tests.testlib.spellings.names import with_part
from tests.testlib.spellings.spelling import b, mail, q

CONDITIONS = ("subject_tag", "header", "attachment_name")
WANTED = sorted({(each.condition, each.wanted) for each in ALL})


def not_in(name: str) -> list[tuple[str, str]]:
    """What rules may name that is not in this ordinary mail."""
    return [*WANTED, ("sender", "ceo@alice.example")] if name.startswith("From: ") else WANTED


class Rules:
    """One set of policies for each condition that is asked for: aes, or otp where it holds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._sets: dict[tuple[str, str], PolicySet] = {}

    def fits(self, condition: str, wanted: str, content: MessageFacts) -> bool:
        """Whether a rule with this condition decides about the message."""
        if (condition, wanted) not in self._sets:
            directory = self._directory / str(len(self._sets))
            directory.mkdir()
            text = f'levels = ["aes"]\n[[when]]\n{condition} = {json.dumps(wanted)}\nlevels = ["otp"]\n'
            self._sets[condition, wanted] = load_policies(write(directory, {"default.toml": text}), PEERS)
        policies = self._sets[condition, wanted]
        return policies.decide("ann@alice.example", "ben@bob.example", content).levels == ("otp",)

    def miss(self, spelling: Spelling) -> bool:
        """Whether the rule that names it does not see it."""
        return not self.fits(spelling.condition, spelling.wanted, MessageFacts(spelling.message))


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Rules:
    """One for all tests here."""
    return Rules(tmp_path_factory.mktemp("rules"))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_rule_sees_what_it_names_however_it_is_written(rules: Rules, condition: str) -> None:
    assert [str(each) for each in ALL if each.condition == condition and rules.miss(each)] == []


def test_there_are_many_spellings_and_each_has_its_name() -> None:
    assert len(ALL) > 1000
    assert len({str(each) for each in ALL}) == len(ALL)


def test_of_ordinary_mail_nothing_matches_but_one_in_a_hundred_by_doubt(rules: Rules) -> None:
    """So policies/README.md says."""
    seen, in_doubt, named = [], set[str](), list(harmless.messages())
    for name, message in named:
        content = MessageFacts(message)
        for each in not_in(name):
            seen += [f"{name}: {each}"] if rules.fits(*each, content) and not content.doubts else []
        in_doubt |= {name} if content.doubts else set()
    assert seen == []
    assert len(in_doubt) <= len(named) / 100, in_doubt


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("*.docx", with_part(b'Content-Disposition: attachment; filename="plan.txt"')),
        ("*.docx", with_part(b'Content-Disposition: attachment; filename="plan.zip"')),
        ("*.docx", with_part(b'Content-Type: application/ms-tnef; name="winmail.dat"')),
        ("*.docx", mail(b"Subject: x", body=b"begin 644 plan.docx\r\n#86)C\r\n`\r\nend\r\n")),
        ("*.docx", with_part('Content-Disposition: attachment; filename="plan.d\u043ecx"'.encode())),
    ],
    ids=["renamed", "packed", "in winmail.dat", "as uuencode", "with a letter of another script"],
)
def test_renamed_and_packed_files_are_not_seen(rules: Rules, wanted: str, message: bytes) -> None:
    """So policies/README.md says."""
    assert not rules.fits("attachment_name", wanted, MessageFacts(message))


UNREADABLE = {
    "a charset that nobody here can read": b(b"\xe2\x85", "utf-ebcdic"),
    "a number of a code page that is none": b(b"\xe2\x85", "cp9999"),
    "more readings than are looked at": b"=?us-ascii?q?=e4 = 4?= =?us-ascii?b?a-?= =?us-ascii?q?=00?b=?= \xff" * 8,
    "more words than are looked at": b"=?utf-8?q?b?= " * 2000,
    "letters in another order than they are displayed": "x \u202eterces\u202c".encode(),
    "letters in another order, encoded": q("x \u202eterces\u202c"),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_within_bounds_counts_as_any_text(rules: Rules, text: bytes) -> None:
    assert rules.fits("subject_tag", "[secret]", MessageFacts(mail(b"Subject: " + text)))
    assert rules.fits("header", "X-Class: confidential", MessageFacts(mail(b"X-Class: " + text)))
    named = with_part(b'Content-Disposition: attachment; filename="' + text + b'"')
    assert rules.fits("attachment_name", "*.docx", MessageFacts(named))


def test_what_one_field_has_says_nothing_about_another(rules: Rules) -> None:
    content = MessageFacts(mail(b"X: " + UNREADABLE["more words than are looked at"], b"Subject: plan"))
    assert not rules.fits("subject_tag", "[secret]", content)
    assert not rules.fits("header", "X-Class: confidential", content)
    assert not rules.fits("attachment_name", "*.docx", content)
