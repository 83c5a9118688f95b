"""One mail's story: whichever way it is named, what happened to it at each site, from records and log.
Standard: RFC 5322 3.6.4 (Message-ID), Postfix's XFORWARD_README (IDENT is its queue ID).
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay import mime
from relay.cli.trace import trace
from relay.config import TCPAddress
from tests.integration.audit.test_records import alice as alice  # a fixture
from tests.integration.audit.test_records import bob as bob  # a fixture
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, relay_process
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


async def submit_as(address: TCPAddress, queue_id: str, message: bytes) -> int:
    """The code of the reply, where a mail server hands its mail of this name on."""
    async with talking(address) as talk:
        for command in (
            "EHLO mail.example",
            f"XFORWARD IDENT={queue_id}",
            "MAIL FROM:<ann@alice.example>",
            "RCPT TO:<ben@bob.example>",
        ):
            assert (await talk.say(command)).code == 250
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
    if named == "mail id":
        assert (records, events) == (["delivered"], ["sealed_and_sent"])
    else:
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
            assert "delivered, 1 recipients; aes " in result.stdout
        assert "2@alice.example" not in result.stdout


async def test_the_name_in_a_received_field_leads_to_the_story_of_the_relay_that_wrote_it(
    alice: Site, bob: Site, logs: tuple[str, str], sink: Sink
) -> None:
    ours = delivered(alice)["mail"]
    assert f"id {ours};".encode() in sink.got[0].message
    assert told(bob, ours, "-", log=logs[1]).exit_code == 1


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
        [line["event"] for line in map(json.loads, each.log.splitlines()) if "mail" in line] for each in (out, into)
    ]
    assert sorted(of_mail[0]) == ["delivered_inside", "sealed_and_sent"]
    assert sorted(of_mail[1]) == ["opened_and_sent", "passed_unopened"]
