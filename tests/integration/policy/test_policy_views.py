"""`policy explain`, with and without keys, `policy test` and the relay that serves say the same of a mail.
Standard: policies/README.md; a mail of which a command is told its envelope alone is small, and has nothing else in it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner, Result
from structlog.testing import LogCapture

from relay.cli.policy import policy
from relay.kme import DevelopmentKMEs
from tests.system.policy_wire import PEERS, facts_of, load
from tests.testlib.identities import Identities
from tests.testlib.policy_files import write
from tests.testlib.policy_made import Made
from tests.testlib.sink import Sink
from tests.testlib.sites import ANY_SENDER, Site, make_site, serving
from tests.testlib.submit import submit

SETS, MAILS_EACH = 3, 12
Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """Commands set up the log of their process, which is that of the tests here."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def alice(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, identities: Identities
) -> Callable[[Mapping[str, str]], tuple[Site, Run]]:
    """Alice's site with these policies, and `qumail-relay policy` on it."""

    def make(files: Mapping[str, str], tag_separators: str = "+") -> tuple[Site, Run]:
        site = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies=files, identities=identities, peer_settings=ANY_SENDER,
        )  # fmt: skip
        text = site.config_file.read_text()
        site.config_file.write_text(
            text.replace("[policies]", f"[policies]\ntag_separators = {json.dumps(tag_separators)}")
        )
        environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file), "COLUMNS": "300"}
        return site, lambda *arguments: CliRunner().invoke(policy, arguments, env=environment)

    return make


def small(sender: str) -> bytes:
    """A message that has nothing but its author."""
    return f"Subject: \r\nFrom: {sender or 'mailer-daemon@localhost.invalid'}\r\nMIME-Version: 1.0\r\n\r\n".encode()


async def explained(run: Run, *arguments: str) -> dict[str, Any]:
    result = await asyncio.to_thread(run, "explain", "--json", *arguments)
    found: dict[str, Any] = json.loads(result.stdout)
    return found | {"now": found["now"] | (found["now"]["outcome"] or {})}


def expecting(run: Run, directory: Path, sender: str, recipient: str, expect: str | list[str]) -> str:
    """What `policy test` says of one test beside these files."""
    said = f"sender = {json.dumps(sender or '<>')}\nrecipient = {json.dumps(recipient)}\nexpect = {json.dumps(expect)}"
    (directory / "tests.toml").write_text(f"[[test]]\n{said}\n", encoding="utf-8")
    return run("test", str(directory)).stdout


async def test_explain_without_a_message_is_about_a_small_one_as_tests_are(
    alice: Callable[..., tuple[Site, Run]], tmp_path: Path, sink: Sink
) -> None:
    rule = '[[when]]\nheader = "MIME-Version"\nlevels = ["otp"]\n[[when]]\nsubject_tag = "x"\notherwise = "refuse"\n'
    files = {"bob.example.toml": f'levels = ["aes"]\n{rule}'}
    site, run = alice(files)
    of_mail = "ann@alice.example", "ben@bob.example"
    found = await explained(run, "--offline", *of_mail)
    assert (found["decision"]["levels"], found["now"]["protection"]) == (["otp"], "otp")
    assert found["now"]["unknown"] == "no KME was asked: the keys are taken to be there"
    assert "1 tests, 0 failed" in expecting(run, write(tmp_path / "tested", files), *of_mail, "otp")
    shown = (await asyncio.to_thread(run, "explain", "--offline", *of_mail)).stdout
    assert "Message     none given: a small one from SENDER, without subject, attachments or further fields" in shown
    assert "2 (line 5): the subject does not have 'x'" in shown
    assert "With keys   a small message would be sealed otp" in shown
    async with serving(site) as relay:
        assert (await submit(relay["outgoing"], small(of_mail[0]), sender=of_mail[0])).code == 250
    assert b"pkcs7-mime" in sink.got[0].message


async def test_explain_says_refused_without_keys_where_the_relay_refuses(
    alice: Callable[..., tuple[Site, Run]],
) -> None:
    site, run = alice({"default.toml": 'levels = ["aes"]\n', "bob.example.toml": 'levels = ["aes"]\n'})
    sender, codes = "a@alice.example", {"x@nobody.example": "550 5.7.1", "ben@bob.example": "250"}
    none = ("nobody", "a@b@bob.example", "@bob.example", "x@")
    async with serving(site) as relay:
        for recipient, code in (codes | dict.fromkeys(none, "5")).items():
            reply = await submit(relay["outgoing"], small(sender), sender=sender, recipients=[recipient])
            assert str(reply).startswith(code)
    for recipient, code in codes.items():
        found = await explained(run, "--offline", sender, recipient)
        assert found["now"]["reply"].startswith(code)
    shown = (await asyncio.to_thread(run, "explain", "--offline", sender, "x@nobody.example")).stdout
    assert "a small message would be refused" in shown
    assert "held" not in shown
    for recipient in none:
        result = await asyncio.to_thread(run, "explain", "--offline", sender, recipient)
        assert (result.exit_code, "RECIPIENT" in result.output) == (2, True)


@pytest.mark.in_process
@pytest.mark.parametrize("seed", range(SETS))
async def test_what_explain_test_and_the_relay_say_of_generated_mail_is_the_same(
    alice: Callable[..., tuple[Site, Run]], tmp_path: Path, log: LogCapture, seed: int
) -> None:
    made = Made(seed)
    made.peers, made.named_peers = tuple(PEERS), 0.8
    made.sealing = made.sealing[1:]  # this site has no [smime], which a test of policies does not know
    while True:
        policies = load(made, tmp_path / "loaded")
        if not any("login:" in text for text in policies.files.values()):  # which users have logged in is not known
            break
    site, run = alice(policies.files, policies.site.tag_separators)
    beside = write(tmp_path / "tested", policies.files)
    taken = (facts for facts in iter(lambda: facts_of(made), None) if "@[" not in facts.sender)  # no test takes one
    every = (facts for facts in taken if "x" * 64 not in facts.recipients[0])  # nor one that is no domain
    mails = [(facts.sender, facts.recipients[0]) for facts in islice(every, MAILS_EACH)]
    at_relay: list[tuple[str, str]] = []
    async with serving(site) as relay:  # before any command, each of which sets up the log
        for sender, recipient in mails:
            log.entries.clear()
            options = ["BODY=8BITMIME", "SMTPUTF8"]
            reply = await submit(
                relay["outgoing"], small(sender), sender=sender, recipients=[recipient], options=options
            )
            left = [str(each.get("protection", "plaintext")) for each in log.entries if each["event"] in LEFT]
            at_relay.append((str(reply)[:9] if reply.code != 250 else "250", "".join(left)))
    for (sender, recipient), (reply_code, protection) in zip(mails, at_relay, strict=True):
        case = (sender, recipient, policies.site, policies.files)
        decisions = []
        for keys in ((), ("--offline",)):
            found = await explained(run, *keys, sender or "<>", recipient)
            now = found["now"]
            said = now["reply"]
            assert (said[:9] if said[:3] != "250" else "250", now["protection"]) == (reply_code, protection), (
                case,
                now,
            )
            decisions.append(found["decision"])
        assert decisions[0] == decisions[1]
        expected = now["result"]
        if expected in ("sealed", "clear"):
            sizes = dict(decisions[0]["max_size"])
            expected = [each for each in decisions[0]["levels"] if now["octets"] <= sizes.get(each, now["octets"])]
        told = expecting(run, beside, sender, recipient, expected)
        assert "1 tests, 0 failed" in told, (case, told)


LEFT = ("sealed_and_sent", "sent_in_clear", "delivered_inside")
