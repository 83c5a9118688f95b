"""`qumail-relay policy` with keys, messages and traffic: what is doubtful, what would happen now, what an edit changes.
Standard: policies/README.md; no command takes a key or changes anything.
"""

from __future__ import annotations

import asyncio
import json
import mailbox
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import click
import pytest
import structlog
from click.testing import CliRunner, Result

from relay.cli.policy import policy
from relay.cli.policy_site import load_site
from relay.config import TCPAddress
from relay.kme import DevelopmentKMEs
from relay.policy.traffic import samples
from relay.process import app
from tests.bench.policy import measure_policy
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit
from tests.unit.policy.test_policy import EXAMPLES, README

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Commands set up the log of their process, which is that of the tests here."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


FILES = {
    "default.toml": 'levels = ["aes"]\notherwise = "refuse"\n',
    "bob.example.toml": 'levels = ["otp", "aes"]\nmax_size = { otp = "1 KiB" }\n[[when]]\nsubject_tag = "[secret]"\nlevels = ["otp"]\n',
    "clear.example.toml": 'levels = ["plaintext"]\n',
}


def site_of(
    directory: Path, kmes: DevelopmentKMEs, files: Mapping[str, str], settings: str = "", kme_settings: str = ""
) -> tuple[Site, Run]:
    """Alice's site with these policies, and `qumail-relay policy` on it (from a thread: the KMEs run in this one)."""
    site = make_site(
        directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], policies=files,
        outgoing=TCPAddress("127.0.0.1", 1), kme_settings=f"prefetch = false\n{kme_settings}",
    )  # fmt: skip
    if settings:
        text = site.config_file.read_text()
        site.config_file.write_text(text.replace('directory = "policies"', f'directory = "policies"\n{settings}'))
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file), "COLUMNS": "300"}
    return site, lambda *arguments: CliRunner().invoke(policy, arguments, env=environment)


async def explained(run: Run, *arguments: str) -> dict[str, Any]:
    result = await asyncio.to_thread(run, "explain", "--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found | {"now": found["now"] | (found["now"]["outcome"] or {})}


# --- explain -----------------------------------------------------------------------------------------------------


async def test_explain_tells_what_would_happen_now_and_takes_no_key(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, FILES)
    small = tmp_path / "small.eml"
    small.write_bytes(b"Subject: hello\n\nbody\n")
    now = (await explained(run, "a@alice.example", "x@bob.example", "--message", str(small)))["now"]
    assert (now["result"], now["protection"], now["octets"]) == ("sealed", "otp", 24)
    assert now["reply"].startswith("250")
    before = now["keys"][0]["stored_keys"]
    assert (now["keys"][0]["kme"], before > 0) == ("kme", True)
    again = (await explained(run, "a@alice.example", "x@bob.example", "--message", str(small)))["now"]
    assert again["keys"][0]["stored_keys"] >= before


async def test_explain_asks_the_rules_about_the_message(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, FILES)
    (tmp_path / "large.eml").write_bytes(b"Subject: hello\n\n" + b"x" * 5000)
    (tmp_path / "secret.eml").write_bytes(b"Subject: [SECRET] hello\n\n" + b"x" * 5000)
    large = await explained(run, "a@alice.example", "x@bob.example", "--message", str(tmp_path / "large.eml"))
    assert large["now"]["protection"] == "aes"
    assert large["now"]["causes"] == ["otp: the message has 5018 bytes, and max_size is 1024"]
    secret = await explained(run, "a@alice.example", "x@bob.example", "--message", str(tmp_path / "secret.eml"))
    assert (secret["decision"]["rule"], secret["decision"]["levels"]) == (1, ["otp"])
    assert (secret["now"]["result"], secret["now"]["reply"][:9]) == ("refused", "552 5.2.3")
    result = await asyncio.to_thread(run, "explain", "a@alice.example", "x@bob.example")
    for said in ("Rules       1 (line 5): the subject does not have '[secret]'", "Max size    otp: 1024 bytes",
                 "a small message would be sealed otp", "kme (group alice-bob): "):  # fmt: skip
        assert said in result.stdout, result.stdout


REFUSED = {
    "hops": (b"Received: from a by b; Wed, 25 Nov 2026 10:00:00 +0000\r\n" * 51, "554 5.4.6"),
    "nul": (b"X-A: a\0b\r\n", "554 5.6.0"),
    "cr": (b"X-A: a\rb\r\n", "554 5.6.0"),
    "lf": (b"X-A: a\nX-B: b\r\n", "554 5.6.0"),
    "size": (b"X-A: a\r\n" * 3000, "552 5.3.4"),
}


@pytest.mark.parametrize("fault", REFUSED)
async def test_explain_and_simulate_refuse_what_the_relay_refuses_before_policy(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, fault: str
) -> None:
    site, run = site_of(tmp_path, kmes, FILES)
    text = site.config_file.read_text().replace("[outgoing]\n", "[outgoing]\nmax_message_size = 20000\n")
    site.config_file.write_text(text.replace('127.0.0.1:1"', f'{sink.address}"'))
    fields, code = REFUSED[fault]
    message = fields + mails.plain()
    (tmp_path / "bad.eml").write_bytes(message)
    for recipient in ("ben@bob.example", "x@clear.example"):
        now = (await explained(run, "a@alice.example", recipient, "--message", str(tmp_path / "bad.eml")))["now"]
        assert (now["result"], now["reply"][:9]) == ("refused", code), now
    found = json.loads((await asyncio.to_thread(run, "simulate", "--json", str(tmp_path / "bad.eml"))).stdout)
    assert [each["result"] for each in found["results"]] == ["refused"]
    async with app.running(site.config) as addresses:
        reply = await submit(addresses["outgoing"], message, sender="a@alice.example", recipients=["ben@bob.example"])
    assert str(reply)[:9] == code


async def test_explain_refuses_a_sender_that_smtp_refuses(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, FILES)
    for sender in ("nobody", "a@b@alice.example", "@alice.example"):
        result = await asyncio.to_thread(run, "explain", "--offline", sender, "x@bob.example")
        assert result.exit_code == 2, result.output
        assert "SENDER" in result.output, result.output
    assert (await explained(run, "--offline", "<>", "x@bob.example"))["decision"]["levels"] == ["otp", "aes"]


async def test_explain_names_a_kme_in_trouble_and_goes_on(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    site, run = site_of(tmp_path, kmes, FILES)
    site.config_file.write_text(site.config_file.read_text().replace(kmes.urls[0], "https://127.0.0.1:1"))
    now = (await explained(run, "a@alice.example", "x@bob.example"))["now"]
    assert now["result"] == "held"
    assert now["keys"][0]["stored_keys"] is None
    assert all(now["causes"])
    assert (await explained(run, "a@alice.example", "x@bob.example", "--offline"))["now"]["result"] == "sealed"


async def test_explain_says_unreachable_where_nobody_answers_for_the_kme(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, FILES)
    await kmes.stop()
    result = await asyncio.to_thread(run, "explain", "a@alice.example", "x@bob.example")
    assert re.search(r"otp: kme: unreachable: .*\n *aes: kme: unreachable: ", result.output), result.output
    assert re.search(r"^Keys +kme \(group alice-bob\): unreachable: ", result.output, re.MULTILINE), result.output


async def test_explain_and_the_relay_agree_about_what_cannot_be_done(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, {"default.toml": 'levels = ["pqc"]\notherwise = "refuse"\n'})
    now = (await explained(run, "a@alice.example", "x@bob.example"))["now"]
    assert now["result"] == "refused"
    assert "identity new" in now["causes"][0]
    assert now["reply"].startswith("550 5.7.1")


async def test_explain_leaves_the_reserve_to_mail_of_normal_priority(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    files = {"bob.example.toml": 'levels = ["aes"]\npriority = "low"\n[[when]]\nsender = "n@*"\npriority = "normal"\n'}
    _, run = site_of(tmp_path, kmes, files, kme_settings="reserve = 10_000_000\n")
    low = (await explained(run, "a@alice.example", "x@bob.example"))["now"]
    assert (low["result"], low["reply"][:9]) == ("held", "451 4.7.5")
    assert low["causes"] == ["aes: kme: what is left is reserved for mail of normal priority"]
    normal = (await explained(run, "n@alice.example", "x@bob.example"))["now"]
    assert (normal["result"], normal["protection"]) == ("sealed", "aes")


# --- check -------------------------------------------------------------------------------------------------------


async def doubts(directory: Path, kmes: DevelopmentKMEs, files: Mapping[str, str]) -> list[str]:
    site, run = site_of(directory, kmes, files)
    result = await asyncio.to_thread(run, "check")
    assert result.exit_code == 0, result.output
    prefix = f"doubtful: {site.directory}/policies/"
    return [line.removeprefix(prefix) for line in result.stdout.splitlines() if line.startswith("doubtful: ")]


NONE = "no level that stands here can be had for peer 'bob', so this mail is held or refused"


@pytest.mark.parametrize(
    "case",
    [
        (
            '# x\n  levels = ["plaintext"]',
            ":2: PLAINTEXT: this mail leaves in clear; list a level to have it sealed, or say `until` when or for what `reason`",
        ),
        (
            'levels = ["plaintext"]\nreason = "x"\nmax_size = { otp = 5 }',
            ":3: otp is listed neither here nor in floors.toml, so that this size decides nothing; leave it out",
        ),
        (
            'levels = ["plaintext"]\nreason = "x"\notherwise = "refuse"',
            ":3: it decides nothing beside plaintext that no rule or floor raises; leave it out",
        ),
        (
            'levels = ["aes"]\n[[when]]\nheader = ["X-Secret: yes", "X=yes"]\notherwise = "refuse"',
            ":3: no mail has a field that is called 'X=yes'; write \"Name: value\" for what a field says",
        ),
        (
            'levels = ["aes"]\n[[when]]\nattachment_name = ["*.doc", "pdf", "a.pdf", ".docx"]\notherwise = "refuse"',
            ":3: 'pdf' fits only a file that is called just so; write \"*.pdf\" for all with this ending",
            ":3: '.docx' fits only a file that is called just so; write \"*.docx\" for all with this ending",
        ),
        (
            'levels = ["plaintext"]\nreason = "public"\n[[when]]\nsender = "*@x"\nlevels = [2]\nuntil = 2020-01-31',
            ":6: this rule ended on 2020-01-31; delete it",
        ),
        (
            'levels = ["aes"]\nsubdomains = true',
            ":2: mail to domains below that no peer lists is refused; set peer = 'bob'",
        ),
        (
            'levels = ["aes"]\nrequire = "none"',
            ":2: what the files of the domains above it require does not count for this mail",
        ),
        (
            'levels = ["pqc"]',
            f":1: {NONE}: pqc: this site has no certificates; make them with `qumail-relay identity new`",
        ),
    ],
    ids=lambda each: each[0].replace("\n", " "),
)
async def test_check_says_what_is_doubtful_with_file_and_line(
    tmp_path: Path, kmes: DevelopmentKMEs, case: tuple[str, ...]
) -> None:
    text, *said = case
    assert await doubts(tmp_path, kmes, {"bob.example.toml": text}) == [f"bob.example.toml{each}" for each in said]


async def test_check_hints_once_at_files_that_are_not_read_for_their_ending(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    bad = dict.fromkeys(("bank.tml", "bob.example.toml~", "bob.example/ann.toml.bak"), 'levels = ["plaintext"]\n')
    site, run = site_of(tmp_path, kmes, {"default.toml": 'levels = ["aes"]\n', "README.md": "", ".x.tml": "", **bad})
    result = await asyncio.to_thread(run, "check", "--strict")
    assert (result.exit_code, result.stdout.count("hint: ")) == (0, 1), result.output
    text = "3 files are not read, since they do not end with .toml"
    names = "bank.tml, bob.example.toml~, bob.example/ann.toml.bak"
    assert f"hint: {site.directory}/policies: {text}: {names}\n" in result.stdout


async def test_what_floors_raise_may_have_a_size_and_a_way_to_be_held(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    text = 'levels = ["plaintext"]\nreason = "x"\nmax_size = { otp = 500 }\notherwise = "refuse"\n'
    floor = '[[floor]]\nsender = "a@x.example"\nlevels = ["otp"]\n'
    assert await doubts(tmp_path, kmes, {"bob.example.toml": text, "floors.toml": floor}) == []


async def test_check_names_files_whose_address_a_mail_server_may_take_for_a_route(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    files = {f"bob.example/{name}.toml": 'levels = ["aes"]\n' for name in ("a%25b", "a%21b", "a%40b", "o%27brien")}
    said = ":1: a mail server may read this address as a route, and send its mail on to another domain"
    assert await doubts(tmp_path, kmes, files) == [
        f"bob.example/{name}.toml{said}" for name in ("a%21b", "a%25b", "a%40b")
    ]


async def test_simulate_and_explain_hold_what_may_be_a_route_as_the_relay_does(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    _, run = site_of(tmp_path, kmes, {"default.toml": 'levels = ["plaintext"]\n'})
    (tmp_path / "mail").write_bytes(mails.plain().replace(b"ben@bob.example", b"ben%bob.example@clear.example"))
    tally = json.loads((await asyncio.to_thread(run, "simulate", "--json", str(tmp_path / "mail"))).stdout)
    assert [row["result"] for row in tally["results"]] == ["held"]
    for recipient in (
        "ben%bob.example@clear.example",
        "bob.example!ben@clear.example",
        '"ben@bob.example"@clear.example',
    ):
        result = await asyncio.to_thread(run, "explain", "a@alice.example", recipient)
        assert result.exit_code == 1
        assert "may be read as a route to another domain" in " ".join(result.output.split())


async def test_check_says_where_nothing_can_be_enough(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    files = {"stranger.example.toml": 'levels = ["plaintext"]\nrequire = "aes"\n'}
    assert (await doubts(tmp_path, kmes, files))[-1:] == [
        "stranger.example.toml:2: stranger.example is no peer's domain, so none may seal for it, and all is missed; set peer"
    ]


async def test_check_says_where_a_login_is_not_known(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    files = {"bob.example.toml": 'levels = ["aes"]\n[[when]]\nsender = "login:ceo"\notherwise = "refuse"\n'}
    [said] = await doubts(tmp_path, kmes, files)
    assert said.startswith("bob.example.toml:2: mail comes in from a mail server, which does not say who has logged in")


@pytest.mark.parametrize(
    "text",
    [
        'levels = ["aes"]\nrequire = "rsa"\n',
        'levels = ["aes"]\nmax_size = { otp = 500 }\n[[when]]\nsender = "a@x"\nlevels = ["otp"]\n[[when]]\nsender = "*@x"\nlevels = [1, 2]',
        'levels = ["aes"]\nmax_size = { otp = 500 }\n[[when]]\nsubject_tag = "a"\nlevels = [1]\n[[when]]\nsender = "*@x"\nlevels = [1]',
        'levels = ["aes"]\notherwise = "hold 1 h"\n',
    ],
)
async def test_what_is_fine_is_not_called_doubtful(tmp_path: Path, kmes: DevelopmentKMEs, text: str) -> None:
    assert await doubts(tmp_path, kmes, {"bob.example.toml": text}) == []


async def test_strict_makes_doubts_count(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, FILES)
    assert (await asyncio.to_thread(run, "check")).exit_code == 0
    assert (await asyncio.to_thread(run, "check", "--strict")).exit_code == 1
    found = json.loads((await asyncio.to_thread(run, "check", "--json")).stdout)
    assert (found["files"], [each["line"] for each in found["doubtful"]]) == (3, [1])


# --- simulate and diff --------------------------------------------------------------------------------------------


def traffic(directory: Path) -> list[Path]:
    """The same kinds of messages as a maildir, an mbox, a directory and a file."""
    maildir = mailbox.Maildir(directory / "maildir")
    mbox = mailbox.mbox(str(directory / "all.mbox"))
    for number in range(20):
        maildir.add(mails.plain(subject=f"number {number}").replace(b"\r\n", b"\n"))
        mbox.add(mails.plain(body=f"From me {number}\r\nFrom you\r\n").replace(b"\r\n", b"\n"))
    mbox.close()
    (directory / "files" / "deep").mkdir(parents=True)
    (directory / "files" / "deep" / "one.eml").write_bytes(mails.plain(subject="[secret] plan"))
    (directory / "files" / "clear.eml").write_bytes(mails.plain().replace(b"ben@bob.example", b"x@clear.example"))
    (directory / "files" / "inside.eml").write_bytes(mails.plain().replace(b"ben@bob.example", b"x@alice.example"))
    (directory / "files" / "no.eml").write_bytes(b"\xff\xfenothing that is a message")
    (directory / "nobody.eml").write_bytes(mails.plain().replace(b"ben@bob.example", b"x@nobody.example"))
    return [directory / name for name in ("maildir", "all.mbox", "files", "nobody.eml")]


def test_messages_come_out_of_files_directories_maildirs_and_mboxes(tmp_path: Path) -> None:
    found = list(samples(traffic(tmp_path)))
    assert len(found) == 20 + 20 + 4 + 1
    assert all(sample.content is not None for sample in found)
    inside = [sample for sample in found if sample.name.startswith(str(tmp_path / "all.mbox"))]
    assert inside[3].content is not None
    assert inside[3].content.message.endswith(b"From me 3\r\nFrom you\r\n\r\n")
    assert {sample.recipients for sample in inside} == {("ben@bob.example",)}


def test_simulate_adds_up_and_shows_some_messages_of_each_result(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, FILES)
    paths = list(map(str, traffic(tmp_path)))
    found = json.loads(run("simulate", "--json", *paths).stdout)
    assert (found["messages"], found["left_out"]) == (45, 2)
    assert [(each["result"], each["protection"], each["recipients"]) for each in found["results"]] == [
        ("clear", "plaintext", 1),
        ("refused", "", 1),
        ("sealed", "otp", 41),
    ]
    assert found["quantum_bits"]["bob"] > 41 * 8 * len(mails.plain())
    examples = [(Path(each["message"]).name, each["result"]) for each in found["examples"]]
    assert examples[:2] == [("clear.eml", "clear"), ("nobody.eml", "refused")]
    assert [result for _, result in examples[2:]] == ["sealed"] * 3
    shown = run("simulate", *paths)
    assert shown.exit_code == 0
    for said in (
        "45 messages; 2 without a recipient outside this site, not counted above.",
        "PLAINTEXT",
        "Quantum key for peer bob: ",
        "nobody.eml: to x@nobody.example",
    ):
        assert said in shown.stdout


def test_simulate_refuses_what_has_been_held_for_too_long_as_the_relay_does(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    _, run = site_of(tmp_path, kmes, {"bob.example.toml": 'levels = ["pqc"]\notherwise = "hold 1 h"\n'})
    for name, ago in (("early", timedelta(minutes=59)), ("late", timedelta(minutes=61))):
        received = f"Received: from a by b; {format_datetime(datetime.now(UTC) - ago)}\r\n"
        (tmp_path / name).write_bytes(received.encode() + mails.plain())
    found = json.loads(run("simulate", "--json", str(tmp_path / "early"), str(tmp_path / "late")).stdout)
    assert [(each["result"], each["recipients"]) for each in found["results"]] == [("held", 1), ("refused", 1)]


def test_simulate_counts_the_key_of_a_copy_once_for_all_who_share_it(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    _, run = site_of(tmp_path, kmes, {"bob.example.toml": 'levels = ["aes"]\n'})
    (tmp_path / "mail").write_bytes(mails.plain().replace(b"<ben@bob.example>", b"<ben@bob.example>, bea@bob.example"))
    found = json.loads(run("simulate", "--json", str(tmp_path / "mail")).stdout)
    assert ([each["recipients"] for each in found["results"]], found["quantum_bits"]) == ([2], {"bob": 256})


def test_what_shadow_mode_recorded_can_be_added_up(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    site, run = site_of(tmp_path, kmes, FILES, 'shadow_record = "shadow.jsonl"\n')
    entry = {
        "time": "2999-01-01T00:00:00Z", "sender": "a@alice.example", "recipient": "x@bob.example", "octets": 500,
        "peer": "bob", "listed": ["otp"], "result": "sealed", "protection": "otp", "quantum_bits": 4096, "causes": [],
        "policy": "x:1", "policy_version": "0" * 12, "reply": "250",
    }  # fmt: skip
    old = entry | {"time": "2001-01-01T00:00:00Z"}
    own = entry | {"recipient": "postmaster@alice.example", "result": "clear", "quantum_bits": 0}
    lines = [entry, old, own, {"time": "x"}]
    (site.directory / "shadow.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nbroken")
    found = json.loads(run("simulate", "--shadow", "--json").stdout)
    assert (found["messages"], found["left_out"], found["quantum_bits"]) == (2, 1, {"bob": 4096})
    assert [each["result"] for each in found["results"]] == ["sealed"], "mail to our own domain has not left"
    assert run("simulate").exit_code == run("simulate", "--shadow", str(tmp_path)).exit_code == 2


# --- the documents -------------------------------------------------------------------------------------------------


async def test_the_examples_of_the_readme_load_and_nothing_in_them_never_applies(
    tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    files = {name: text.replace('peer    = "carol"', 'peer    = "bob"') for name, text in EXAMPLES.items()}
    found = await doubts(tmp_path, kmes, files)
    assert not [said for said in found if "never applies" in said or "nothing is held" in said]


def test_the_commands_of_the_readme_are_those_that_there_are(tmp_path: Path, kmes: DevelopmentKMEs) -> None:
    site, run = site_of(tmp_path, kmes, FILES)
    commands = re.findall(r"^qumail-relay policy (\w+)", README, re.MULTILINE)
    assert set(commands) == set(policy.list_commands(click.Context(policy)))
    for name in commands:
        assert run(name, "--help").exit_code == 0
    assert load_site(site.config_file).policies.files.keys() == FILES.keys()


# --- the benchmark -------------------------------------------------------------------------------------------------


def test_the_benchmark_measures_all_it_promises() -> None:
    figures = measure_policy(files=300).data
    assert figures["files"] == 300
    assert 0 < figures["lookup_us"] < figures["decision_us"] < figures["decision_p99_us"]
    assert figures["load_s"] > 0
    assert figures["reload_ms"] > 0


def test_a_bounce_among_samples_is_from_the_null_sender(tmp_path: Path) -> None:
    (tmp_path / "bounce.eml").write_bytes(b"Return-Path: <>\r\nFrom: mailer@alice.example\r\nTo: x@bob.example\r\n\r\n")
    [sample] = samples([tmp_path])
    assert (sample.sender, sample.recipients) == ("", ("x@bob.example",))


def test_comments_within_comments_in_a_sample_end_no_simulation(tmp_path: Path) -> None:
    deep = b"(" * 5000 + b")" * 5000
    (tmp_path / "deep.eml").write_bytes(b"From: " + deep + b" ann@alice.example\r\nTo: ben@bob.example\r\n\r\nText\r\n")
    [sample] = samples([tmp_path])
    assert (sample.sender, sample.recipients) == ("", ("ben@bob.example",))
