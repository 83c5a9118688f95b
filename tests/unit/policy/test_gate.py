"""`policy diff --strict` beside a reference: generated sets and edits of them, of which none may pass that is weaker.
Standard: policies/README.md; the reference is written from it (testlib/policy_reference.py), mails are brute force.

The long form tries 20,000 pairs, and prints its figures.
"""

from __future__ import annotations

import random
import shutil
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from relay.errors import ConfigError
from relay.policy.compare import compare
from relay.policy.comparing.conditions import Conditions
from relay.policy.decide import PolicySet
from relay.policy.load import PolicyFolder
from relay.policy.rules import When
from relay.policy.site import SiteFacts
from tests.testlib.long import sized
from tests.testlib.policy_files import write
from tests.testlib.policy_made import OWNERS, PEERS, Made
from tests.testlib.policy_pairs import Aim, Files, day_of, edited, weaker
from tests.testlib.policy_reference import Reference, SiteSays

PAIRS = sized(60, 20_000)
MAILS = sized(20, 40)
"""Number of mails tried where an edit has passed; ten times as many where it was refused."""


def read(directory: Path, files: Files, site: SiteSays) -> PolicySet:
    folder = PolicyFolder(write(directory, files), PEERS, site=SiteFacts(site.domains, site.tag_separators))
    return folder.read()


class Pair(NamedTuple):
    """A set, an edit of it of one kind, and both as the relay reads them."""

    old: Files
    new: Files
    before: PolicySet
    after: PolicySet
    site: SiteSays
    edit: str


def pair(made: Made, directory: Path) -> Pair:
    """Generated; what the relay does not take is made again."""
    number = 0
    while True:
        number += 1
        policies = made.policies()
        names = made.sample(list(policies.scopes), min(len(policies.scopes), 5))
        old = made.again(policies, names)
        if "floors.toml" in policies.scopes:
            old |= {"floors.toml": made.file("floors")}
        new, edit = edited(made, old)
        try:
            before = read(directory / f"{number}a", old, policies.site)
            after = read(directory / f"{number}b", new, policies.site)
        except ConfigError:
            continue
        return Pair(old, new, before, after, policies.site, edit)


def shown_by_a_mail(made: Made, each: Pair, mails: int) -> str:
    """Why one of so many generated mails leaves weaker after the edit, which mail, and on which day; or ""."""
    old, new = Reference(each.old, OWNERS, each.site), Reference(each.new, OWNERS, each.site)
    aim, today = Aim(made, old, new), datetime.now(UTC).date()
    for _ in range(mails):
        facts = aim.facts()
        old.today = new.today = day_of(made, today)
        for recipient in facts.recipients:
            if why := weaker(old, new, facts, recipient):
                return f"{why}: to {recipient} on {old.today}: {facts}"
    return ""


def test_no_edit_passes_that_lets_any_mail_leave_weaker(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    made, missed = Made(seed), []
    passed, refused, alarms = Counter[str](), Counter[str](), Counter[str]()
    for number in range(PAIRS):
        directory = tmp_path / "pair"
        each = pair(made, directory)
        shutil.rmtree(directory)
        proven = compare(each.before, each.after).proven
        why = shown_by_a_mail(made, each, MAILS if proven else 10 * MAILS)
        (passed if proven else refused)[each.edit] += 1
        alarms[each.edit] += not proven and not why
        if proven and why:
            missed.append(f"seed {seed}, pair {number}: {each.edit}: {why}\n{each.old}\n{each.new}")
    sys.stdout.write(
        f"seed {seed}: {passed.total()} passed, {refused.total()} refused, {alarms.total()} of these shown by no mail\n"
    )
    for edit in sorted(passed | refused):
        sys.stdout.write(f"  {edit}: {passed[edit]} passed, {refused[edit]} refused, {alarms[edit]} shown by no mail\n")
    assert not missed, "\n\n".join([f"{len(missed)} missed", *missed[:10]])
    assert passed.total() > PAIRS / 10
    assert refused.total() > PAIRS / 10


IMPLIED = [
    ('sender = "ceo@a.example"', 'sender = "*@a.example"'),
    ('sender = ["a@a.example", "b@a.example"]', 'sender = "*@a.example"'),
    ('sender = "login:ann"', 'sender = ["login:a*", "x@y.example"]'),
    ('sender = "ceo@a.example"', 'not_sender = "*@b.example"'),
    ('not_sender = ["a@a.example", "b@a.example"]', 'not_sender = "a@a.example"'),
    ('subject_tag = "[secret] x"', 'subject_tag = "secret"'),
    ('header = "X: yes"', 'header = "X: y*"'),
    ('header = "X: yes"', 'header = "X"'),
    ('attachment_name = "a.xlsx"', 'attachment_name = ["*.xls", "*.xlsx"]'),
    ('sender = "a@a.example"\nattachment_name = "a.x"', 'attachment_name = "a.*"'),
]
NOT_IMPLIED = [
    *((other, one) for one, other in IMPLIED if "not_sender" not in other or "not_sender" in one),
    ('sender = "ann@a.example"', 'sender = "login:ann@a.example"'),
    ('sender = "login:ann"', 'sender = "*@a.example"'),
    ('sender = "ceo+x@a.example"', 'not_sender = "ceo@a.example"'),
    ('sender = "login:ann"', 'not_sender = "*@b.example"'),
    ('sender = "*@a.example"', 'subject_tag = "x"'),
    ('not_sender = ["a@a.example", "login:ann"]', 'not_sender = "a@a.example"'),
]


def conditions(text: str) -> Conditions:
    import tomllib

    values = {name: tuple(each) if isinstance(each, list) else each for name, each in tomllib.loads(text).items()}
    rule = When.model_validate(
        {name: list(each) if isinstance(each, tuple) else each for name, each in values.items()}
        | {"otherwise": "refuse"}
    )
    return Conditions.of(rule, {})


def test_which_rule_surely_fits_wherever_another_does() -> None:
    assert [each for each in IMPLIED if not conditions(each[0]).imply(conditions(each[1]))] == []
    assert [each for each in NOT_IMPLIED if conditions(each[0]).imply(conditions(each[1]))] == []
    for one, _ in (*IMPLIED, *NOT_IMPLIED):
        assert conditions(one).imply(conditions(one))
        assert all(part.imply(conditions(one)) for part in conditions(one).alternatives())


def test_mail_that_was_too_large_for_all_levels_may_leave_after_an_edit_and_no_other_gets_a_weaker_one(
    tmp_path: Path,
) -> None:
    both = 'levels = ["otp", "aes"]\nmax_size = { otp = "64 KiB", aes = "1 MiB" }\n'
    together = 'levels = ["plaintext"]\npeer = "bob"\nmax_size = { aes = "1 KiB" }\n'
    together += '[[when]]\nsubject_tag = "[a]"\nlevels = ["aes"]\n'
    together += '[[when]]\nsubject_tag = "[b]"\nlevels = ["otp", "pqc"]\n'
    for number, (before, after, passes) in enumerate(
        (
            (both, both.replace("1 MiB", "2 MiB"), True),
            (both, both.replace(', aes = "1 MiB"', ""), True),
            (both, both.replace("64 KiB", "32 KiB"), False),
            (both, both.replace("64 KiB", "128 KiB"), True),
            (both, both.replace("64 KiB", "2 MiB"), True),
            ('levels = ["otp", "pqc"]\nmax_size = { pqc = "1 KiB" }\n', 'levels = ["otp", "pqc"]\n', False),
            ('levels = ["aes"]\nmax_size = { aes = "1 KiB" }\n', 'levels = ["aes"]\n', True),
            (together, together.replace("1 KiB", "1 MiB"), False),  # mail that both rules fit
        )
    ):
        old, new = (
            PolicyFolder(
                write(tmp_path / f"{number}{side}", {"bob.example.toml": text}), {"bob": ["bob.example"]}
            ).read()
            for side, text in (("a", before), ("b", after))
        )
        assert compare(old, new).proven is passes
