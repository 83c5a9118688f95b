"""`qumail-relay policy`: what a person reads, what a program reads, and the exit status.
Standard: 0 fine, 1 something is wrong with what was asked about, 2 wrong usage.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import structlog
from click.testing import CliRunner, Result

from relay.cli.policy import policy

CONFIG = """
[site]
name = "alice"
domains = ["alice.example", "board.alice.example"]
sae_id = "SAE-ALICE"

[outgoing]
listen = "127.0.0.1:15025"
next_hop = "127.0.0.1:15026"

[policies]
directory = "policies"

[store]
database = "relay.db"
secret = "relay.secret"

[kmes.one]
url = "https://localhost:13000"
ca = "ca.pem"
certificate = "sae.pem"
key = "sae.key"

[peers.bob]
domains = ["bob.example"]
sae_id = "SAE-BOB"
kme_groups = []
"""

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Commands set up the log of their process, which is that of the tests here."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def site(tmp_path: Path) -> Callable[[Mapping[str, str]], Run]:
    """Writes policy files and a configuration; gives a function that runs the command on them."""

    def prepare(files: Mapping[str, str]) -> Run:
        (tmp_path / "relay.toml").write_text(CONFIG)
        for name, text in files.items():
            path = tmp_path / "policies" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

        def run(*arguments: str, columns: str = "200") -> Result:
            environment = {"QUMAIL_RELAY_CONFIG": str(tmp_path / "relay.toml"), "COLUMNS": columns}
            return CliRunner().invoke(policy, arguments, env=environment)

        return run

    return prepare


Site = Callable[[Mapping[str, str]], Run]

FILES = {
    "default.toml": 'levels = ["aes"]\notherwise = "refuse"\n',
    "bob.example.toml": "# Bob\nlevels = ['otp', 'aes']\n",
    "clear.example.toml": "levels = ['plaintext']\n",
    "uni.example.toml": "peer = 'bob'\nlevels = ['pqc+aes']\nsubdomains = true\n",
    "lost.example/alice.toml": "levels = [2]\n",
}


def test_check_lists_what_the_files_mean_and_marks_plaintext(site: Site) -> None:
    result = site(FILES)("check")
    assert result.exit_code == 0
    first, *rows = [re.split(r"  +", line) for line in result.stdout.splitlines() if "  " in line]
    assert first == ["File", "Covers", "Levels", "Peer", "Otherwise"]
    assert rows == [
        ["bob.example.toml", "bob.example", "otp, aes", "bob", "hold"],
        ["clear.example.toml", "clear.example", "PLAINTEXT: not sealed, leaves in clear", "clear"],
        ["default.toml", "everybody else", "aes", "by domain", "refuse"],
        ["lost.example/alice.toml", "one person at lost.example", "aes", "none", "hold", "no_peer"],
        ["uni.example.toml", "uni.example and its subdomains", "pqc+aes", "bob", "hold"],
    ]
    assert "5 policy files" in result.stdout
    assert "In clear: 1 of them." in result.stdout


def test_mail_to_our_own_domains_is_no_leak(site: Site) -> None:
    inside = {"alice.example.toml": 'levels = ["plaintext"]\n'}
    for files, leaks in (
        (inside, False),
        ({"alice.example.toml": inside["alice.example.toml"] + "subdomains = true\n"}, True),
    ):
        run = site(FILES | files)
        checked, explained = (
            run("check").stdout,
            run("explain", "--offline", "a@alice.example", "b@alice.example").stdout,
        )
        assert f"In clear: {1 + leaks} of them." in checked
        assert checked.count("stays inside") == 1 - leaks
        assert "to a domain of our own, stays inside" in explained
        assert "PLAINTEXT" not in explained


def test_check_does_not_say_that_mail_leaves_in_clear_by_a_file_that_has_ended(site: Site) -> None:
    ended = 'levels = ["plaintext"]\nuntil = 2020-01-01\n'
    result = site(FILES | {"old.example.toml": ended})("check")
    assert "In clear: 1 of them." in result.stdout
    assert re.search(r"old\.example\.toml +nobody: it ended on 2020-01-01", result.stdout)


def test_check_says_every_fault_with_file_and_line(site: Site, tmp_path: Path) -> None:
    result = site(FILES | {"bob.example.toml": "levels = [9]\n", "x@y.example.toml": "levels = [1]"})("check")
    assert result.exit_code == 1
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"{tmp_path}/policies/bob.example.toml:1: levels: 9 is not a level; known: otp,")
    assert second.startswith(f"{tmp_path}/policies/x@y.example.toml: not the name that")
    assert second.endswith("call it 'y.example/x.toml'")


@pytest.mark.parametrize("command", [["check"], ["explain", "a@alice.example", "b@bob.example"]])
def test_a_wrong_configuration_is_said_and_exits_with_1(site: Site, tmp_path: Path, command: list[str]) -> None:
    run = site({})
    assert "policies: cannot be read: No such file or directory" in run(*command).stderr
    (tmp_path / "relay.toml").write_text("[site]\nnaem = 1")
    result = run(*command)
    assert result.exit_code == 1
    assert f"{tmp_path}/relay.toml:2: site.naem: unknown setting; did you mean 'name'?" in result.stderr


def test_the_configuration_can_be_named_on_the_command_line(site: Site, tmp_path: Path) -> None:
    run = site(FILES)
    (tmp_path / "relay.toml").rename(tmp_path / "other.toml")
    assert run("check").exit_code == 1
    assert run("check", "--config", str(tmp_path / "other.toml")).exit_code == 0


def test_explain_says_which_file_and_line_decided_and_what_follows(site: Site, tmp_path: Path) -> None:
    result = site(FILES)("explain", "a@alice.example", "Info+x@Bob.Example")
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()][:-1] == [
        "From        a@alice.example",
        "To          Info+x@Bob.Example",
        f"Decided by  {tmp_path}/policies/bob.example.toml, line 2",
        "Looked for  bob.example/info+x.toml (person): not there",
        "            bob.example/info.toml (person without tag): not there",
        "            bob.example.toml (domain): decides",
        "Peer        bob",
        "Levels      otp, then aes",
        "Otherwise   held: the sending server keeps the mail and tries again",
        "Now         a small message would be held",
        "            otp: no KME group is set for peer 'bob'",
        "            aes: no KME group is set for peer 'bob'",
        "SMTP reply  451 4.7.1 Message held by policy: no protection that it lists can be given to this recipient",
        "Unknown     the KMEs could not be asked: their certificates cannot be used",
    ]


def test_explain_tells_how_the_null_sender_and_a_parents_file_are_called(site: Site) -> None:
    result = site(FILES)("explain", "<>", "x@lab.uni.example")
    assert "<> (the null sender)" in result.stdout
    assert "uni.example.toml (parent domain): decides" in result.stdout


def test_explain_tells_that_a_parents_file_was_passed_over(site: Site) -> None:
    result = site(FILES)("explain", "a@alice.example", "x@lab.bob.example")
    assert "bob.example.toml (parent domain): is there, but without `subdomains = true`" in result.stdout
    assert "Peer        none" in result.stdout
    assert "refused: the sender is notified that the mail did not go" in result.stdout


def test_explain_is_loud_about_plaintext(site: Site) -> None:
    result = site(FILES)("explain", "a@alice.example", "x@clear.example")
    assert result.exit_code == 0
    assert "PLAINTEXT: not sealed, leaves in clear" in result.stdout


def test_explain_exits_with_1_where_no_file_covers_the_recipient(site: Site) -> None:
    run = site({"bob.example.toml": "levels = [2]"})
    result = run("explain", "a@alice.example", "x@elsewhere.example")
    assert result.exit_code == 1
    assert "held: no policy covers" in result.stdout
    as_json = run("explain", "--json", "a@alice.example", "x@elsewhere.example")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout)["decision"] is None


def test_explain_for_programs_is_one_json_object(site: Site) -> None:
    result = site(FILES)("explain", "<>", "x@bob.example", "--json")
    explained = json.loads(result.stdout)
    assert result.exit_code == 0
    assert explained["sender"] == ""
    assert explained["decision"]["levels"] == ["otp", "aes"]
    assert explained["decision"]["line"] == 2
    assert [look["file"] for look in explained["lookups"]] == ["bob.example/x.toml", "bob.example.toml"]


@pytest.mark.parametrize("recipient", ["[red]x[/]@bob.example", ":smile:@bob.example", "\x1b[2J@x", "\udcff@x"])
def test_explain_prints_hostile_addresses_harmlessly(site: Site, recipient: str) -> None:
    run = site(FILES)
    result = run("explain", "[/red]@alice.example", recipient)
    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "[/red]@alice.example" in result.stdout
    assert json.loads(run("explain", "a@alice.example", recipient, "--json").stdout)["recipient"] == recipient
    for address in ("[/red]\x1b]0;", "[/]", "x@\n", ""):
        for mail in (("a@alice.example", address), (address or "[/]", recipient)):
            refused = run("explain", *mail)
            assert refused.exit_code == 2
            assert "\x1b" not in refused.output


@pytest.mark.parametrize("arguments", [["explain", "a@alice.example"], ["nonsense"], ["check", "extra"]])
def test_wrong_usage_exits_with_2(site: Site, arguments: list[str]) -> None:
    assert site(FILES)(*arguments).exit_code == 2


def test_a_narrow_terminal_cuts_nothing_off(site: Site) -> None:
    result = site(FILES)("explain", "a@alice.example", "x@lab.bob.example", columns="40")
    assert "…" not in result.stdout
    assert "lab.bob.example" in "".join(result.stdout.split())
    assert max(len(line) for line in result.stdout.splitlines()) <= 40


def test_check_hints_at_a_rule_for_aes_that_may_mean_any_quantum_key(site: Site, tmp_path: Path) -> None:
    rule = '\n[[when]]\nsubject_tag = "[x]"\nlevels = {}\n'
    for text, said in (
        ('levels = ["pqc+aes", "pqc"]' + rule.format('["otp", "aes"]'), True),
        ('levels = ["pqc+aes", "pqc"]' + rule.format('["otp", "aes", "pqc+aes"]'), False),
        ('levels = ["pqc"]' + rule.format('["otp", "aes"]'), False),
    ):
        checked = site({"bob.example.toml": text})("check").stdout
        place = f"hint: {tmp_path}/policies/bob.example.toml:4: "
        hint = 'this cuts pqc+aes, which uses a quantum key too; if any such level will do, write ["pqc+aes"]'
        assert (place + hint in checked) is said, checked


def test_tests_and_explain_agree_where_no_listener_says_who_has_logged_in(site: Site) -> None:
    """By SMTP from a mail server a login is not known, so that a rule on users fits all mail, as the relay has it."""
    floor = '[[floor]]\nsender = "login:registry"\nlevels = ["otp"]\n'
    mail = 'sender = "a@alice.example"\nrecipient = "x@bob.example"\n'
    for expect, login, fails in (("otp", "", False), ("aes", "", True), ("aes", 'login = "<>"\n', False)):
        tests = f'[[test]]\n{mail}{login}expect = "{expect}"\n'
        run = site({"bob.example.toml": 'levels = ["aes"]\n', "floors.toml": floor, "tests.toml": tests})
        tested = run("test")
        assert (tested.exit_code == 1) is fails, tested.stdout
        assert ("the login is not known, which counts as matching" in tested.stdout) is fails
        said = ("--login", "<>") if login else ()
        shown = json.loads(run("explain", "--offline", "--json", *said, "a@alice.example", "x@bob.example").stdout)
        assert shown["decision"]["levels"] == (["aes"] if login else ["otp"])


@pytest.mark.parametrize(
    ("sender", "settings", "expect"),
    [
        ("crm@partner.example", 'levels = ["aes"]', "refused"),
        ("crm@partner.example", 'levels = ["aes", "smime"]', "refused"),
        ("crm@partner.example", 'levels = ["smime"]', "refused"),
        ("crm@partner.example", 'levels = ["plaintext"]', "plaintext"),
        ("crm@forwarded.example", 'levels = ["aes"]', "aes"),
        ("crm@forwarded.example", 'levels = ["smime"]', "refused"),
        ("clerk@alice.example", 'levels = ["aes"]', "aes"),
        ("<>", 'levels = ["aes"]', "aes"),
    ],
)
def test_tests_and_explain_refuse_mail_of_a_sender_whom_the_peer_would_put_aside(
    site: Site, tmp_path: Path, sender: str, settings: str, expect: str
) -> None:
    expected = f'[[test]]\nsender = "{sender}"\nrecipient = "x@bob.example"\nexpect = "{expect}"\n'
    run = site({"bob.example.toml": settings, "tests.toml": expected})
    more = 'kme_groups = []\ntakes_from = ["forwarded.example"]'
    (tmp_path / "relay.toml").write_text(CONFIG.replace("kme_groups = []", more))
    tested = run("test")
    assert tested.exit_code == 0, tested.stdout
    explained = json.loads(run("explain", "--offline", "--json", sender, "x@bob.example").stdout)
    assert (explained["now"]["outcome"]["result"] == "refused") is (expect == "refused"), explained


def test_check_says_that_no_floor_or_rule_gives_smime_without_its_settings(site: Site) -> None:
    floor = '[[floor]]\nsubject_tag = "x"\nlevels = ["smime"]\n'
    file = f'levels = ["plaintext"]\nreason = "x"\n{floor}'.replace("floor", "when")
    files = {"floors.toml": floor, "bob.example.toml": 'levels = ["aes"]\n', "default.toml": file}
    result = site(files)("check")
    doubtful = [line for line in result.stdout.splitlines() if line.startswith("doubtful: ")]
    said = [line.partition("policies/")[2].partition(": aes:")[0] for line in doubtful]
    assert said == [
        "floors.toml:3: smime cannot be had: relay.toml has no [smime]",
        "default.toml:5: smime cannot be had: relay.toml has no [smime]",
        "bob.example.toml:1: no level that stands here can be had for peer 'bob', so this mail is held or refused",
    ]


def test_check_says_that_a_login_is_not_known_by_lmtp(site: Site, tmp_path: Path) -> None:
    floor = '[[floor]]\nsender = "login:registry"\nlevels = ["aes"]\n'
    run = site({"floors.toml": floor, "bob.example.toml": 'levels = ["aes"]\n'})
    (tmp_path / "relay.toml").write_text(CONFIG.replace("listen =", "lmtp ="))
    assert "floors.toml:1: mail comes in from a mail server, which does not say who" in run("check").stdout
