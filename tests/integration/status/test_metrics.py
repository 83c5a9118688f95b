"""/metrics tells what was sent, to the number, whatever strangers do and whichever worker is killed.
Standard: the text format of Prometheus, read by prometheus_client's own parser.
"""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import exposition, measures
from tests.integration.status.conftest import Two
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import make_site
from tests.testlib.status_numbers import SEALED_TYPE, StatusNumbers, asked, numbers, with_status
from tests.testlib.submit import submit


async def test_what_was_sent_and_opened_is_counted_to_the_mail(two: Two, sink: Sink) -> None:
    for number in range(7):
        message = mails.plain().replace(b"<1@", b"<%d@" % number)
        assert (await submit(two.alice["outgoing"], message)).code == 250
    reply = await submit(
        two.alice["outgoing"], mails.plain(), recipients=["x@bob.example", "y@bob.example", "z@elsewhere.example"]
    )
    assert reply.code == 250
    alice, bob = await numbers(two.alice["status"]), await numbers(two.bob["status"])
    sealed = {"direction": "outgoing", "listener": "smtp", "peer": "bob", "level": "aes", "outcome": "delivered"}
    assert alice.sum("qumail_mails_total", **sealed) == 8
    assert alice.sum("qumail_recipients_total", **sealed) == 9
    assert alice.sum("qumail_mails_total", level="plaintext", outcome="delivered", peer="") == 1
    assert alice.sum("qumail_mails_total") == 9
    opened = sealed | {"direction": "incoming", "peer": "alice"}
    assert bob.sum("qumail_mails_total", **opened) == 8
    assert bob.sum("qumail_mails_total", level="plaintext", outcome="delivered") == 1
    assert alice.sum("qumail_step_seconds_count", step="deliver") == 9
    assert alice.sum("qumail_step_seconds_count", step="all") == 8
    assert bob.sum("qumail_step_seconds_count", step="open") == 9
    assert alice.sum("qumail_keys_total", fate="used", peer="bob") == 8
    assert alice.sum("qumail_key_bits_used_total", peer="bob", level="aes") == 8 * 256
    assert bob.sum("qumail_keys_received_total", outcome="fetched") == 8


def _of_mails(found: StatusNumbers) -> set[object]:
    """All names and labels that depend on mails."""
    return {each for each in found.samples if not each[0].startswith(("qumail_key", "qumail_kme", "qumail_journal"))}


async def test_a_process_that_could_not_measure_itself_once_does_so_again(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the figures of before would look well for ever."""
    failures = iter([OSError("Too many open files")] * 2)

    def resident() -> int:
        for failure in failures:
            raise failure
        return 12_345

    monkeypatch.setattr(measures, "MEASURE_S", 0.01)
    monkeypatch.setattr(measures, "_resident", resident)
    monkeypatch.setattr(exposition, "SHARE", math.inf)
    site = make_site(tmp_path, "bob", state=kmes.state_dir, kme_url=kmes.urls[1], incoming=sink.address)
    async with app.running(with_status(site).config) as addresses, asyncio.timeout(30):
        while (await numbers(addresses["status"])).sum("qumail_memory_resident_bytes") != 12_345:
            await asyncio.sleep(0.02)


async def test_strangers_become_no_labels(two: Two, sink: Sink) -> None:
    """Whatever they write where: addresses, domains, names of keys, sites and levels."""
    before: list[set[object]] = []
    for number in range(30):
        if number == 10:
            before = [_of_mails(await numbers(each["status"])) for each in (two.alice, two.bob)]
        name = f"stranger{number}"
        recipients = [f"{name}@{name}.example", f"{name}@bob.example"]
        for address in (two.bob["incoming"], two.alice["outgoing"]):
            await submit(address, mails.plain(), sender=f"{name}@{name}.example", recipients=recipients)
        forged = b"From: %s@alice.example\r\n%sAAAA\r\n" % (name.encode(), SEALED_TYPE)
        await submit(two.bob["incoming"], forged, sender=f"{name}@alice.example", recipients=recipients)
        await submit(two.bob["incoming"], b"x" * 100, sender="", recipients=[f"{name}@[192.0.2.{number}]"])
    for address in (two.alice["status"], two.bob["status"]):
        assert "stranger" not in await asked(address)
    assert [_of_mails(await numbers(each["status"])) for each in (two.alice, two.bob)] == before
    bob = await numbers(two.bob["status"])
    assert bob.sum("qumail_recipients_total", outcome="quarantined", peer="alice", level="none") == 60


async def test_each_fate_of_a_mail_is_counted_once(two: Two, sink: Sink) -> None:
    outgoing, status = two.alice["outgoing"], two.alice["status"]
    sink.on_data = ["451 later"]
    assert (await submit(outgoing, mails.plain())).code == 451
    found = await numbers(status)
    held = {"direction": "outgoing", "peer": "bob", "level": "aes", "outcome": "held"}
    assert found.sum("qumail_mails_total", **held) == 1
    assert found.sum("qumail_failures_total", direction="outgoing", reason="NextHopUnavailable") == 1
    assert (await numbers(two.bob["status"])).sum("qumail_mails_total", outcome="held", level="aes", peer="alice") == 1
    assert (await submit(outgoing, mails.plain())).code == 250
    sealed = sink.got[-1]
    assert (await submit(outgoing, mails.plain(), recipients=["x@alice.example"])).code == 250
    found = await numbers(status)
    assert found.sum("qumail_mails_total", **(held | {"outcome": "delivered"})) >= 1
    assert found.sum("qumail_mails_total", outcome="inside", level="plaintext", peer="") == 1
    assert sealed.recipients == ("ben@bob.example",)
    went = found.sum("qumail_mails_total") - found.sum("qumail_mails_total", outcome="held")
    assert found.sum("qumail_step_seconds_count", step="all") == went, "a mail that was held at once is not a fast one"
