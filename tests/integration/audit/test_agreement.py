"""Page, metrics, audit record, log and trace tell of the same mails the same, to the number, whatever becomes of them.
Standard: relay/outcome/trail.py has what there is to tell.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from relay.audit.reading import records
from relay.audit.verifying import verify
from relay.cli.trace import trace
from relay.kme import DevelopmentKMEs
from tests.integration.audit.test_records import (
    alice as alice,  # a fixture
    bob as bob,  # a fixture
)
from tests.testlib import mails
from tests.testlib.long import sized
from tests.testlib.sink import Sink
from tests.testlib.sites import RelayProcess, Site, relay_process
from tests.testlib.status_numbers import StatusNumbers, asked, with_status
from tests.testlib.status_page import page
from tests.testlib.submit import submit, talking

MAILS = sized(200, 1000)
DEADLINE_S = 20
LABELS = ("direction", "listener", "peer", "level", "outcome")
AT_RCPT = "x%y@elsewhere.example"
"""Some servers read it as a route, so no policy for everybody covers it."""
RECIPIENTS = (
    "ben@bob.example", "bea@bob.example", "pqc@bob.example", "held@bob.example", "x@elsewhere.example",
    "own@alice.example", AT_RCPT,
)  # fmt: skip


async def test_page_metrics_record_log_and_trace_agree_on_a_run_of_many_mails(
    alice: Site, bob: Site, sink: Sink, tmp_path: Path, kmes: DevelopmentKMEs
) -> None:
    chance = random.Random(7)
    sink.on_data = [answer for answer in ("451 4.2.0 busy", "554 5.7.1 no") for _ in range(10)]
    async with relay_process(with_status(alice)) as out, relay_process(with_status(bob)) as into:
        await asyncio.gather(*(send_some(out, number, chance) for number in range(8)))
        for got in list(sink.got):
            await submit(into.addresses["incoming"], got.message, sender=got.sender, recipients=got.recipients)
        counted = [StatusNumbers.of(await asked(each.addresses["status"])) for each in (out, into)]
        for relay, numbers in zip((out, into), counted, strict=True):
            await compare_page(relay, numbers)
    for site, numbers, relay in zip((alice, bob), counted, (out, into), strict=True):
        assert verify(site.config.audit_directory).problems == ()
        found = list(records(site.config.audit_directory, events=("mail",)))
        compare(found, numbers)
        compare_log(found, relay.log)
    outcomes = {each["outcome"] for each in records(alice.config.audit_directory, events=("mail",))}
    assert outcomes >= {"delivered", "inside", "held", "refused"}
    assert len({each["mail"] for each in records(alice.config.audit_directory, events=("mail",))}) == MAILS
    traced(alice, out, chance)


async def send_some(relay: RelayProcess, client: int, chance: random.Random) -> None:
    for number in range(MAILS // 8):
        message = mails.plain().replace(b"<1@", b"<%d.%d@" % (client, number))
        recipients = chance.sample(RECIPIENTS, chance.randint(1, 3))
        async with talking(relay.addresses["outgoing"]) as talk:
            await talk.say("EHLO client.example")
            await talk.say("MAIL FROM:<ann@alice.example>")
            codes = [(await talk.say(f"RCPT TO:<{each}>")).code for each in recipients]
            assert codes == [451 if each == AT_RCPT else 250 for each in recipients]
            if 250 in codes:
                await talk.say("DATA")
                await talk.say(message.decode() + ".")


def compare(found: list[dict[str, Any]], numbers: StatusNumbers) -> None:
    """A mail counts once for each group that shares what the labels and the reason say, and so do those of it at RCPT."""
    recipients: Counter[frozenset[tuple[str, str]]] = Counter()
    groups = set()
    for each in found:
        labels = frozenset((name, each[name]) for name in LABELS)
        recipients[labels] += len(each["recipients"])
        groups.add((each["mail"], each["octets"] > 0, labels, each["reason"]))
    assert {
        labels: value for labels, value in numbers.of_name("qumail_recipients_total").items() if value
    } == recipients
    counted = {labels: value for labels, value in numbers.of_name("qumail_mails_total").items() if value}
    assert counted == Counter(labels for _, _, labels, _ in groups)


async def compare_page(relay: RelayProcess, numbers: StatusNumbers) -> None:
    """The page shows what was counted, a moment later."""
    wanted: Counter[tuple[str, str, str]] = Counter()
    for labels, value in numbers.of_name("qumail_mails_total").items():
        of = dict(labels)
        wanted[of["direction"], of["level"], of["outcome"]] += int(value)
    async with asyncio.timeout(DEADLINE_S):
        while (shown := (await page(relay.addresses["status"])).mails()) != +wanted:
            await asyncio.sleep(0.1)
    assert sum(shown.values()) >= MAILS


def compare_log(found: list[dict[str, Any]], log: str) -> None:
    """Who has a mail according to the log, and who has it according to the record."""
    told: Counter[tuple[str, str]] = Counter()
    for line in map(json.loads, log.splitlines()):
        if line["event"] in (
            "sealed_and_sent",
            "sent_in_clear",
            "delivered_inside",
            "opened_and_sent",
            "passed_unopened",
        ):
            told[line["mail"], line.get("protection", "plaintext")] += line["recipients"]
    recorded: Counter[tuple[str, str]] = Counter()
    for each in found:
        if each["outcome"] in ("delivered", "inside"):
            recorded[each["mail"], each["level"]] += len(each["recipients"])
    assert told == recorded


def traced(site: Site, relay: RelayProcess, chance: random.Random) -> None:
    every = list(records(site.config.audit_directory, events=("mail", "plaintext", "downgrade")))
    for mail in chance.sample(sorted({each["mail"] for each in every}), 5):
        words = [mail, str(relay.log_file), "--json", "--config", str(site.config_file)]
        story = json.loads(CliRunner().invoke(trace, words).stdout)
        assert [each["number"] for each in story if each["source"] == "record"] == [
            each["number"] for each in every if each["mail"] == mail
        ]
        lines = [line for line in map(json.loads, relay.log.splitlines()) if line.get("mail") == mail]
        assert [each["event"] for each in story if each["source"] == "log"] == [line["event"] for line in lines]
