"""Floors, groups, files and rules that end, and what can never be had: edits of files, and what they decide then.
Standard: policies/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest

from relay.errors import ConfigError, PolicyHolds
from relay.journey.sealing import Sealer
from relay.keys.ring import KeyRing
from relay.mail import Envelope, Mail, Recipient
from relay.policy import settings as policy_settings
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.findings import endings, floors_in_vain
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.site import SiteFacts
from tests.testlib import mails
from tests.testlib.planning import Keys, planner_of
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.policy_reference import Ability
from tests.unit.policy.test_policy import ORGANISATIONS

SENDER = "ann@alice.example"
CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'


def loaded(directory: Path, files: Mapping[str, str]) -> PolicySet:
    return load_policies(write(directory, files), PEERS)


# --- floors and groups ---------------------------------------------------------------------------------------------

LEGAL = '[[floor]]\nsender = "group:legal"\nlevels = ["otp"]\n'
FLOORS = LEGAL + '[[floor]]\nrecipient = "*@bob.example"\nsubject_tag = "[vs]"\nlevels = ["otp", "aes"]\n'
GROUPS = 'legal = ["legal@alice.example", "*@law.alice.example"]\n'
FILES = {
    "default.toml": CLEAR, "bob.example.toml": 'levels = ["aes", "pqc+aes", "pqc"]\n', "floors.toml": FLOORS, "groups.toml": GROUPS,
}  # fmt: skip


@pytest.mark.parametrize(
    ("sender", "recipient", "subject", "levels", "source"),
    [
        (SENDER, "x@bob.example", "hello", ("aes", "pqc+aes", "pqc"), "bob.example.toml"),
        (SENDER, "x@bob.example", "[vs] plan", ("otp", "aes"), "floors.toml"),
        (SENDER, "x@else.example", "[vs] plan", ("plaintext",), "default.toml"),
        ("Legal+x@alice.example", "x@bob.example", "[vs]", ("otp",), "floors.toml"),
        ("a@law.alice.example", "x@else.example", "hello", ("otp",), "floors.toml"),
        ("", "x@bob.example", "hello", ("aes", "pqc+aes", "pqc"), "bob.example.toml"),
    ],
)
def test_a_floor_raises_what_every_file_says(
    tmp_path: Path, sender: str, recipient: str, subject: str, levels: tuple[str, ...], source: str
) -> None:
    policies = loaded(tmp_path, FILES)
    content = MessageFacts(f"From: x@y.example\r\nSubject: {subject}\r\n\r\n".encode())
    decision = policies.decide(sender, recipient, content)
    assert (decision.levels, Path(decision.source).name) == (levels, source)
    explanation = policies.explain(sender, recipient, content)
    assert explanation.decision == decision
    assert any(look.applies for look in explanation.floors) == (source == "floors.toml")


def test_an_explanation_says_which_floors_apply_and_why_others_do_not(tmp_path: Path) -> None:
    explanation = loaded(tmp_path, FILES).explain("legal@alice.example", "x@bob.example")
    assert [(look.rule, look.line, look.applies, look.because) for look in explanation.floors] == [
        (1, 3, True, "raises what holds without it"),
        (2, 7, False, "it looks into the message, and there is none"),
    ]


def test_plaintext_for_everybody_never_covers_a_peers_domain_whatever_floors_raise(tmp_path: Path) -> None:
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": LEGAL, "groups.toml": GROUPS})
    for sender in (SENDER, "legal@alice.example"):
        with pytest.raises(PolicyHolds, match="belongs to peer 'bob'"):
            policies.decide(sender, "x@bob.example")


def test_edits_of_floors_and_groups_count_and_change_the_version(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    folder = PolicyFolder(tmp_path, PEERS)
    versions = [folder.read().version]
    write(tmp_path, {"groups.toml": 'legal = ["ann@*"]\n'})
    policies = folder.read_again(["groups.toml"])
    assert policies.decide(SENDER, "x@bob.example").levels == ("otp",)
    versions.append(policies.version)
    (tmp_path / "floors.toml").unlink()
    policies = folder.read()
    assert policies.decide(SENDER, "x@bob.example").levels == ("aes", "pqc+aes", "pqc")
    assert len({*versions, policies.version}) == 3


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("floors.toml", '[[floor]]\nlevels = ["otp"]', "floors.toml:1: floor.0: a rule needs a condition"),
        ("floors.toml", '[[floor]]\nsender = "x@y"', "floors.toml:1: floor.0: a rule needs a setting"),
        ("floors.toml", '[[floor]]\nsender = "x@y"\nuntil = 2030-01-01', "floors.toml:1: floor.0: a rule needs a setting"),
        ("floors.toml", '[[floor]]\nsender = "x@y"\ninside = true', "floors.toml:3: floor.0.inside: unknown setting; known here: attachment_name,"),
        ("floors.toml", '[[floor]]\nsender = "x@y"\nlevels = ["plaintext"]', "floors.toml:1: floor.0: a rule only raises"),
        ("floors.toml", '[[floor]]\nsender = "x@y"\npriority = "low"', "floors.toml:1: floor.0: a rule only raises"),
        ("floors.toml", '[[floor]]\nauthor = "x@y"\nlevels = [1]', "floors.toml:2: floor.0.author: unknown setting"),
        ("floors.toml", '[[floor]]\nsender = "*"\nlevels = [1]', "floors.toml:2: floor.0.sender: '*': write an"),
        ("floors.toml", '[[floor]]\nrecipient = "y"\nlevels = [1]', "floors.toml:2: floor.0.recipient: 'y': write an"),
        ("floors.toml", '[[floor]]\nrecipient = ["x@y", "<>"]\nlevels = [1]', "floors.toml:2: floor.0.recipient: '<>' is"),
        ("floors.toml", '[[floor]]\nsendr = "x@y"\nlevels = [1]', "floors.toml:2: floor.0.sendr: unknown setting; did you"),
        ("floors.toml", '[[floor]]\nsender = "group:law"\nlevels = [1]', "floors.toml:2: no group 'law'; write it into"),
        ("bob.example.toml", AES + '[[when]]\nsender = "group:legl"\nlevels = [1]', "bob.example.toml:3: no group 'legl'; did"),
        ("bob.example.toml", AES + f"max_size = {hex(16**5000)}", "bob.example.toml:2: max_size: "),
        ("bob.example.toml", AES + f"otherwise = {hex(16**5000)}", 'bob.example.toml:2: otherwise: write "hold"' ),
        ("bob.example.toml", AES + '[[when]]\nsubject_tag = "\\u200b"\nlevels = [1]', "bob.example.toml:3: when.0.subject_tag: "),
        ("groups.toml", 'legal = ["x"]\n', "groups.toml:1: legal: 'x': write an address"),
        ("groups.toml", 'legal = []\n', "groups.toml:1: legal: write a text in quotes"),
        ("groups.toml", '"a b" = "x@y"\nlegal = "x@y"\n', "groups.toml:1: a b: write a name of letters"),
        ("bob.example.toml", AES + "until = 2030-01-01T00:00:00", "bob.example.toml:2: until: write a day without quotes and time"),
        ("bob.example.toml", AES + '[[when]]\nsender = "x@y"\nuntil = 2030-01-01', "bob.example.toml:2: when.0: a rule needs a se"),
        ("bob.example.toml", AES + 'recipient = "x@y"', "bob.example.toml:2: recipient: unknown setting"),
    ],
)  # fmt: skip
def test_a_wrong_floor_group_or_end_is_named_with_file_line_and_remedy(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, {"default.toml": AES, "groups.toml": GROUPS} | {name: text})
    assert caught.value.problems[0].removeprefix(f"{tmp_path}/").startswith(said), caught.value.problems


def test_a_floor_that_is_for_nobody_is_named(tmp_path: Path) -> None:
    floor = '[[floor]]\nrecipient = "*@alice.example"\nlevels = ["otp"]\n'
    files = {"bob.example.toml": AES, "floors.toml": floor}
    site = SiteFacts(frozenset({"alice.example"}))
    folder = PolicyFolder(write(tmp_path, files), {"bob": ["bob.example"]}, site=site)
    [doubt] = floors_in_vain(folder.read_tested())
    assert "its recipients are at our own domains" in doubt.what


def test_a_floor_may_end(tmp_path: Path) -> None:
    ends = LEGAL + "until = 2999-12-31\n"
    policies = loaded(tmp_path, {"bob.example.toml": AES, "floors.toml": ends, "groups.toml": GROUPS})
    assert policies.decide("legal@alice.example", "x@bob.example").levels == ("otp",)
    with policy_settings.on_day(date(3000, 1, 1)):
        assert policies.decide("legal@alice.example", "x@bob.example").levels == ("aes",)


# --- exceptions end ------------------------------------------------------------------------------------------------


def test_after_its_last_day_a_file_or_rule_counts_as_if_it_were_not_there(tmp_path: Path) -> None:
    today = datetime.now(UTC).date()
    over, last = today - timedelta(days=1), today
    rule = '[[when]]\nsender = "ann@*"\nlevels = ["otp"]\nuntil = {}\n'
    files = {
        "default.toml": 'levels = ["otp"]\n',
        "over.example.toml": f"{CLEAR}require = 'sealed'\nuntil = {over}\n",
        "last.example.toml": f"{CLEAR}until = {last}\n",
        "rules.example.toml": AES + rule.format(over) + rule.format(last).replace('"otp"', '"otp", "aes"'),
    }
    policies = loaded(tmp_path, files)
    assert policies.decide(SENDER, "x@over.example").levels == ("otp",)
    assert policies.decide(SENDER, "x@last.example").in_clear
    assert policies.decide(SENDER, "x@rules.example").levels == ("otp", "aes")
    assert not policies.require("x@over.example").each
    [ended] = [look for look in policies.explain(SENDER, "x@over.example").lookups if look.not_now]
    assert (ended.file, ended.exists, ended.decides) == ("over.example.toml", True, False)
    told = [f"{Path(each.source).name}:{each.line} {each.what.partition(' on ')[0]}" for each in endings(policies)]
    assert told == [
        f"last.example.toml:3 this file ends in 0 days, after {last}; the rest counts then",
        "over.example.toml:4 this file ended",
        "rules.example.toml:5 this rule ended",
        f"rules.example.toml:9 this rule ends in 0 days, after {last}; the rest counts then",
    ]


async def test_a_copy_that_waits_leaves_no_more_when_the_file_that_let_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policies = loaded(
        tmp_path / "policies",
        {"example.toml": 'levels = ["otp"]\nsubdomains = true\n', "bob.example.toml": AES + "until = 2999-12-31\n"},
    )
    planner = planner_of(Ability(), tmp_path, compression=False)
    sealer = Sealer(lambda: planner, lambda: policies, cast("KeyRing", Keys({})))
    mail = Mail(Envelope(SENDER, (Recipient("x@bob.example"),)), mails.plain())
    [copy] = (await sealer.seal(mail)).copies
    assert await sealer.still_permitted(mail, [copy]) == [copy]
    monkeypatch.setattr(policy_settings, "today", lambda: date(3000, 1, 1))
    assert await sealer.still_permitted(mail, [copy]) == []


async def test_a_copy_that_waited_over_the_day_on_which_policy_rises_is_less_than_the_first_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger goes by that, and the set has the same version."""
    above = 'levels = ["aes", "rsa+aes", "rsa"]\nsubdomains = true\n'
    policies = loaded(
        tmp_path / "policies",
        {"example.toml": above, "bob.example.toml": 'levels = ["rsa"]\nuntil = 2999-12-30\n'},
    )
    planner = planner_of(Ability(), tmp_path, compression=False)
    sealer = Sealer(lambda: planner, lambda: policies, cast("KeyRing", Keys({})))
    mail = Mail(Envelope(SENDER, (Recipient("x@bob.example"),)), mails.plain())
    [copy] = (await sealer.seal(mail)).copies
    assert [each.planned for each in await sealer.still_permitted(mail, [copy])] == [()]
    monkeypatch.setattr(policy_settings, "today", lambda: date(3000, 1, 1))
    [waited] = await sealer.still_permitted(mail, [copy])
    assert [each.recipient.mailbox for each in waited.planned] == ["x@bob.example"]


# --- the three organisations ---------------------------------------------------------------------------------------


ORGANISATIONS_PEERS = {name: [f"{name}.example"] for name in ("fund", "agency", "lab", "clinic")}
ORGANISATIONS_DOMAINS = {
    "bank": ["bank.example", "board.bank.example"],
    "ministry": ["ministry.example"],
    "hospital": ["hospital.example", "wards.hospital.example"],
}


@pytest.mark.parametrize("name", sorted({organisation for organisation, _, _ in ORGANISATIONS}))
def test_an_organisation_of_the_readme_decides_as_its_tests_say(tmp_path: Path, name: str) -> None:
    files = {file: text for organisation, file, text in ORGANISATIONS if organisation == name}
    folder = PolicyFolder(
        write(tmp_path, files),
        ORGANISATIONS_PEERS,
        site=SiteFacts(frozenset(ORGANISATIONS_DOMAINS[name]), takes_from={}),
    )
    policies = folder.read_tested()
    assert len(folder.tests) >= 6
    assert list(floors_in_vain(policies)) == []


@pytest.mark.parametrize(
    ("name", "sender", "required"),
    [
        ("bank", "x@fund.example", [("sealed", "refuse")]),
        ("bank", "news@fund.example", []),
        ("ministry", "x@south.agency.example", [("aes", "refuse")]),
        ("ministry", "press@agency.example", [("aes", "refuse")]),
        ("ministry", "x@moving.agency.example", []),
        ("hospital", "x@clinic.example", [("sealed", "quarantine")]),
    ],
)
def test_an_organisation_of_the_readme_requires_what_it_says(
    tmp_path: Path, name: str, sender: str, required: list[tuple[str, str]]
) -> None:
    files = {file: text for organisation, file, text in ORGANISATIONS if organisation == name}
    policies = load_policies(write(tmp_path, files), ORGANISATIONS_PEERS)
    assert [(each.demand.level, each.demand.otherwise) for each in policies.require(sender).each] == required
