"""`policy diff --strict` and `install --strict`: an edit that weakens anything for any mail, now or later, is refused.
What is shown to weaken nothing passes; what cannot be shown is refused, with the rule that it is about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from click.testing import Result

from tests.testlib.policy_files import AES, write
from tests.unit.policy.test_policy_cli import (
    log_as_before as log_as_before,  # a fixture
    site as site,  # a fixture
)

Run = Callable[..., Result]
Files = dict[str, str]

CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
SEALED = {"default.toml": AES}
IN_CLEAR = {"default.toml": CLEAR}
CAROL = '\n[peers.carol]\ndomains = ["carol.example"]\nsae_id = "SAE-CAROL"\nkme_groups = []\n'
NEXT_YEAR = "2990-01-01"


def floor(condition: str, levels: str = '["otp"]') -> Files:
    """One floor for mail to anybody else, who would get it in clear."""
    return {"floors.toml": f"[[floor]]\n{condition}\nlevels = {levels}\n"}


def rule(condition: str, levels: str = '["otp"]') -> str:
    return f"\n[[when]]\n{condition}\nlevels = {levels}\n"


def test(recipient: str, expect: str, more: str = "") -> str:
    return f'[[test]]\nsender = "a@alice.example"\nrecipient = "{recipient}"\nexpect = {expect}\n{more}\n'


test.__test__ = False  # type: ignore[attr-defined]
TESTED = {"bob.example.toml": AES, **SEALED}
BOTH = test("x@bob.example", '"aes"', 'peer = "bob"') + test("y@bob.example", '"aes"')

RAISED = '[[when]]\nheader = "X-Secret"\nlevels = ["otp", "aes"]\n'
PRIORITY = '[[when]]\nsubject_tag = [{}]\npriority = "normal"\n'
WEAKENED: dict[str, tuple[Files, Files]] = {
    "names of attachments, narrowed": (IN_CLEAR | floor('attachment_name = "*.xls*"'), IN_CLEAR | floor('attachment_name = "*.xlsx"')),
    "senders, narrowed": (IN_CLEAR | floor('sender = "*@board.alice.example"'), IN_CLEAR | floor('sender = "a*@board.alice.example"')),
    "users, narrowed": (IN_CLEAR | floor('sender = "login:ceo*"'), IN_CLEAR | floor('sender = "login:ceo"')),
    "a wider exception": (IN_CLEAR | floor('not_sender = "bot@alice.example"'), IN_CLEAR | floor('not_sender = "bot*@alice.example"')),
    "a header, narrowed": (IN_CLEAR | floor('header = "X-Secret: *yes*"'), IN_CLEAR | floor('header = "X-Secret: yes*"')),
    "a longer tag": (IN_CLEAR | floor('subject_tag = "secret"'), IN_CLEAR | floor('subject_tag = "[secret]"')),
    "recipients, narrowed": (IN_CLEAR | floor('recipient = "*@x.example"'), IN_CLEAR | floor('recipient = "a*@x.example"')),
    "recipients with a tag": (SEALED | floor('recipient = "*+board@bob.example"'), SEALED),
    "recipients with a tag, of a person with a file": (
        SEALED | {"bob.example/ceo.toml": AES} | floor('recipient = "ceo+board@bob.example"'),
        SEALED | {"bob.example/ceo.toml": AES},
    ),
    "what counts when a rule that has not changed ends": (
        {"default.toml": 'levels = ["otp"]\n', "bob.example.toml": f'until = {NEXT_YEAR}\nlevels = ["otp"]\n'},
        {"default.toml": AES, "bob.example.toml": f'until = {NEXT_YEAR}\nlevels = ["otp"]\n'},
    ),
    "many ends, and the weakest is the last": (
        SEALED | {f"bob.example/p{n}.toml": f'until = {3000 + n}-01-01\nlevels = ["otp"]\n' for n in range(40)},
        SEALED | {f"bob.example/p{n}.toml": f'until = {3000 + n - (n == 39)}-01-01\nlevels = ["otp"]\n' for n in range(40)},
    ),
    "many rules, and one text of the last is gone": (
        {"bob.example.toml": AES + "".join(rule(f'subject_tag = ["a{n:03}", "b{n:03}"]') for n in range(200)), **SEALED},
        {"bob.example.toml": AES + "".join(rule(f'subject_tag = ["a{n:03}", "b{n:03}"]') for n in range(199)) + rule('subject_tag = "b199"'), **SEALED},
    ),
    "a narrower list of senders, beside an exception": (
        SEALED | {"bob.example.toml": 'levels = ["pqc"]\n' + rule('sender = "*@alice.example"\nnot_sender = "*@relay.example"')},
        SEALED | {"bob.example.toml": 'levels = ["pqc"]\n' + rule('sender = "ceo@alice.example"\nnot_sender = "*@relay.example"')},
    ),
    "a priority for which keys in reserve are not": (
        SEALED | {"bob.example.toml": 'levels = ["aes", "pqc"]\n'},
        SEALED | {"bob.example.toml": 'levels = ["aes", "pqc"]\npriority = "low"\n'},
    ),
    "a priority for which a layer under a key in reserve is not": (
        SEALED | {"bob.example.toml": 'levels = ["pqc+aes", "pqc"]\n'},
        SEALED | {"bob.example.toml": 'levels = ["pqc+aes", "pqc"]\npriority = "low"\n'},
    ),
    "a priority that a floor has raised": (
        SEALED | {"bob.example.toml": 'levels = ["aes", "pqc"]\npriority = "low"\n'} | {"floors.toml": '[[floor]]\nsender = "*@x.example"\npriority = "normal"\n'},
        SEALED | {"bob.example.toml": 'levels = ["aes", "pqc"]\npriority = "low"\n'},
    ),
    "a priority beside plaintext that another rule raises": (
        {"bob.example.toml": CLEAR + 'priority = "low"\n' + RAISED + PRIORITY.format('"x", "y"')},
        {"bob.example.toml": CLEAR + 'priority = "low"\n' + RAISED + PRIORITY.format('"x"')},
    ),
    "another peer, who can read it then": ({"x.example.toml": AES + 'peer = "bob"\n', **SEALED}, {"x.example.toml": AES + 'peer = "carol"\n', **SEALED}),
    "what must arrive sealed, by another peer": (
        {"x.example.toml": AES + 'peer = "bob"\nrequire = "aes"\n', **SEALED},
        {"x.example.toml": AES + 'peer = "carol"\nrequire = "aes"\n', **SEALED},
    ),
    "what is done to mail that is not sealed": (
        {"bob.example.toml": AES + 'require = "aes"\nunprotected = "refuse"\n', **SEALED},
        {"bob.example.toml": AES + 'require = "aes"\nunprotected = "mark"\n', **SEALED},
    ),
    "no tests any more": (TESTED | {"tests.toml": BOTH}, TESTED),
    "a test less": (TESTED | {"tests.toml": BOTH}, TESTED | {"tests.toml": test("x@bob.example", '"aes"', 'peer = "bob"')}),
    "a test that expects less": (
        TESTED | {"tests.toml": BOTH},
        {"bob.example.toml": AES, **SEALED, "tests.toml": BOTH.replace('peer = "bob"', "")},
    ),
    "a test with an end": (TESTED | {"tests.toml": BOTH}, TESTED | {"tests.toml": BOTH + f"until = {NEXT_YEAR}\n"}),
}  # fmt: skip
"""What was in force, and an edit that weakens something."""

HARMLESS: dict[str, tuple[Files, Files]] = {
    "levels that mail without a peer cannot have": (
        SEALED | {"x.example.toml": 'levels = ["pqc", "rsa", "smime"]\npriority = "low"\n'},
        SEALED | {"x.example.toml": 'levels = ["aes", "smime"]\n'},
    ),
    "nothing": (IN_CLEAR | floor('sender = "*@x.example"'), IN_CLEAR | floor('sender = "*@x.example"')),
    "names of attachments, widened": (IN_CLEAR | floor('attachment_name = "*.xlsx"'), IN_CLEAR | floor('attachment_name = "*.xls*"')),
    "two floors for one": (
        IN_CLEAR | floor('sender = ["*@a.example", "*@b.example"]'),
        IN_CLEAR | {"floors.toml": floor('sender = "*@a.example"')["floors.toml"] + floor('sender = "*@b.example"')["floors.toml"]},
    ),
    "a floor that another one covers": (
        IN_CLEAR | {"floors.toml": floor('sender = "ceo@a.example"')["floors.toml"] + floor('sender = "*@a.example"')["floors.toml"]},
        IN_CLEAR | floor('sender = "*@a.example"'),
    ),
    "a floor in place of a rule": (
        {"bob.example.toml": AES + rule('subject_tag = "secret"'), **SEALED},
        {"bob.example.toml": AES, **SEALED} | floor('subject_tag = "secret"'),
    ),
    "rules in another order": (
        {"bob.example.toml": AES + rule('sender = "*@a.example"') + rule('sender = "ceo@a.example"', '["otp", "aes"]'), **SEALED},
        {"bob.example.toml": AES + rule('sender = "ceo@a.example"', '["otp", "aes"]') + rule('sender = "*@a.example"'), **SEALED},
    ),
    "an end that is nearer": (
        SEALED | {"bob.example/x.toml": f"until = {NEXT_YEAR}\n" + CLEAR},
        SEALED | {"bob.example/x.toml": "until = 2980-01-01\n" + CLEAR},
    ),
    "a priority for which there may be no key, so that it is held": (
        SEALED | {"bob.example.toml": 'levels = ["aes"]\n'},
        SEALED | {"bob.example.toml": 'levels = ["aes"]\npriority = "low"\n'},
    ),
    "a higher priority": (
        SEALED | {"bob.example.toml": 'levels = ["aes", "pqc"]\npriority = "low"\n'},
        SEALED | {"bob.example.toml": 'levels = ["aes", "pqc"]\n'},
    ),
    "a test more": (TESTED | {"tests.toml": test("x@bob.example", '"aes"')}, TESTED | {"tests.toml": BOTH}),
    "a group in place of its members": (
        IN_CLEAR | floor('sender = ["a@x.example", "*@y.example"]'),
        IN_CLEAR | floor('sender = "group:all"') | {"groups.toml": 'all = ["*@y.example", "a@x.example"]\n'},
    ),
}  # fmt: skip
"""The same, and an edit that weakens nothing."""


def compared(site: Callable[[Mapping[str, str]], Run], top: Path, old: Files, new: Files, *how: str) -> Result:
    run = site(old)
    with (top / "relay.toml").open("a") as config:
        config.write(CAROL)
    return run("diff", str(top / "policies"), str(write(top / "new", new)), "--strict", *how)


@pytest.mark.parametrize("name", WEAKENED)
def test_an_edit_that_weakens_is_refused(site: Callable[[Mapping[str, str]], Run], tmp_path: Path, name: str) -> None:
    result = compared(site, tmp_path, *WEAKENED[name])
    assert result.exit_code == 1, result.output


@pytest.mark.parametrize(
    ("before", "after"),
    [('otherwise = "hold 1 h"', 'otherwise = "hold 2 h"'), ('otherwise = "refuse"', 'otherwise = "hold 5 s"')],
)
def test_what_becomes_of_mail_that_a_floor_keeps_is_listed_where_it_differs(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, before: str, after: str
) -> None:
    old, new = (
        {"bob.example.toml": 'levels = ["pqc"]\n', **SEALED} | floor(f'subject_tag = "s"\n{each}')
        for each in (before, after)
    )
    result = compared(site, tmp_path, old, new, "--json")
    assert json.loads(result.stdout)["differences"] != [], result.stdout


@pytest.mark.parametrize("name", HARMLESS)
def test_an_edit_that_weakens_nothing_passes(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, name: str
) -> None:
    result = compared(site, tmp_path, *HARMLESS[name])
    assert result.exit_code == 0, result.output
