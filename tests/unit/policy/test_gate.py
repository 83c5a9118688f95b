"""`policy diff --strict` beside a reference: generated sets and edits of them, of which none may pass that is weaker.
Standard: policies/README.md; the reference is written from it (testlib/policy_reference.py), mails are brute force.

The long form tries 20,000 pairs; its figures stand in tests/README.md.
"""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime
from pathlib import Path

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
from tests.testlib.policy_pairs import Files, day_of, edited, weaker
from tests.testlib.policy_reference import Reference, SiteSays

PAIRS = sized(60, 20_000)
MAILS = sized(40, 150)


def read(directory: Path, files: Files, site: SiteSays) -> PolicySet:
    folder = PolicyFolder(write(directory, files), PEERS, site=SiteFacts(site.domains, site.tag_separators))
    return folder.read()


def pair(made: Made, directory: Path) -> tuple[Files, Files, PolicySet, PolicySet, SiteSays]:
    """A set, an edit of it, and both as the relay reads them."""
    number = 0
    while True:
        number += 1
        policies = made.policies()
        names = made.sample(list(policies.scopes), min(len(policies.scopes), 5))
        old = made.again(policies, names)
        if "floors.toml" in policies.scopes:
            old |= {"floors.toml": made.file("floors")}
        new = edited(made, old)
        try:
            sets = [read(directory / f"{number}{side}", each, policies.site) for side, each in (("a", old), ("b", new))]
        except ConfigError:
            continue
        return old, new, sets[0], sets[1], policies.site


def test_no_edit_passes_that_lets_any_mail_leave_weaker(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    made, missed, alarms, passed, refused = Made(seed), [], 0, 0, 0
    today = datetime.now(UTC).date()
    for number in range(PAIRS):
        old, new, before, after, site = pair(made, tmp_path / str(number))
        comparison = compare(before, after)
        references = Reference(old, OWNERS, site), Reference(new, OWNERS, site)
        why = ""
        for _ in range(MAILS if comparison.proven else 10 * MAILS):
            facts, can = made.facts(), made.ability()
            for each in references:
                each.today = day_of(made, today)
            references[1].today = references[0].today
            for recipient in facts.recipients:
                why = why or weaker(*references, facts, recipient, can)
            if why:
                break
        passed += comparison.proven
        refused += not comparison.proven
        alarms += not comparison.proven and not why
        if comparison.proven and why:
            missed.append(f"seed {seed}, pair {number}: {why}: {facts} on {references[0].today}\n{old}\n{new}")
    sys.stdout.write(f"seed {seed}: {passed} passed, {refused} refused, {alarms} of these shown by no mail\n")
    assert not missed, missed[0]
    assert passed > PAIRS / 10
    assert refused > PAIRS / 10


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
    ('attachment_name = "a.x"\nattachment_type = "image/png"', 'attachment_type = "image/*"'),
    ("larger_than = 10", "larger_than = 9"),
    ('sender = "a@a.example"\nsmaller_than = 10', "smaller_than = 11"),
]
NOT_IMPLIED = [
    *((other, one) for one, other in IMPLIED if "not_sender" not in other or "not_sender" in one),
    ('sender = "ann@a.example"', 'sender = "login:ann@a.example"'),
    ('sender = "login:ann"', 'sender = "*@a.example"'),
    ('sender = "ceo+x@a.example"', 'not_sender = "ceo@a.example"'),
    ('sender = "login:ann"', 'not_sender = "*@b.example"'),
    ('sender = "*@a.example"', 'subject_tag = "x"'),
    ("larger_than = 10", "smaller_than = 20"),
    ('not_sender = "login:ann"', 'not_sender = "a@a.example"'),
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
        assert all(part.imply(conditions(one)) for part in conditions(one).alternatives() or ())


def test_mail_that_was_too_large_to_leave_leaves_after_no_edit_that_passes(tmp_path: Path) -> None:
    both = 'levels = ["otp", "aes"]\nmax_size = { otp = "64 KiB", aes = "1 MiB" }\n'
    for number, after in enumerate((both.replace("1 MiB", "2 MiB"), both.replace(', aes = "1 MiB"', ""))):
        old, new = (
            PolicyFolder(
                write(tmp_path / f"{number}{side}", {"bob.example.toml": text}), {"bob": ["bob.example"]}
            ).read()
            for side, text in (("a", both), ("b", after))
        )
        assert not compare(old, new).proven
        assert compare(new, old).proven, "fewer leave"
