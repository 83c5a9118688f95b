"""The downgrade ledger: what gets a line, that nothing leaves without it, and that no line can be changed unnoticed.
Standard: JSON lines chained by SHA-256; addresses under a key that follows from the site secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import LogCapture

from relay import app
from relay.cli.ledger import ledger as command
from relay.errors import ConfigError, StoreUnavailable
from relay.kme import DevelopmentKMEs
from relay.mail import Envelope, Mail, Recipient
from relay.store.ledger import AddressHash, Ledger, LedgerEntry, ledger_entries, verify_ledger
from relay.store.secret import SiteSecret
from tests.integration.test_refusals import closed_port
from tests.integration.test_refusals import log as log  # a fixture
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.submit import submit

SECRET = SiteSecret(bytes(range(32)))
MAIL = Mail(Envelope("ann@alice.example", (Recipient("ben@bob.example"),)), b"Subject: x\r\n\r\nsecret content\r\n")


def entry(reason: str = "otp: no key", **what: Any) -> LedgerEntry:
    fields: dict[str, Any] = {
        "policy": "default.toml:1", "policy_version": "0123456789ab", "peer": "bob", "listed": ("otp", "aes"),
        "used": "aes", "reason": reason,
    }  # fmt: skip
    return LedgerEntry.of("downgrade", MAIL, ["ben@bob.example"], **(fields | what))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


async def written(path: Path, number: int = 3) -> Ledger:
    ledger = Ledger(path, AddressHash(SECRET))
    for count in range(number):
        await ledger.record(entry(f"number {count}"))
    return ledger


async def test_a_line_says_what_happened_and_holds_neither_content_nor_address(path: Path) -> None:
    await written(path, 1)
    [line] = path.read_bytes().splitlines()
    found = json.loads(line)
    assert {name: found[name] for name in ("number", "event", "peer", "listed", "used", "reason", "policy")} == {
        "number": 1, "event": "downgrade", "peer": "bob", "listed": ["otp", "aes"], "used": "aes",
        "reason": "number 0", "policy": "default.toml:1",
    }  # fmt: skip
    assert found["message"] == hashlib.sha256(MAIL.message).hexdigest()
    for secret in (b"secret content", b"ann", b"ben", b"bob.example"):
        assert secret not in line
    assert path.stat().st_mode & 0o777 == 0o600


async def test_the_chain_can_be_verified_by_anybody(path: Path) -> None:
    await written(path)
    lines = path.read_bytes().splitlines()
    verified = verify_ledger(path)
    assert (verified.entries, verified.problems) == (3, ())
    assert verified.head == hashlib.sha256(lines[-1]).hexdigest()
    assert json.loads(lines[1])["previous"] == hashlib.sha256(lines[0]).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[0].replace(b"number 0", b"number X"), *lines[1:]],
        lambda lines: [lines[0], lines[2]],
        lambda lines: lines[1:],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], b"garbage", *lines[1:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [lines[0], b"garbage", lines[2]],
    ],
    ids=["changed", "left out", "first left out", "swapped", "inserted", "doubled", "made unreadable"],
)
async def test_every_change_within_the_file_is_found(path: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    await written(path)
    path.write_bytes(b"\n".join(change(path.read_bytes().splitlines())) + b"\n")
    assert verify_ledger(path).problems


async def test_a_file_that_was_cut_off_is_found_with_a_head_kept_elsewhere(path: Path, log: LogCapture) -> None:
    await written(path)
    heads = [each["head"] for each in log.entries if each["event"] == "ledger_written"]
    assert verify_ledger(path, heads[1]).problems == ()
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert verify_ledger(path).problems == ()
    assert "cut off or replaced" in verify_ledger(path, heads[2]).problems[0]


async def test_what_a_crash_broke_off_is_told_and_the_chain_goes_on_over_it(path: Path) -> None:
    ledger = await written(path, 2)
    with path.open("ab") as file:
        file.write(b'{"number": 3, "time"')
    await ledger.record(entry("after the crash"))
    verified = verify_ledger(path)
    assert (verified.entries, verified.problems, verified.broken_off) == (3, (), (3,))
    assert [each["reason"] for each in ledger_entries(path)] == ["number 0", "number 1", "after the crash"]


async def test_many_at_once_and_several_writers_make_one_chain(path: Path) -> None:
    ledgers = [Ledger(path, AddressHash(SECRET)) for _ in range(4)]
    await asyncio.gather(*(ledgers[number % 4].record(entry(str(number))) for number in range(200)))
    verified = verify_ledger(path)
    assert (verified.entries, verified.problems) == (200, ())


async def test_a_long_ledger_with_long_lines_goes_on(path: Path) -> None:
    ledger = Ledger(path, AddressHash(None))
    await ledger.record(entry())
    many = LedgerEntry.of(
        "plaintext", MAIL, [f"{'x' * 60}{n}@bob.example" for n in range(1000)], policy="p", policy_version="v",
        peer=None, listed=("plaintext",), used="plaintext", reason="r" * 10_000,
    )  # fmt: skip
    await ledger.record(many)
    await ledger.record(entry())
    assert (verify_ledger(path).entries, verify_ledger(path).problems) == (3, ())
    assert len(list(ledger_entries(path))[1]["recipients"]) == 1000


async def test_a_ledger_that_cannot_be_written_holds_the_mail(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="the ledger cannot be written: No such file"):
        await Ledger(tmp_path / "gone" / "ledger.jsonl", AddressHash(SECRET)).record(entry())


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(b"x" * 2_000_000)
    with pytest.raises(ConfigError, match="this is no ledger"):
        verify_ledger(tmp_path / "long")
    with pytest.raises(ConfigError, match="cannot be read"):
        verify_ledger(tmp_path / "nothing")


def test_hashed_addresses_are_found_again_also_after_the_secret_was_rotated() -> None:
    before, after = AddressHash(SECRET), AddressHash(SiteSecret(bytes(32), bytes(range(32))))
    assert before.write("Ben@Bob.example") in after.spellings("ben@bob.example")
    assert before.write("ben@bob.example") != AddressHash(SiteSecret(bytes(32))).write("ben@bob.example")


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
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert not site.config.ledger_file.exists()


async def test_a_weaker_level_leaves_a_line_that_says_why(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["otp", "aes"]\nmax_size = { otp = 10 }\n')
    async with app.running(site.config) as addresses:
        recipients = ["ben@bob.example", "carol@bob.example"]
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    assert len(sink.got) == 1
    entries = list(ledger_entries(site.config.ledger_file))
    assert [(each["event"], each["listed"], each["used"]) for each in entries] == [("downgrade", ["otp", "aes"], "aes")]
    assert len(set(entries[0]["recipients"])) == 2
    assert entries[0]["reason"] == f"otp: the message has {len(mails.plain())} octets, and max_size is 10"
    assert entries[0]["policy"] == f"{site.directory}/policies/bob.example.toml:1"
    assert entries[0]["message"] == hashlib.sha256(mails.plain()).hexdigest()


async def test_mail_in_clear_leaves_a_line_and_is_held_where_it_cannot_be_written(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["plaintext"]\n')
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        site.config.ledger_file.unlink()
        site.config.ledger_file.mkdir()
        reply = await submit(addresses["outgoing"], mails.plain())
        site.config.ledger_file.rmdir()
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert str(reply).startswith("451 4.3.1")
    assert len(sink.got) == 2
    [found] = ledger_entries(site.config.ledger_file)
    assert (found["event"], found["used"]) == ("plaintext", "plaintext")


@pytest.mark.parametrize("shadow", ["", "shadow = true\n"])
async def test_retries_of_mail_in_clear_leave_one_line_until_it_has_left(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, shadow: str
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["plaintext"]\nreason = "public"\n', more=shadow)
    sink.on_data = ["451 4.2.0 busy"] * 3
    async with app.running(site.config) as addresses:
        for _ in range(4):
            reply = await submit(addresses["outgoing"], mails.plain())
        assert reply.code == 250
        assert len(list(ledger_entries(site.config.ledger_file))) == 1
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    found = ledger_entries(site.config.ledger_file)
    assert [each["reason"] for each in found] == ["policy lets this mail out in clear: public"] * 2


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def run(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Callable[..., Result]:
    """`qumail-relay ledger` on a site of which three mails left in clear."""
    site = alice(tmp_path, kmes, sink, 'levels = ["plaintext"]\n')
    async with app.running(site.config) as addresses:
        for name in ("ben", "carol", "ben"):
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=[f"{name}@bob.example"])).code == 250
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file), "COLUMNS": "200"}
    return lambda *arguments: CliRunner().invoke(command, arguments, env=environment)


async def test_the_command_verifies_and_shows(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("verify")
    assert result.exit_code == 0
    assert "3 entries, whole; head " in result.stdout
    assert "3 entries" in run("show").stdout
    assert len(json.loads(run("show", "--address", "Carol@bob.example", "--json").stdout)) == 1
    assert len(json.loads(run("show", "--event", "downgrade", "--json").stdout)) == 0
    assert len(json.loads(run("show", "--since", "2020", "--until", "9999", "--peer", "bob", "--json").stdout)) == 3
    assert json.loads(run("verify", "--json").stdout)["entries"] == 3
    path = tmp_path / "alice" / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"plaintext", b"otp", 1))
    changed = run("verify")
    assert changed.exit_code == 1
    assert f"{path}:2: does not continue the line before it" in changed.stderr
    assert run("show", "--event", "nonsense").exit_code == 2


def test_a_ledger_that_is_not_there_yet_is_fine(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n')
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file)}
    result = CliRunner().invoke(command, ["verify"], env=environment)
    assert (result.exit_code, "nothing was recorded" in result.stdout) == (0, True)
    assert json.loads(CliRunner().invoke(command, ["show", "--json"], env=environment).stdout) == []


# --- shadow mode ---------------------------------------------------------------------------------------------------


async def test_shadow_mode_changes_nothing_takes_no_key_and_says_what_would_be(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    more = 'shadow = true\nshadow_record = "shadow.jsonl"\n'
    policy = 'levels = ["otp"]\notherwise = "refuse"\n[[when]]\nsender = "ann@*"\nlevels = ["aes"]\n'
    site = alice(tmp_path, kmes, sink, policy, more=more, kme_settings="prefetch = false\n")
    message = mails.plain()
    async with app.running(site.config) as addresses:
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
    assert [each["event"] for each in ledger_entries(site.config.ledger_file)] == ["shadow", "shadow"]


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
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
    said = [each for each in log.entries if each["event"] == "shadow"]
    assert sorted(each["result"] for each in said) == ["clear", "held", "held"]
    causes = " ".join(str(each["causes"]) for each in said)
    assert "reserved for mail of normal priority" in causes
    assert "no policy covers" in causes
    assert sorted(each["event"] for each in ledger_entries(site.config.ledger_file)) == [
        "plaintext",
        "shadow",
        "shadow",
    ]


async def test_shadow_mode_lets_mail_pass_that_would_be_held(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    site = alice(tmp_path, kmes, sink, 'levels = ["aes"]\n', more="shadow = true\n")
    text = site.config_file.read_text()
    site.config_file.write_text(text.replace(kmes.urls[0], f"https://{closed_port()}"))
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    [said] = [each for each in log.entries if each["event"] == "shadow"]
    assert (said["result"], said["reply"][:9]) == ("held", "451 4.7.1")
    assert len(sink.got) == 1
