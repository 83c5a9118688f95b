"""The downgrade ledger: what gets a line, and that nothing leaves without it.
Standard: policies/README.md; it is a part of the audit record (audit/test_chain.py).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import LogCapture

from relay.audit.entries import LEDGER
from relay.audit.reading import records
from relay.cli.ledger import ledger as command
from relay.kme import DevelopmentKMEs
from tests.integration.test_refusals import closed_port
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import submit


def found_in(site: Site) -> list[dict[str, Any]]:
    """The lines of the ledger."""
    return list(records(site.config.audit_directory, events=LEDGER))


# --- mail through the relay ------------------------------------------------------------------------------------


def alice(directory: Path, kmes: DevelopmentKMEs, sink: Sink, policy: str, *, more: str = "", **how: Any) -> Site:
    site = make_site(
        directory / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies=dict.fromkeys(("default.toml", "bob.example.toml"), policy), **how,
    )  # fmt: skip
    site.config_file.write_text(
        site.config_file.read_text().replace('directory = "policies"', f'directory = "policies"\n{more}')
    )
    return site


async def test_mail_at_the_first_level_listed_leaves_no_line(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes", "otp"]\n')
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert not found_in(site)


async def test_a_weaker_level_leaves_a_line_that_says_why(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["otp", "aes"]\nmax_size = { otp = 10 }\n')
    async with serving(site) as addresses:
        recipients = ["ben@bob.example", "carol@bob.example"]
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    assert len(sink.got) == 1
    entries = found_in(site)
    assert [(each["event"], each["listed"], each["level"]) for each in entries] == [
        ("downgrade", ["otp", "aes"], "aes")
    ]
    assert len(set(entries[0]["recipients"])) == 2
    assert entries[0]["reason"] == f"otp: the message has {len(mails.plain())} bytes, and max_size is 10"
    assert entries[0]["policy"] == f"{site.directory}/policies/bob.example.toml:1"
    assert entries[0]["message"] == hashlib.sha256(mails.plain()).hexdigest()


@pytest.mark.in_process
async def test_what_counts_by_doubt_is_named_by_reply_log_and_ledger(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    """With what would have applied without it; a name that all programs read alike is in no doubt."""
    rule = 'max_size = {{ otp = 10 }}\n[[when]]\nsender = "ceo@alice.example"\nlevels = {}\notherwise = "refuse"\n'
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n' + rule.format('["otp", "aes"]'))
    (site.directory / "policies/bob.example/carol.toml").parent.mkdir()
    (site.directory / "policies/bob.example/carol.toml").write_text('levels = ["aes"]\n' + rule.format('["otp"]'))
    clerk, doubtful = (mails.plain().replace(b"From: Ann <", b"From: " + name) for name in (b"[Jira] <", b"[Jira] <<"))
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], clerk, recipients=["carol@bob.example"])).code == 250
        assert (await submit(addresses["outgoing"], doubtful)).code == 250
        refused = await submit(addresses["outgoing"], doubtful, recipients=["carol@bob.example"])
    assert str(refused) == (
        "552 5.2.3 Message too big for the protection that this recipient requires (From is in doubt, which counts as "
        "matching: levels: otp instead of aes; otherwise: refuse instead of hold)"
    )
    doubt = (
        "From is in doubt (a name stands without an address), which counts as matching: levels: otp, aes instead of aes"
    )
    [entry] = found_in(site)
    assert doubt in entry["reason"]
    assert "bob.example.toml:1)" in entry["reason"]
    sent = [each.get("doubt", [""]) for each in log.entries if each["event"] == "sealed_and_sent"]
    assert [each[0].startswith(doubt) for each in sent] == [False, True]
    [cause] = [each["cause"] for each in log.entries if each["event"] == "not_sealed"]
    assert "From is in doubt (a name stands without an address)" in cause


async def test_a_copy_that_waited_while_policy_rose_leaves_a_line_when_it_leaves(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n')
    async with serving(site) as addresses:
        sink.on_data = ["451 4.3.0 later"]
        assert (await submit(addresses["outgoing"], mails.plain())).code == 451
    assert not found_in(site)
    (site.directory / "policies" / "bob.example.toml").write_text('levels = ["otp", "aes"]\n')
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert len(sink.got) == 1
    [entry] = found_in(site)
    assert (entry["event"], entry["listed"], entry["level"]) == ("downgrade", ["otp", "aes"], "aes")
    assert entry["reason"] == "aes: sealed at an earlier attempt, under other policies"


@pytest.mark.promise("The protection of each mail is on record")
async def test_mail_in_clear_leaves_a_line_and_is_held_where_it_cannot_be_written(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["plaintext"]\n')
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        shutil.rmtree(site.config.audit_directory)
        site.config.audit_directory.touch()
        reply = await submit(addresses["outgoing"], mails.plain())
        site.config.audit_directory.unlink()
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert str(reply).startswith("451 4.3.1")
    assert len(sink.got) == 2
    [found] = found_in(site)
    assert (found["event"], found["level"]) == ("plaintext", "plaintext")


@pytest.mark.in_process
@pytest.mark.parametrize("shadow", ["", "shadow = true\n"])
async def test_retries_of_mail_in_clear_leave_one_line_until_it_has_left(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, shadow: str
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["plaintext"]\nreason = "public"\n', more=shadow)
    sink.on_data = ["451 4.2.0 busy"] * 3
    async with serving(site) as addresses:
        for _ in range(4):
            reply = await submit(addresses["outgoing"], mails.plain())
        assert reply.code == 250
        assert len(found_in(site)) == 1
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    found = found_in(site)
    assert [each["reason"] for each in found] == ["policy lets this mail out in clear: public"] * 2


# --- the command ---------------------------------------------------------------------------------------------------


async def test_the_command_shows_what_is_in_the_ledger(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["plaintext"]\n')
    async with serving(site) as addresses:
        for name in ("ben", "carol", "ben"):
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=[f"{name}@bob.example"])).code == 250
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file), "COLUMNS": "200"}

    def show(*arguments: str) -> Result:
        return CliRunner().invoke(command, ["show", *arguments], env=environment)

    assert "3 entries" in show().stdout
    assert len(json.loads(show("--address", "Carol@bob.example", "--json").stdout)) == 1
    assert len(json.loads(show("--event", "downgrade", "--json").stdout)) == 0
    assert (
        len(json.loads(show("--since", "2020-01-01", "--until", "9999-01-01", "--peer", "bob", "--json").stdout)) == 3
    )
    assert show("--event", "nonsense").exit_code == 2


def test_a_ledger_that_is_not_there_yet_is_empty(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n')
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file)}
    assert json.loads(CliRunner().invoke(command, ["show", "--json"], env=environment).stdout) == []


# --- shadow mode ---------------------------------------------------------------------------------------------------


@pytest.mark.in_process
async def test_shadow_mode_changes_nothing_takes_no_key_and_says_what_would_be(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    more = 'shadow = true\nshadow_record = "shadow.jsonl"\n'
    policy = 'levels = ["aes"]\notherwise = "refuse"\n[[when]]\nsender = "eve@*"\nlevels = ["otp"]\n'
    site = alice(tmp_path, kmes, sink, policy, more=more, kme_settings="prefetch = false\n")
    message = mails.plain()
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], message)).code == 250
        assert (
            await submit(addresses["outgoing"], message, sender="x@alice.example", recipients=["a@nobody.example"])
        ).code == 250
    assert all(got.message.endswith(message) for got in sink.got)
    assert len(sink.got) == 2
    said = [each for each in log.entries if each["event"] == "shadow"]
    assert [(each["result"], each["protection"]) for each in said] == [("sealed", "aes"), ("refused", "")]
    assert "ann" not in str(said)
    assert [each["log_level"] for each in log.entries if each["event"] in ("shadow_mode", "shadow_sent_unsealed")] == [
        "warning"
    ] * 3
    recorded = (site.directory / "shadow.jsonl").read_text()
    assert "figures" not in recorded
    assert [json.loads(line)["quantum_bits"] for line in recorded.splitlines()] == [256, 0]
    assert [each["event"] for each in found_in(site)] == ["shadow", "shadow"]


@pytest.mark.in_process
async def test_shadow_mode_tells_of_the_reserve_of_recipients_nobody_covers_and_of_plaintext(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    more, reserve = "shadow = true\n", "prefetch = false\nreserve = 10_000_000\n"
    site = alice(tmp_path, kmes, sink, "", more=more, kme_settings=reserve)
    policies = site.directory / "policies"
    (policies / "default.toml").unlink(missing_ok=True)
    (policies / "bob.example.toml").write_text('levels = ["aes"]\npriority = "low"\n')
    (policies / "clear.example.toml").write_text('levels = ["plaintext"]\n')
    recipients = ["a@bob.example", "a@clear.example", "a@nobody.example"]
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    said = [each for each in log.entries if each["event"] == "shadow"]
    assert sorted(each["result"] for each in said) == ["clear", "held", "held"]
    causes = " ".join(str(each["causes"]) for each in said)
    assert "reserved for mail of normal priority" in causes
    assert "no policy covers" in causes
    assert sorted(each["event"] for each in found_in(site)) == [
        "plaintext",
        "shadow",
        "shadow",
    ]


@pytest.mark.in_process
@pytest.mark.parametrize("own", ['levels = ["plaintext"]\n', None], ids=["plaintext", "not covered"])
async def test_in_shadow_mode_mail_that_stays_inside_has_not_left_in_clear(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture, own: str | None
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n', more="shadow = true\n")
    if own is not None:
        (site.directory / "policies" / "alice.example.toml").write_text(own)
    recipients = ["root@alice.example", "ben@bob.example"]
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    told = ("delivered_inside", "shadow_sent_unsealed")
    found = [(each["event"], each["recipients"]) for each in log.entries if each["event"] in told]
    assert found == [(each, 1) for each in told]


@pytest.mark.in_process
async def test_shadow_mode_lets_mail_pass_that_would_be_held(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n', more="shadow = true\n")
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace(kmes.urls[0], f"https://{closed_port()}"))
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    [said] = [each for each in log.entries if each["event"] == "shadow"]
    assert (said["result"], said["reply"][:9]) == ("held", "451 4.7.5")
    assert len(sink.got) == 1
