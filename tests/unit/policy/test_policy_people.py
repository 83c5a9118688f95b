"""Who a mail is from, for rules and floors: senders, authors, logins, their opposites, and those who are in doubt.
Standard: policies/README.md; doubt fits what protects, and never what permits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.policy.content import MessageFacts
from relay.policy.decide import PolicySet
from relay.policy.load import load_policies
from relay.policy.site import SiteFacts
from tests.testlib.policy_files import AES, PEERS, write

CLEAR = 'levels = ["plaintext"]\nreason = "public"\n'
BOARD = "*@board.alice.example"
SITE = SiteFacts(frozenset({"alice.example", "board.alice.example"}))


def loaded(directory: Path, files: Mapping[str, str], site: SiteFacts = SITE) -> PolicySet:
    return load_policies(write(directory, files), PEERS, site=site)


def mail(author: str | None = "ann@alice.example", login: str | None = "") -> MessageFacts:
    field = "" if author is None else f"From: {author}\r\n"
    return MessageFacts(f"{field}Subject: x\r\n\r\nx\r\n".encode(), login)


DOUBTFUL = [
    "ceo@[board.alice.example]",
    "ceo@[192.0.2.1]",
    "ceo@board..alice.example",
    "ceo@board.alice.example..",
    "ceo@board\u200b.alice.example",
    "ceo@board\u3002alice.example",
    "c\u200beo@board.alice.example",
    "ceo@\uff42oard.alice.example",
    "ceo%board.alice.example@alice.example",
    "board.alice.example!ceo@alice.example",
    '"ceo@board.alice.example"@alice.example',
    "ceo",
    "ceo@board.alice.example@evil.example",
    "c\\eo@board.alice.example",
    "@relay.example:ceo@board.alice.example",
]
SURE = [
    "ceo@board.alice.example",
    "CEO@Board.Alice.Example",
    "ceo@board.alice.example.",
    '"ceo"@board.alice.example',
    '"c\\eo"@board.alice.example',
    "ceo+x@board.alice.example",
    "ceo+@board.alice.example",
]
REWRITTEN = [
    "SRS0=abcd=TT=board.alice.example=ceo@forwarder.example",
    "SRS0+abcd=TT=board.alice.example=ceo@forwarder.example",
    "SRS1=efgh=first.example==abcd=TT=board.alice.example=ceo@second.example",
    "prvs=1234abcdef=ceo@board.alice.example",
    "btv1==abc123==ceo@board.alice.example",
    "btv1=abc=ceo@board.alice.example",
    "SRS0=abcd=TT=board.alice.example.=ceo@forwarder.example",
    "SRS0=abcd=TT=a'b=ceo@forwarder.example",
    "SRS1=efgh=first.example==abcd=TT=a'b=ceo@second.example",
    '"SRS0=abcd=TT=board.alice.example=ceo x"@forwarder.example',
    "SRS0=abcd=TT=board.alice.example=@forwarder.example",
    "prvs=1a=SRS0=abcd=TT=board.alice.example=ceo@forwarder.example",
    "SRS0=abcd=TT=board.alice.example=prvs=1a=ceo@forwarder.example",
    f"{'prvs=1a=' * 30}ceo@board.alice.example",
]


@pytest.mark.promise("Nobody slips past a floor by a sender, a From or a login that cannot be read")
@pytest.mark.parametrize("sender", [*SURE, *DOUBTFUL, *REWRITTEN])
@pytest.mark.parametrize("place", ["a floor", "a rule", "a rule that looks into the message"])
def test_who_may_be_the_sender_a_rule_names_gets_what_it_protects_with(tmp_path: Path, sender: str, place: str) -> None:
    files = {"default.toml": CLEAR}
    if place == "a floor":
        files["floors.toml"] = f'[[floor]]\nsender = "{BOARD}"\nlevels = ["otp"]\n'
    elif place == "a rule":
        files["default.toml"] += '[[when]]\nsender = "ceo@board.alice.example"\nlevels = ["otp"]\n'
    else:
        files["default.toml"] += f'[[when]]\nsender = "{BOARD}"\nheader = "Subject"\nlevels = ["otp"]\n'
    policies = loaded(tmp_path, files)
    assert policies.decide(sender, "x@else.example", mail()).levels == ("otp",)
    assert policies.decide("ann@alice.example", "x@else.example", mail()).levels == ("plaintext",)
    assert policies.decide("", "x@else.example", mail()).levels == ("plaintext",)


@pytest.mark.promise("Nobody slips past a floor by a sender, a From or a login that cannot be read")
@pytest.mark.parametrize(
    ("author", "fits"),
    [
        ("ceo@board.alice.example", True),
        ("The CEO <CEO@board.alice.example>", True),
        ("ceo+x@board.alice.example", True),
        ("ann@alice.example, ceo@board.alice.example", True),
        ("ann@alice.example", False),
        ('"ceo@board.alice.example" <ann@alice.example>', False),
        (None, True),
        ("[Jira] Foo, Inc. <x@foo.example>", False),
        ("Foo <ann@alice.example> x", True),
        ("=?utf-8?q?ceo=40board.alice.example?= <ann@alice.example>", True),
        ("ceo", True),
        ("ceo@[board.alice.example]", True),
        ("ceo%board.alice.example@alice.example", True),
    ],
)
def test_an_author_in_doubt_counts_as_the_one_a_floor_names(tmp_path: Path, author: str | None, fits: bool) -> None:
    floor = f'[[floor]]\nsender = "{BOARD}"\nlevels = ["otp"]\n'
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": floor})
    decision = policies.decide("bounce@alice.example", "x@else.example", mail(author))
    assert decision.levels == (("otp",) if fits else ("plaintext",))
    # Until the message is there, nothing is known of its author.
    assert policies.decide("bounce@alice.example", "x@else.example").levels == ("plaintext",)


@pytest.mark.parametrize(
    ("login", "fits"), [("ceo", 2), ("CEO", 2), ("ceo@alice.example", 1), ("ceo2", 0), ("", 0), (None, 1)]
)
def test_a_login_with_a_domain_or_not_known_may_be_the_user_whom_a_rule_names(
    tmp_path: Path, login: str | None, fits: int
) -> None:
    floor = '[[floor]]\nsender = "login:ceo"\nlevels = ["otp"]\n'
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": floor})
    assert policies.decide("x@alice.example", "x@else.example", mail(login=login)).in_clear is not (fits > 0)
    # An exception counts for those who are surely meant.
    floor = '[[floor]]\nnot_sender = ["login:ceo", "x@alice.example"]\nlevels = ["otp"]\n'
    policies = loaded(tmp_path / "except", {"default.toml": CLEAR, "floors.toml": floor})
    free = policies.decide("x@alice.example", "x@else.example", mail("x@alice.example", login=login)).in_clear
    assert free is (fits == 2 or login == "")


@pytest.mark.parametrize(
    ("login", "fits"), [("ceo@board.alice.example", True), ("ann", False), ("", False), (None, False)]
)
def test_a_login_that_is_an_address_is_one_of_who_sends(tmp_path: Path, login: str | None, fits: bool) -> None:
    floor = f'[[floor]]\nsender = "{BOARD}"\nlevels = ["otp"]\n'
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": floor})
    assert policies.decide("x@alice.example", "x@else.example", mail(login=login)).in_clear is not fits


@pytest.mark.promise("Nobody slips past a floor by a sender, a From or a login that cannot be read")
@pytest.mark.parametrize(
    ("sender", "author", "login", "clear"),
    [
        ("press@alice.example", "press@alice.example", "", True),
        ("press+x@alice.example", "Press <press@alice.example>", None, True),
        ("press@alice.example", "press@alice.example", "press@alice.example", True),
        ("press@alice.example", "press@alice.example", "eve", False),
        ("press@alice.example", "ann@alice.example", "", False),
        ("press@alice.example", "press@alice.example, ann@alice.example", "", False),
        ("press@alice.example", None, "", False),
        ("ann@alice.example", "press@alice.example", "", False),
        ("", "press@alice.example", "", False),
        *((each, "press@alice.example", "", False) for each in DOUBTFUL),
    ],
)
def test_an_exception_is_for_mail_of_which_all_senders_are_surely_named(
    tmp_path: Path, sender: str, author: str | None, login: str | None, clear: bool
) -> None:
    floor = '[[floor]]\nnot_sender = "press@alice.example"\nlevels = ["otp"]\n'
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": floor})
    assert policies.decide(sender, "x@else.example", mail(author, login)).in_clear is clear


def test_a_floor_is_for_recipients_of_whom_it_names_none(tmp_path: Path) -> None:
    floor = '[[floor]]\nsender = "*@alice.example"\nnot_recipient = "*@public.example"\nlevels = ["otp"]\n'
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": floor})
    assert policies.decide("ann@alice.example", "x@public.example").in_clear
    assert not policies.decide("ann@alice.example", "x@else.example").in_clear


# --- mail inside -----------------------------------------------------------------------------------------------------


def test_a_floor_leaves_mail_to_our_own_domains_alone_and_a_rule_of_their_file_does_not(tmp_path: Path) -> None:
    floor = '[[floor]]\nsubject_tag = "[insider]"\nlevels = ["otp"]\n'
    content = MessageFacts(b"Subject: [insider]\r\n\r\n")
    policies = loaded(tmp_path, {"default.toml": CLEAR, "floors.toml": floor})
    assert policies.decide("ann@alice.example", "ben@alice.example", content).in_clear
    assert policies.decide("ann@alice.example", "ben@ALICE.example", content).in_clear
    assert not policies.decide("ann@alice.example", "ben@sub.alice.example", content).in_clear
    assert not policies.decide("ann@alice.example", "ben@else.example", content).in_clear
    [look] = policies.explain("ann@alice.example", "ben@alice.example", content).floors
    assert "floors leave alone" in look.because
    policies = loaded(tmp_path, {"alice.example.toml": CLEAR + floor.replace("floor", "when")})
    assert not policies.decide("ann@alice.example", "ben@alice.example", content).in_clear


# --- tags --------------------------------------------------------------------------------------------------------------


def test_tags_are_separated_as_the_site_says(tmp_path: Path) -> None:
    files = {
        "bob.example.toml": AES,
        "bob.example/ben.toml": 'levels = ["otp"]\n',
        "bob.example/%3Dben.toml": 'levels = ["otp"]\n',
        "floors.toml": '[[floor]]\nsender = "ceo@alice.example"\notherwise = "refuse"\n',
    }
    separated = loaded(tmp_path, files, SITE._replace(tag_separators="-="))
    for recipient, levels in (
        ("ben-x@bob.example", ("otp",)),
        ("ben=@bob.example", ("otp",)),
        ("ben-a=b@bob.example", ("otp",)),
        ("ben+x@bob.example", ("aes",)),
        ("-ben@bob.example", ("aes",)),
        ("=ben-x@bob.example", ("aes",)),
    ):
        assert separated.decide("ann@alice.example", recipient).levels == levels, recipient
    assert separated.decide("ceo-x@alice.example", "x@bob.example").otherwise == "refuse"
    assert separated.decide("ceo+x@alice.example", "x@bob.example").otherwise == "hold"
    usual = loaded(tmp_path, {})
    assert usual.decide("ann@alice.example", "ben+@bob.example").levels == ("otp",)
    assert usual.decide("ann@alice.example", "ben-x@bob.example").levels == ("aes",)


# --- what raising changes, and what is said of it ----------------------------------------------------------------------


def test_a_floor_without_levels_is_not_named_as_what_decided(tmp_path: Path) -> None:
    floor = '[[floor]]\nsender = "*@alice.example"\npriority = "normal"\n'
    bob = 'levels = ["pqc"]\npriority = "low"\n'
    policies = loaded(tmp_path, {"default.toml": CLEAR, "bob.example.toml": bob, "floors.toml": floor})
    for recipient, file in (("x@else.example", "default.toml"), ("x@bob.example", "bob.example.toml")):
        decision = policies.decide("ann@alice.example", recipient)
        assert (Path(decision.source).name, decision.rule, decision.priority) == (file, 0, "normal")


def test_a_decision_has_times_as_people_write_them(tmp_path: Path) -> None:
    floor = '[[floor]]\nsender = "*@alice.example"\nlevels = ["otp"]\notherwise = "hold 720 min"\n'
    policies = loaded(tmp_path, {"default.toml": AES, "floors.toml": floor})
    assert policies.decide("ann@alice.example", "x@bob.example").otherwise == "hold 12 h"


@pytest.mark.parametrize(
    ("file", "rule", "octets", "levels"),
    [
        ('levels = ["otp", "aes"]\nmax_size = { aes = "1 KiB" }', 'levels = ["otp"]', 5000, ["otp"]),
        ('levels = ["aes"]\nmax_size = { aes = "1 KiB" }', 'levels = ["otp", "aes"]', 5000, ["otp"]),
        ('levels = ["aes", "pqc"]\nmax_size = { aes = 1000 }', 'levels = ["aes"]', 5000, []),
        ('levels = ["otp", "rsa"]\nmax_size = { otp = 100 }', 'levels = ["pqc"]', 500, ["pqc"]),
        ('levels = ["otp", "rsa"]\nmax_size = { otp = 100 }', 'levels = ["pqc"]', 50, ["otp", "pqc"]),
    ],
)
def test_the_files_limits_are_for_the_levels_of_floors_too(
    tmp_path: Path, file: str, rule: str, octets: int, levels: list[str]
) -> None:
    floor = f'[[floor]]\nsubject_tag = "[x]"\n{rule}\n'
    policies = loaded(tmp_path, {"default.toml": f'peer = "bob"\n{file}\n', "floors.toml": floor})
    content = MessageFacts(b"Subject: [x]\r\n\r\n".ljust(octets, b"x"))
    decision = policies.decide("ann@alice.example", "x@else.example", content)
    assert [level for level in decision.levels if not decision.too_big(level, octets)] == levels


@pytest.mark.parametrize(
    "sender",
    [
        "SRS0=HHHH=TT=evil.example=x@bank.example",
        "SRS1=HHHH=first.example==HHHH=TT=evil.example=x@bank.example",
        "SRS0=bad@bank.example",
        "prvs=1a=SRS0=HHHH=TT=evil.example=x@bank.example",
    ],
)
def test_who_may_stand_for_somebody_else_is_not_surely_whom_not_sender_leaves_alone(
    tmp_path: Path, sender: str
) -> None:
    """The domain of such an address is the forwarder's."""
    rule = 'levels = ["plaintext"]\nreason = "x"\n[[when]]\nnot_sender = "*@bank.example"\nlevels = ["aes"]\n'
    policies = load_policies(write(tmp_path, {"default.toml": rule}), PEERS)
    message = MessageFacts(b"From: clerk@bank.example\r\n\r\n")
    assert policies.decide(sender, "x@elsewhere.example", message).levels == ("aes",)
    for own in ("clerk@bank.example", "SRS0=HHHH=TT=bank.example=clerk@bank.example", "prvs=1a=clerk@bank.example"):
        assert policies.decide(own, "x@elsewhere.example", message).levels == ("plaintext",)


def test_no_pattern_names_those_who_have_not_logged_in(tmp_path: Path) -> None:
    rule = "[[when]]\nsender = 'login:<>'\nlevels = ['otp']\n"
    with pytest.raises(ConfigError, match="'login:<>' fits nobody"):
        load_policies(write(tmp_path, {"bob.example.toml": AES + rule}), PEERS)


@pytest.mark.parametrize(
    ("pattern", "special"),
    [
        ("*@board.bank.example, *@x.example", "@"),
        ("ann <ann@bank.example>", " "),
        ("ann;ben@bank.example", ";"),
        ("login:ann@bank.example", ":"),
    ],
)
def test_a_pattern_that_can_fit_no_address_is_an_error_wherever_it_stands(
    tmp_path: Path, pattern: str, special: str
) -> None:
    said = f"no address has {special!r} there"
    for name, text in (
        ("groups.toml", f"some = ['{pattern}']\n"),
        ("floors.toml", f"[[floor]]\nrecipient = '{pattern}'\nlevels = ['otp']\n"),
    ):
        directory = write(tmp_path / name, {"bob.example.toml": AES, name: text})
        with pytest.raises(ConfigError, match=said):
            load_policies(directory, PEERS)
    rule = f"[[when]]\nsender = '{pattern}'\nlevels = ['otp']\n"
    directory = write(tmp_path / "rule", {"bob.example.toml": AES + rule})
    if pattern.startswith("login:"):
        load_policies(directory, PEERS)
    else:
        with pytest.raises(ConfigError, match=said):
            load_policies(directory, PEERS)
