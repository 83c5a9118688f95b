"""One mail's story: whichever way it is named, what happened to it at each site, from records and log.
Standard: RFC 5322 3.6.4 (Message-ID), Postfix's XFORWARD_README (IDENT is its queue ID).
"""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay.cli.trace import trace
from relay.config import TCPAddress
from relay.formats import mime
from relay.kme import DevelopmentKMEs
from relay.process import app
from tests.integration.audit.test_records import (
    alice as alice,  # a fixture
    bob as bob,  # a fixture
)
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, relay_process
from tests.testlib.submit import submit, talking

QUEUE_ID = "4bVxY31Qz2zXk"
MESSAGE_ID = "<1@alice.example>"


def told(site: Site, *words: str, log: str = "") -> Result:
    environment = {"QUMAIL_RELAY_CONFIG": str(site.config_file)}
    return CliRunner().invoke(trace, words, env=environment, input=log)


@pytest.fixture
async def logs(alice: Site, bob: Site, sink: Sink) -> tuple[str, str]:
    """What both relays log of a mail from one to the other, which was held once, and of another mail."""
    sink.on_data = ["451 4.2.0 busy"]
    async with relay_process(alice) as out, relay_process(bob) as into:
        for code in (451, 250):
            assert await submit_as(out.addresses["outgoing"], QUEUE_ID, mails.plain()) == code
        other = mails.plain().replace(b"<1@", b"<2@")
        assert await submit_as(out.addresses["outgoing"], "other", other) == 250
        for got in list(sink.got):
            await submit(into.addresses["incoming"], got.message, sender=got.sender, recipients=got.recipients)
    return out.log, into.log


async def submit_as(address: TCPAddress, queue_id: str, message: bytes, recipient: str = "ben@bob.example") -> int:
    """The code of the reply, where a mail server hands its mail of this name on."""
    async with talking(address) as talk:
        for command in ("EHLO mail.example", f"XFORWARD IDENT={queue_id}", "MAIL FROM:<ann@alice.example>"):
            assert (await talk.say(command)).code == 250
        if (code := (await talk.say(f"RCPT TO:<{recipient}>")).code) != 250:
            return code
        assert (await talk.say("DATA")).code == 354
        return (await talk.say(message.decode() + ".")).code


def delivered(site: Site) -> dict[str, Any]:
    """The record of the try by which the mail was delivered."""
    found: list[dict[str, Any]] = json.loads(told(site, MESSAGE_ID, "--json").stdout)
    [record] = [each for each in found if each["outcome"] == "delivered"]
    return record


@pytest.mark.parametrize("named", ["queue ID", "Message-ID", "Message-ID without brackets", "its hash", "mail id"])
async def test_a_mail_is_found_by_each_of_its_names_with_all_its_tries(
    alice: Site, logs: tuple[str, str], named: str
) -> None:
    tries = json.loads(told(alice, QUEUE_ID, "--json").stdout)
    name = {
        "queue ID": QUEUE_ID, "Message-ID": MESSAGE_ID, "Message-ID without brackets": MESSAGE_ID.strip("<>"),
        "its hash": mime.hash_of_id(MESSAGE_ID), "mail id": tries[1]["mail"],
    }[named]  # fmt: skip
    found = json.loads(told(alice, name, "-", "--json", log=logs[0]).stdout)
    records = [each["outcome"] for each in found if each["source"] == "record"]
    events = [each["event"] for each in found if each["source"] == "log"]
    assert records == ["held", "delivered"]
    assert events == ["copy_not_delivered", "mail_not_accepted", "sealed_and_sent"]
    assert {each["message_id"] for each in found} == {mime.hash_of_id(MESSAGE_ID)}
    assert {each["queue_id"] for each in found} == {QUEUE_ID}


async def test_both_sites_find_a_sealed_mail_by_what_it_is_called_there_and_by_its_message_id(
    alice: Site, bob: Site, logs: tuple[str, str]
) -> None:
    name = delivered(alice)["sealed"]
    for site, log, event in ((alice, logs[0], "sealed_and_sent"), (bob, logs[1], "opened_and_sent")):
        for named in (name, MESSAGE_ID):
            result = told(site, named, "-", log=log)
            assert result.exit_code == 0
            assert event in result.stdout
            assert f"sealed {name}" in result.stdout
            assert "handed on, 1 recipients; aes " in result.stdout
        assert "2@alice.example" not in result.stdout


async def test_the_name_in_a_received_field_leads_to_the_story_of_the_relay_that_wrote_it_or_found_it_on_top(
    alice: Site, bob: Site, logs: tuple[str, str], sink: Sink
) -> None:
    ours = delivered(alice)["mail"]
    assert f"id {ours};".encode() in sink.got[0].message
    assert f"queue_id {ours}" in told(bob, ours, "-", log=logs[1]).stdout
    assert told(bob, delivered(bob)["mail"], "-", log=logs[0]).exit_code == 0
    assert told(alice, delivered(bob)["mail"], "-", log=logs[0]).exit_code == 1


async def test_lines_written_for_people_are_found_as_well(alice: Site, logs: tuple[str, str]) -> None:
    ours = delivered(alice)["mail"]
    line = f"2026-11-25 10:00:00 [info     ] sealed_and_sent   mail={ours} queue_id={QUEUE_ID} peer=bob"
    other = line.replace(ours, "0123456789ab").replace(QUEUE_ID, "other")
    found = told(alice, ours, "-", log=f"{line}\n{other}\nTraceback: nothing\n[1, 2]\n").stdout
    assert line in found
    assert other not in found


def test_a_mail_of_which_nothing_is_known_is_said(alice: Site) -> None:
    result = told(alice, "4bNobodyKnows", "-", log="")
    assert (result.exit_code, "nothing is known of it here" in result.stderr) == (1, True)
    assert told(alice, "x", "/nothing/there").exception is not None


async def test_each_mail_and_group_has_one_line_at_info_where_all_is_well(alice: Site, bob: Site, sink: Sink) -> None:
    async with relay_process(alice) as out, relay_process(bob) as into:
        recipients = ["ben@bob.example", "bea@bob.example", "own@alice.example"]
        assert (await submit(out.addresses["outgoing"], mails.plain(), recipients=recipients)).code == 250
        for got in list(sink.got):
            await submit(into.addresses["incoming"], got.message, sender=got.sender, recipients=got.recipients)
    of_mail = [
        [line["event"] for line in map(json.loads, each.log.splitlines()) if "mail" in line and line["level"] == "info"]
        for each in (out, into)
    ]
    assert sorted(of_mail[0]) == ["delivered_inside", "sealed_and_sent"]
    assert sorted(of_mail[1]) == ["opened_and_sent", "passed_unopened"]


@pytest.fixture
async def passed_twice(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    """A site whose mail server has mail in by one filter and out by the other; there the first is held, twice."""
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        incoming=sink.address, policies={"bob.example.toml": 'levels = ["aes"]\n'},
    )  # fmt: skip
    sink.on_data = [f"250 2.0.0 Ok: queued as {each}" for each in ("3775B13BB", "3775B13BC", "SENT")]
    async with app.running(site.config) as addresses:
        for name, recipient, code in (("3544113BA", "zoe@held.example", 451), ("3544113BD", "ben@bob.example", 250)):
            message = mails.plain().replace(b"<1@", b"<%s@" % name.encode())
            assert await submit_as(addresses["incoming"], name, message, recipient) == 250
            for _ in range(2):
                assert await submit_as(addresses["outgoing"], name, message, recipient) == code
    return site


@pytest.mark.parametrize(
    "named", ["3544113BA", "3775B13BB", "<3544113BA@alice.example>", "incoming", "outgoing"]
)  # fmt: skip
async def test_what_passes_both_ways_is_one_story_and_never_said_to_be_delivered_while_it_is_held(
    passed_twice: Site, named: str
) -> None:
    if named in ("incoming", "outgoing"):
        found = json.loads(told(passed_twice, "3775B13BB", "--json").stdout)
        named = next(each["mail"] for each in found if each["direction"] == named)
    result = told(passed_twice, named)
    assert [each["outcome"] for each in json.loads(told(passed_twice, named, "--json").stdout)] == [
        "delivered", "held", "held",
    ]  # fmt: skip
    assert result.stdout.splitlines()[-1].startswith("so far held (outgoing), 1 recipients; NoPolicy: no policy covers")
    assert "so far handed on" not in result.stdout
    assert "delivered" not in result.stdout
    assert "queued there as 3775B13BB" in result.stdout


@pytest.mark.parametrize(
    ("complaint", "status", "told_of_it"),
    [
        ("Hint: You are currently not seeing messages from other users and the system.", 0, "run it as root"),
        ("No journal files were opened due to insufficient permissions.", 1, "run it as root"),
        ("No journal files were found.", 1, "the journal cannot be read: No journal files were found."),
    ],
)
def test_a_journal_that_cannot_be_read_is_said(
    alice: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaint: str, status: int, told_of_it: str
) -> None:
    journalctl = tmp_path / "bin" / "journalctl"
    journalctl.parent.mkdir()
    journalctl.write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit {status}\n")
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{journalctl.parent}:/usr/bin:/bin")
    result = told(alice, "4bNobodyKnows")
    assert (result.exit_code, told_of_it in result.stderr) == (1, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else")
def test_records_that_cannot_be_read_are_said(alice: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has no way to them, and none to the journal either."""
    directory = alice.directory / "record"
    directory.mkdir(mode=0o700)
    directory.parent.chmod(0o755)
    nobody = pwd.getpwnam("nobody").pw_uid
    os.seteuid(nobody)
    try:
        result = CliRunner().invoke(trace, ["x", "-", "--directory", str(directory)])
    finally:
        os.seteuid(0)
    assert "cannot be read as nobody" in result.stderr
    assert "run it as root" in result.stderr
