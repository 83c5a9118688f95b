"""Sets of policy files as wholes: tests.toml, `policy test`, `diff` without mail, `install`, `list`.
policies/README.md says what each does; what the relay makes of it is looked at, too.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from structlog.testing import LogCapture

from relay.cli import policy_sets
from relay.errors import ConfigError
from relay.files.quiet import GONE_QUIET_S
from relay.policy import reload as policy_reload
from relay.policy.compare import Comparison, Difference, compare
from relay.policy.comparing import pointwise
from relay.policy.load import PolicyFolder, load_policies
from relay.policy.reload import PoliciesInForce
from tests.testlib import relay_command
from tests.testlib.nobody import NOBODY, by_root
from tests.testlib.policy_files import AES, PEERS, write
from tests.testlib.watched_policies import count, levels, until, watched
from tests.unit.policy.test_policy_cli import (
    log_as_before as log_as_before,  # a fixture
    site as site,  # a fixture
)

PQC = 'levels = ["pqc"]\n'
CLEAR = 'levels = ["plaintext"]\n'
BANK = """
peer = "bob"
levels = ["aes"]
max_size = { otp = "256 KiB" }

[[when]]
sender = "*@board.alice.example"
levels = ["otp"]
otherwise = "refuse"

[[when]]
subject_tag = "[secret]"
levels = ["otp", "aes"]
"""
TESTS = """
# The board's mail goes by one-time pad.
[[test]]
sender = "ceo@board.alice.example"
recipient = "x@bank.example"
expect = ["otp"]
peer = "bob"
file = "bank.example.toml"
otherwise = "refuse"

[[test]]
sender = "ceo@board.alice.example"
recipient = "x@bank.example"
size = "300 KiB"
expect = "refused"

[[test]]
sender = "ann@alice.example"
recipient = "x@bank.example"
subject = "[Secret] plan"
expect = ["otp", "aes"]

[[test]]
sender = "ann@alice.example"
recipient = "x@bank.example"
size = "2 MiB"
expect = "aes"

[[test]]
sender = "<>"
recipient = "x@nobody.example"
expect = "held"
"""
SETS = {"bank.example.toml": BANK, "tests.toml": TESTS}
Run = Callable[..., Result]


def failed(directory: Path, tests: str, files: Mapping[str, str] | None = None) -> list[str]:
    """What is said of these tests, as seen from the directory."""
    write(directory, {**(files or {"bank.example.toml": BANK}), "tests.toml": tests})
    with pytest.raises(ConfigError) as caught:
        PolicyFolder(directory, PEERS).read_tested()
    return [problem.removeprefix(f"{directory}/") for problem in caught.value.problems]


# --- tests.toml -----------------------------------------------------------------------------------------------------


def test_tests_that_are_met_say_nothing_and_belong_to_the_version(tmp_path: Path) -> None:
    folder = PolicyFolder(write(tmp_path, SETS), PEERS)
    version = folder.read_tested().version
    assert len(folder.tests) == 5
    assert set(folder.read().files) == {"bank.example.toml"}
    write(tmp_path, {"tests.toml": TESTS + "# more\n"})
    assert folder.read_tested().version != version


def test_a_test_that_fails_is_told_with_its_line_and_what_decided(tmp_path: Path) -> None:
    [said] = failed(tmp_path, TESTS.replace('expect = ["otp", "aes"]', 'expect = "aes"\npriority = "low"'))
    assert said == (
        "tests.toml:17: mail from ann@alice.example to x@bank.example (subject [Secret] plan): "
        "expected aes, and it is otp, then aes; "
        f"expected priority 'low', and it is 'normal' (decided by {tmp_path}/bank.example.toml:3)"
    )


def test_tests_in_one_line_are_told_apart_by_what_they_describe(tmp_path: Path) -> None:
    one = 'sender = "a@alice.example", recipient = "x@bank.example", expect = "otp", subject = "[plan] {}"'
    said = failed(tmp_path, f"test = [{{ {one.format(1)} }}, {{ {one.format(2)}, author = 'B <b@alice.example>' }}]")
    assert "from a@alice.example to x@bank.example (subject [plan] 1): expected otp" in said[0]
    assert "(author B <b@alice.example>, subject [plan] 2): expected otp" in said[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is nothing in it"),
        (" \r\n\n", "there is nothing in it"),
        ("# none\n", "test: missing"),
        ("[[test]]\nsender = 'a@b'\nrecipient = 'x'\nexpect = 'aes'", ":3: test.0.recipient: it has no domain"),
        ("[[test]]\nsender = 'a'\nrecipient = 'x@y'\nexpect = 'aes'", ":2: test.0.sender: it has no domain"),
        ("[[test]]\nsender = 'a@b'\nrecipient = 'x@y'\nexpect = 'seald'", ":4: test.0.expect: 'seald' is not a level"),
        ("[[test]]\nsender = 'a@b'\nrecipient = 'x@y'\nexpects = 'aes'", "unknown setting; did you mean 'expect'?"),
        ("[[test]]\nsender = 'a@b'\nrecipient = 'x@y'\nexpect = 'aes'\nheader = 'X'", ':5: test.0.header: write each field as "Name: value"'),
    ],
)  # fmt: skip
def test_a_wrong_tests_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    assert said in "\n".join(failed(tmp_path, text))


def test_a_test_with_an_end_is_not_tried_any_more_when_that_is_over(tmp_path: Path) -> None:
    wrong = "[[test]]\nsender = 'a@b'\nrecipient = 'x@bank.example'\nexpect = 'plaintext'\nuntil = {}\n"
    write(tmp_path, {"bank.example.toml": BANK, "tests.toml": wrong.format("2001-01-01")})
    PolicyFolder(tmp_path, PEERS).read_tested()
    assert failed(tmp_path, wrong.format("2999-01-01"))


async def test_a_set_whose_tests_fail_does_not_come_into_force(
    tmp_path: Path, log: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_reload, "QUIET_S", 0.1)
    directory = write(tmp_path / "policies", SETS)
    async with watched(directory) as policies:
        before = policies().version
        write(directory, {"bank.example.toml": BANK.replace('["otp"]', '["aes"]'), "default.toml": AES})
        await until(lambda: bool(policies.problems))
        assert (policies().version, count(policies, "broken")) == (before, 1)
        assert "expected otp, and it is aes" in policies.problems[0]
        write(directory, {"tests.toml": TESTS.replace("nobody.example", "bank.example")})
        write(directory, {"bank.example.toml": BANK})
        await until(lambda: "expected held, and it is aes" in "".join(policies.problems))
        write(directory, {"tests.toml": TESTS.partition('[[test]]\nsender = "<>"')[0]})
        await until(lambda: not policies.problems)
        assert levels(policies, "x@y.example") == ("aes",)
    with pytest.raises(ConfigError, match="expected"):
        write(directory, {"tests.toml": TESTS})
        PoliciesInForce(directory, PEERS)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tests.toml", TESTS.replace('expect = "aes"', 'expect = "clear"'), "expect: 'clear' is not a level; did you mean 'plaintext'?"),
        ("tests.toml", TESTS.replace('expect = "aes"', 'expect = "hold"'), 'expect: write "held" or "refused"'),
        ("tests.toml", "[test]\nsender = 'a@b'", "test: write its name in double brackets"),
        ("tests.toml", TESTS.replace("recipient", "to", 1), "to: unknown setting; it is called recipient"),
        ("groups.toml", 'all = ["group:board"]', "all: a group has addresses and patterns, and no groups"),
        ("floors.toml", '[[when]]\nsender = "a@b"', "when: unknown setting; floors are [[floor]] tables"),
    ],
)  # fmt: skip
def test_what_is_wrong_beside_the_policies_is_said_with_the_remedy(
    tmp_path: Path, name: str, text: str, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_policies(write(tmp_path, SETS | {name: text}), PEERS)
    assert any(said in each for each in caught.value.problems), caught.value.problems
    assert not any("validation" in each or "valid tuple" in each for each in caught.value.problems)


@pytest.mark.parametrize("name", ["floors.toml", "groups.toml", "tests.toml"])
def test_files_beside_the_policies_vanish_like_them_and_are_for_no_domain_of_that_name(
    name: str, tmp_path: Path
) -> None:
    text = {"floors.toml": '[[floor]]\nsender = "a@b"\nlevels = ["otp"]\n', "groups.toml": 'staff = ["*@x.example"]\n'}
    write(tmp_path, SETS | {name: text.get(name, TESTS)})
    now = 1000.0
    policies = PoliciesInForce(tmp_path, PEERS, lambda: now)
    before = policies().version
    assert name not in policies().files
    assert policies().explain("", f"x@{name[:-5]}").decision is None
    (tmp_path / name).unlink()
    policies.reload()
    assert policies().version == before
    now += GONE_QUIET_S
    policies.reload()
    assert policies().version != before
    (tmp_path / name).touch()
    policies.reload()
    assert "there is nothing in it" in policies.problems[0]


def test_the_commands_run_the_tests(site: Callable[[Mapping[str, str]], Run], tmp_path: Path) -> None:
    run = site(SETS)
    assert (run("test").exit_code, run("test").output) == (0, "5 tests, 0 failed.\n")
    assert run("check").exit_code == 0
    write(tmp_path / "policies", {"bank.example.toml": BANK.replace('["otp"]', '["aes"]')})
    result = run("test", "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["tests"], len(found["failed"])) == (1, 5, 2)
    checked = run("check")
    assert (checked.exit_code, "expected otp, and it is aes" in checked.stderr) == (1, True)
    assert run("explain", "--offline", "a@b.example", "x@bank.example").exit_code == 0


# --- diff -----------------------------------------------------------------------------------------------------------


def differences(tmp_path: Path, old: Mapping[str, str], new: Mapping[str, str]) -> list[Difference]:
    sets = [load_policies(write(tmp_path / name, each), PEERS) for name, each in (("old", old), ("new", new))]
    old_set, new_set = sets
    return list(compare(old_set, new_set).differences)


RULE = '\n[[when]]\nsender = "{}"\nlevels = ["{}"]\n'
SMALL = '[[when]]\nheader = "X-Small"\nlevels = ["{}"]\n'
DEFAULT = {"default.toml": AES}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        pytest.param({}, {"default.toml": "# other\n" + AES}, [], id="a comment"),
        pytest.param({}, {"default.toml": PQC}, [("other", "everybody else", "levels: pqc instead of aes"),
            ("down", "everybody else at bob.example", "levels: pqc instead of aes"),
            ("down", "everybody else at carol.example", "levels: pqc instead of aes")], id="default.toml, by which nothing leaves to who has no peer"),
        pytest.param({}, {"bob.example.toml": 'levels = ["aes", "rsa"]'}, [("down", "everybody else at bob.example", "levels: aes, rsa instead of aes")], id="a fallback"),
        pytest.param({}, {"bob.example.toml": AES + 'otherwise = "refuse"'}, [("other", "everybody else at bob.example", "otherwise: refuse instead of hold")], id="otherwise"),
        pytest.param({}, {"x.example.toml": AES + 'peer = "bob"'}, [("let go", "everybody else at x.example", "peer: bob instead of none")], id="a peer"),
        pytest.param({}, {"x.example/a%40b.toml": AES + 'peer = "bob"'}, [("let go", "a@b@x.example", "aes instead of held")], id="what may be a route"),
        pytest.param({}, {"bob.example/x.toml": CLEAR}, [("down", "x@bob.example", "levels: plaintext instead of aes")], id="clear text for one"),
        pytest.param({}, {"default.toml": CLEAR}, [("let go", "everybody else", "levels: plaintext instead of aes"),
            ("stopped", "everybody else at bob.example", "held instead of aes"),
            ("stopped", "everybody else at carol.example", "held instead of aes")], id="clear text, and peers held"),
        pytest.param({"x.example.toml": PQC + 'peer = "bob"\n', "default.toml": AES + 'peer = "bob"'}, {"x.example.toml": PQC + 'peer = "bob"\nsubdomains = true', "default.toml": AES + 'peer = "bob"'}, [("down", "everybody below x.example", "levels: pqc instead of aes")], id="subdomains"),
        pytest.param({"bob.example.toml": 'levels = ["pqc+aes"]'}, {"bob.example.toml": PQC}, [("down", "everybody else at bob.example", "levels: pqc instead of pqc+aes")], id="a quantum key on top"),
        pytest.param({"bob.example.toml": 'levels = ["otp", "aes"]\nmax_size = { otp = "1 MiB" }'}, {"bob.example.toml": 'levels = ["otp", "aes"]\nmax_size = { otp = "1 KiB" }'},
            [("down", "everybody else at bob.example", "max_size: otp 1024 instead of otp 1048576")], id="a size that leads to less"),
        pytest.param({}, {"bob.example.toml": AES + RULE.format("<>", "otp")}, [("up", "everybody else at bob.example", "levels: otp instead of aes")], id="bounces"),
        pytest.param({"bob.example.toml": AES + RULE.format("*@a.example", "otp") + RULE.format("ceo@*", "otp")}, {"bob.example.toml": AES + RULE.format("ceo@*", "otp") + RULE.format("*@a.example", "otp")},
            [], id="the order of two rules"),
        pytest.param({"bob.example.toml": AES + '[[when]]\nsubject_tag = ["a", "b"]\nlevels = ["otp"]'}, {"bob.example.toml": AES + '[[when]]\nsubject_tag = "a"\nlevels = ["otp"]'},
            [("down", "everybody else at bob.example", "levels: aes instead of otp")], id="the second of two texts"),
        pytest.param({"bob.example.toml": AES + '[[when]]\nheader = "X"\nattachment_name = "*.docx"\nlevels = ["otp"]'}, {"bob.example.toml": AES},
            [("down", "everybody else at bob.example", "levels: aes instead of otp")], id="an attachment and a field"),
        pytest.param({"floors.toml": '[[floor]]\nsender = "legal@alice.example"\nrecipient = "vip*@bob.example"\nlevels = ["otp"]'}, {},
            [("down", "everybody else at bob.example", "levels: aes instead of otp")], id="a floor"),
        pytest.param({"groups.toml": 'staff = ["*@x.example", "a@y.example"]', "bob.example.toml": AES + RULE.format("group:staff", "otp")},
            {"groups.toml": 'staff = ["*@x.example"]', "bob.example.toml": AES + RULE.format("group:staff", "otp")},
            [("down", "everybody else at bob.example", "levels: aes instead of otp")], id="a group"),
        pytest.param({"bob.example.toml": AES + 'require = "pqc"'}, {"bob.example.toml": AES},
            [("down", "everybody else at bob.example", "require: pqc of peer bob, or refuse no longer")], id="what must arrive sealed"),
        pytest.param({"bob.example.toml": AES + SMALL.format("otp")}, {"bob.example.toml": CLEAR + SMALL.format("otp")},
            [("down", "everybody else at bob.example", "levels: plaintext instead of aes")], id="mail that no rule fits"),
        pytest.param({"bob.example.toml": 'levels = ["otp", "aes", "rsa"]'}, {"bob.example.toml": 'levels = ["otp", "rsa"]'},
            [("down", "everybody else at bob.example", "levels: otp, rsa instead of otp, aes, rsa")], id="a level between two others"),
        pytest.param({"bob.example.toml": 'levels = ["rsa", "otp"]\nmax_size = { rsa = "1 KiB" }'}, {"bob.example.toml": 'levels = ["rsa", "otp"]'},
            [("down", "everybody else at bob.example", "max_size: none instead of rsa 1024")], id="a larger size for a lesser level, by which mail leaves that had only the stronger one"),
        pytest.param({"bob.example.toml": AES + 'max_size = { aes = "1 KiB" }'}, {"bob.example.toml": AES + 'max_size = { aes = "1 MiB" }'},
            [("other", "everybody else at bob.example", "max_size: aes 1048576 instead of aes 1024")], id="a larger size for the only level"),
        pytest.param({"bob.example.toml": 'levels = ["rsa+aes"]\n'}, {"bob.example.toml": PQC},
            [("up", "everybody else at bob.example", "levels: pqc instead of rsa+aes")], id="a better level without the quantum key"),
    ],
)  # fmt: skip
def test_diff_finds_every_decision_that_differs_without_any_mail(
    old: Mapping[str, str], new: Mapping[str, str], expected: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    found = differences(tmp_path, DEFAULT | dict(old), DEFAULT | dict(new))
    assert sorted((each.direction, each.recipients, "; ".join(each.changed)) for each in found) == sorted(expected)


UNTIL = "until = {}\n"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (CLEAR + UNTIL.format("2998-01-31"), CLEAR, [("down", "any message, from 2998-02-01 on", "levels: plaintext instead of aes")]),
        (CLEAR + UNTIL.format("2998-01-31"), CLEAR + UNTIL.format("2999-12-31"), [("down", "any message, from 2998-02-01 on", "levels: plaintext instead of aes")]),
        (CLEAR, CLEAR + UNTIL.format("2998-01-31"), [("up", "any message, from 2998-02-01 on", "levels: aes instead of plaintext")]),
        ('levels = ["otp"]\n', 'levels = ["otp"]\n' + UNTIL.format("2998-01-31"), [("down", "any message, from 2998-02-01 on", "levels: aes instead of otp")]),
        (AES + RULE.format("ceo@*", "otp"), AES + RULE.format("ceo@*", "otp") + UNTIL.format("2998-01-31"), [("down", "any message, from 2998-02-01 on", "levels: aes instead of otp")]),
        (AES + RULE.format("ceo@*", "otp") + RULE.format("*@a.example", "otp"), AES + RULE.format("ceo@*", "otp") + UNTIL.format("2998-01-31") + RULE.format("*@a.example", "otp"),
            [("down", "any message, from 2998-02-01 on", "levels: aes instead of otp")]),
        (CLEAR + UNTIL.format("2998-01-31"), PQC + UNTIL.format("2998-01-31"), [("up", "any message", "levels: pqc instead of plaintext")]),
    ],
    ids=["no end any more", "a later end", "an end", "of what is stronger", "of a rule", "of one of two rules", "the same end"],
)  # fmt: skip
def test_diff_looks_at_the_days_after_what_ends(
    before: str, after: str, expected: list[tuple[str, str, str]], tmp_path: Path
) -> None:
    found = differences(tmp_path, *(DEFAULT | {"bob.example/x.toml": text} for text in (before, after)))
    assert [(each.direction, each.message, "; ".join(each.changed)) for each in found] == expected


def test_diff_says_where_more_ends_than_it_can_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "MAX_DAYS", 1)
    rules = "".join(RULE.format(f"a{number}@*", "otp") + UNTIL.format(f"299{number}-01-31") for number in (1, 2))
    old, new = {"bob.example/x.toml": AES + rules}, {"bob.example/x.toml": CLEAR + rules}
    sets = [load_policies(write(tmp_path / name, DEFAULT | each), PEERS) for name, each in (("old", old), ("new", new))]
    old_set, new_set = sets
    found = compare(old_set, new_set)
    assert ("down", ("it changes on more than 1 days",)) in [
        (each.direction, each.changed) for each in found.differences
    ]
    assert not found.proven


def test_diff_is_for_pipelines_too(site: Callable[[Mapping[str, str]], Run], tmp_path: Path) -> None:
    run = site(DEFAULT | {"bob.example.toml": AES})
    old, new = str(tmp_path / "policies"), str(write(tmp_path / "new", DEFAULT | {"bob.example.toml": CLEAR}))
    found = json.loads(run("diff", old, new, "--json").stdout)
    assert found["weaker"]
    assert [(each["direction"], each["recipients"], each["changed"]) for each in found["differences"]] == [
        ("down", "everybody else at bob.example", ["levels: plaintext instead of aes"])
    ]
    assert [run("diff", *two, "--strict").exit_code for two in ((old, new), (new, old), (old, old))] == [1, 0, 0]
    assert "levels: plaintext instead of aes" in run("diff", old, new).stdout


@pytest.mark.parametrize(
    ("after", "senders"),
    [
        (CLEAR, ["anybody"]),
        (AES + RULE.format("ceo@*", "otp"), ["ceo@*"]),
    ],
    ids=["all", "one"],
)
def test_diff_says_whose_mail_changes(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, after: str, senders: list[str]
) -> None:
    run = site(DEFAULT | {"bob.example.toml": AES})
    old, new = str(tmp_path / "policies"), str(write(tmp_path / "new", DEFAULT | {"bob.example.toml": after}))
    found = json.loads(run("diff", old, new, "--json").stdout)["differences"]
    assert [each["senders"] for each in found] == senders
    assert senders[0] in run("diff", old, new).stdout
    assert "<>" not in run("diff", old, new).stdout


# --- install --------------------------------------------------------------------------------------------------------


def in_place(site: Callable[[Mapping[str, str]], Run], top: Path, files: Mapping[str, str]) -> Run:
    """The command on a site whose policies are a link to the directory `one`."""
    run = site({})
    write(top / "one", files)
    (top / "policies").symlink_to("one")
    return run


@by_root
def test_what_others_can_change_or_the_unit_does_not_see_is_not_installed(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = in_place(site, tmp_path, SETS)
    two = write(tmp_path / "two", SETS)
    os.chown(two, NOBODY.pw_uid, NOBODY.pw_gid)
    result = run("install", str(two))
    assert (result.exit_code, (tmp_path / "policies").resolve()) == (1, tmp_path / "one")
    assert f"Not installed: {two}: user nobody can change it: copy it into {tmp_path}" in result.stderr
    os.chown(two, 0, 0)
    monkeypatch.setattr(policy_sets, "unit_of", lambda _: "a unit")
    monkeypatch.setattr(policy_sets, "NOT_IN_UNITS", (str(two.parent),))
    assert f"the unit of the relay does not see {two} " in run("install", str(two)).stderr


def test_install_swaps_the_link_at_once_and_is_undone_by_another_install(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path
) -> None:
    run = in_place(site, tmp_path, SETS)
    write(tmp_path / "two", {"bank.example.toml": BANK} | DEFAULT)
    result = run("install", str(tmp_path / "two"))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "policies").readlink() == tmp_path / "two"
    assert "let go" in result.stdout
    assert f"Undo with: qumail-relay policy install {tmp_path / 'one'}" in result.stdout
    assert run("install", str(tmp_path / "one")).exit_code == 0
    assert (tmp_path / "policies").resolve() == tmp_path / "one"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".policies.installed",
        "one",
        "policies",
        "relay.toml",
        "two",
    ]


async def test_nothing_is_installed_that_cannot_be_said(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path
) -> None:
    in_place(site, tmp_path, SETS)
    new = write(tmp_path / "two", DEFAULT)
    with Path("/dev/full").open("wb") as full:
        command = ("policy", "install", "--config", tmp_path / "relay.toml", new)
        process = await relay_command.start(*command, stdout=full)
        assert await process.wait() == 1
    assert (tmp_path / "policies").resolve() == tmp_path / "one"


def test_what_was_swapped_is_called_installed_whatever_comes_after(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = in_place(site, tmp_path, SETS)
    (tmp_path / ".policies.new").symlink_to("left by one that was killed")

    def fails(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    result = run("install", str(write(tmp_path / "two", DEFAULT)))
    assert (result.exit_code, (tmp_path / "policies").resolve()) == (1, tmp_path / "two")
    assert result.stderr == f"Installed: {tmp_path / 'two'}; but afterwards: Input/output error\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".policies.installed",
        "one",
        "policies",
        "relay.toml",
        "two",
    ]


def test_two_installs_wait_for_each_other(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one with --strict could be compared with a set that is no longer there when it is swapped."""
    run = in_place(site, tmp_path, SETS)
    write(tmp_path / "two", SETS)
    refused: list[bool] = []

    def compared(*what: Any) -> Comparison:
        other = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            refused.append(False)
        except BlockingIOError:
            refused.append(True)
        finally:
            os.close(other)
        return compare(*what)

    monkeypatch.setattr("relay.cli.policy_sets.compare", compared)
    assert run("install", str(tmp_path / "two")).exit_code == 0
    assert refused == [True]


def test_a_link_that_a_killed_install_has_left_is_in_nobodys_way(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path
) -> None:
    run = in_place(site, tmp_path, SETS)
    (tmp_path / f".policies.{os.getpid()}").symlink_to("gone")
    assert run("install", str(write(tmp_path / "two", SETS))).exit_code == 0
    assert (tmp_path / "policies").readlink() == tmp_path / "two"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"bank.example.toml": "levels = ["}, "bank.example.toml:1"),
        ({"bank.example.toml": BANK.replace('["otp"]', '["aes"]'), "tests.toml": TESTS}, "expected otp, and it is aes"),
        ({"bank.example.toml": BANK.replace('["otp"]', '["aes"]')}, "Not installed: something may be weaker."),
    ],
)
def test_install_leaves_all_as_it_was_where_something_is_wrong(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, files: Mapping[str, str], said: str
) -> None:
    run = in_place(site, tmp_path, SETS)
    result = run("install", "--strict", str(write(tmp_path / "two", files)))
    assert (result.exit_code, said in result.stderr) == (1, True)
    assert (tmp_path / "policies").resolve() == tmp_path / "one"


@pytest.mark.parametrize(
    "target", ["../policies/.shared", "{top}/policies/.shared", "../two/more", "../policies/bob.example"]
)
def test_a_set_with_a_link_through_the_policies_own_link_is_not_installed(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, target: str
) -> None:
    """Before the swap it leads to another file than afterwards."""
    run = in_place(site, tmp_path, SETS | {".shared": PQC, "bob.example/ann.toml": PQC})
    two = write(tmp_path / "two", SETS | {".shared": CLEAR})
    (two / "more").symlink_to("../policies/.shared")
    name = "sub.example" if target.endswith("bob.example") else "shared.example.toml"
    (two / name).symlink_to(target.format(top=tmp_path))
    result = run("install", str(two))
    assert (result.exit_code, "which is about to lead elsewhere" in result.stderr) == (1, True), result.output
    assert (tmp_path / "policies").resolve() == tmp_path / "one"
    (two / name).unlink()
    (two / "more").unlink()
    (two / "shared.example.toml").symlink_to(".shared")
    assert run("install", str(two)).exit_code == 0


def test_what_was_written_during_the_comparison_is_not_installed(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = in_place(site, tmp_path, SETS)
    two = write(tmp_path / "two", SETS)

    def compared(*what: Any) -> Comparison:
        write(two, {"bank.example.toml": CLEAR})
        return compare(*what)

    monkeypatch.setattr("relay.cli.policy_sets.compare", compared)
    result = run("install", "--strict", str(two))
    assert (result.exit_code, "has changed meanwhile" in result.stderr) == (1, True)
    assert (tmp_path / "policies").resolve() == tmp_path / "one"


def test_install_says_how_a_directory_becomes_a_link(site: Callable[[Mapping[str, str]], Run], tmp_path: Path) -> None:
    run = site(SETS)
    result = run("install", str(write(tmp_path / "two", SETS)))
    assert result.exit_code == 1
    how = result.stderr.partition("once: ")[2].strip()
    assert os.system(how) == 0
    assert run("install", str(tmp_path / "two")).exit_code == 0


def test_install_mends_a_set_that_is_broken_or_gone(site: Callable[[Mapping[str, str]], Run], tmp_path: Path) -> None:
    run = in_place(site, tmp_path, {"bank.example.toml": "levels = ["})
    two = str(write(tmp_path / "two", SETS))
    assert "nothing to compare with" in run("install", "--strict", two).stderr
    result = run("install", two, "--json")
    assert (result.exit_code, "cannot be used" in result.stderr) == (0, True)
    assert json.loads(result.stdout)["directory"] == two
    (tmp_path / "policies").unlink()
    (tmp_path / "policies").symlink_to("policies")
    assert run("install", two).exit_code == 0
    assert (tmp_path / "policies").resolve() == tmp_path / "two"


async def test_a_relay_takes_an_installed_set_as_a_whole(
    site: Callable[[Mapping[str, str]], Run], tmp_path: Path, log: LogCapture
) -> None:
    run = in_place(site, tmp_path, {"default.toml": AES, "bob.example.toml": AES})
    write(tmp_path / "two", {"default.toml": PQC, "bob.example.toml": PQC})
    async with watched(tmp_path / "policies") as policies:
        result: Any = await asyncio.to_thread(run, "install", str(tmp_path / "two"))
        assert result.exit_code == 0
        await until(lambda: levels(policies) == levels(policies, "x@y.example") == ("pqc",))
        assert count(policies, "loaded") == 1


# --- list -----------------------------------------------------------------------------------------------------------


def test_list_finds_files_by_what_they_say(site: Callable[[Mapping[str, str]], Run]) -> None:
    run = site(
        {
            "default.toml": AES,
            "bob.example.toml": 'levels = ["otp", "aes"]\n',
            "clear.example.toml": CLEAR + 'reason = "a list"\n',
            "open.example.toml": CLEAR + 'peer = "bob"\nreason = "newsletters"\n',
            "old.example.toml": CLEAR + "until = 2001-01-01\n",
            "rule.example.toml": 'peer = "bob"\nlevels = ["pqc"]\n' + RULE.format("*@a.example", "otp"),
            "lost.example/x.toml": AES,
        }
    )

    def listed(*options: str) -> dict[str, list[str]]:
        return {row["file"]: row["codes"] for row in json.loads(run("list", *options, "--json").stdout)}

    assert len(listed()) == 7
    assert listed("--clear") == {
        "clear.example.toml": ["clear"],
        "open.example.toml": ["clear"],
    }
    assert listed()["old.example.toml"] == ["expired"]
    assert listed()["lost.example/x.toml"] == ["no_peer"]
    assert "2 of 7 files" in run("list", "--clear").stdout
