"""A state in which mail leaves weaker than it could, or stays, is told alike wherever an administrator looks.
Standard: relay/counting/alarms.py has them all; `check`, the page, metrics and policy commands say what stands there.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.keys import report
from relay.kme import DevelopmentKMEs, LinkSettings, Misbehaviour
from relay.process import app, upkeep
from relay.status import record
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.alarms import until_written
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import SEALED_TYPE, STATUS, asked, numbers, with_status
from tests.testlib.status_page import page
from tests.testlib.submit import submit


@pytest.fixture(autouse=True)
def _short() -> Iterator[None]:
    with shortened():
        yield


@pytest.fixture(name="shadowed")
def _shadowed(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": 'levels = ["aes"]\n', "bob.example.toml": 'levels = ["aes"]\n'},
    )  # fmt: skip
    text = site.config_file.read_text()
    assert "[policies]\n" in text
    site.config_file.write_text(text.replace("[policies]\n", "[policies]\nshadow = true\n"))
    return with_status(site)


async def test_that_all_mail_leaves_unsealed_in_shadow_mode_is_said_wherever_one_looks(shadowed: Site) -> None:
    async with app.running(shadowed.config) as addresses:
        await until_written(shadowed, "shadow_mode")
        page = await asked(addresses["status"], "/")
        assert "No outgoing mail is sealed" in page
        assert "Nothing to do" not in page
        assert "left unsealed, in shadow mode all" in page
        assert (await numbers(addresses["status"])).sum("qumail_alarm", alarm="shadow_mode") == 1
        status, _, out = await run("check", "--config", shadowed.config_file)
        said = out.decode()
        assert (status, said.count("all outgoing mail leaves unsealed")) == (1, 1), said


@pytest.mark.parametrize(
    "words", [["check"], ["policy", "check"], ["policy", "list"], ["policy", "explain", "a@alice.example", "b@bob.example"]]
)  # fmt: skip
async def test_commands_say_without_a_relay_that_all_mail_leaves_unsealed(shadowed: Site, words: list[str]) -> None:
    status, error, out = await run(*words, "--config", shadowed.config_file)
    said = error + out.decode()
    assert status == (1 if words == ["check"] else 0), said
    assert "all outgoing mail leaves unsealed" in said


@pytest.mark.parametrize("words", [["check"], ["keys", "status"], ["policy", "log"]])
async def test_a_fifo_among_the_relays_own_files_keeps_no_command_waiting(shadowed: Site, words: list[str]) -> None:
    config = shadowed.config
    config.audit_directory.mkdir(exist_ok=True)
    for path in (config.alarms_file, config.keys_file, config.audit_directory / ".policies"):
        os.mkfifo(path)
    async with asyncio.timeout(60):
        await run(*words, "--config", shadowed.config_file)


async def test_a_fifo_among_the_relays_own_files_keeps_no_relay_from_serving(shadowed: Site) -> None:
    for path in (shadowed.config.alarms_file, shadowed.config.alarms_file.with_name("held.json")):
        os.mkfifo(path)
    async with asyncio.timeout(60), app.running(shadowed.config) as addresses:
        assert await asked(addresses["status"], "/readyz")


async def test_mail_held_for_want_of_keys_is_told_as_that_and_stale_numbers_of_keys_are_unknown(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "STATUS_MAX_AGE_S", 0.5)
    monkeypatch.setattr(upkeep, "WRITE_DOWN_S", 0.1)
    site = with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies={"default.toml": 'levels = ["aes"]\n'}, kme_settings="timeout = 1\ncache_high = 0\n",
        )
    )  # fmt: skip
    async with app.running(site.config) as addresses:
        async with asyncio.timeout(30):
            while not (await numbers(addresses["status"])).sum("qumail_kme_stored_keys"):
                await asyncio.sleep(0.05)
        for call in ("status", "enc_keys"):
            kmes.km1.misbehave(call, "http", times=None, code=503)
        reply = await submit(addresses["outgoing"], mails.plain())
        assert (reply.code, str(reply)[:9]) == (451, "451 4.7.5")
        assert "policy" not in str(reply)
        assert "key" in str(reply)
        async with asyncio.timeout(30):
            while "mail to 1 recipient" not in (shown := await page(addresses["status"])).text("slot-verdict"):
                await asyncio.sleep(0.05)
        assert "outgoing keys 1 " in shown.text("waiting")
        found = await numbers(addresses["status"])
        assert found.sum("qumail_held_recipients", direction="outgoing", cause="keys") == 1
        assert found.sum("qumail_held_recipients", direction="outgoing", cause="policy") == 0
        async with asyncio.timeout(30):
            while "at the KME unknown" not in (card := (await page(addresses["status"])).text("keys")):
                await asyncio.sleep(0.05)
        assert "no key is ready" in card
        assert "does not run out" not in card
        async with asyncio.timeout(30):
            while (row := await _pool(site))["stored_keys"] is not None:
                await asyncio.sleep(0.1)
        assert row["status_age_s"] >= 0.5
        async with asyncio.timeout(30):
            while "keys_gone" not in (told := (await page(addresses["status"])).text("troubles")):
                await asyncio.sleep(0.05)
        assert re.search(r"(?i)no (quantum )?key for peer bob.*: KME kme: .*503", told), told


async def test_no_card_of_keys_is_green_while_mail_finds_none(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies={"default.toml": 'levels = ["aes"]\n'}, kme_settings="timeout = 1\ncache_high = 0\n",
        )
    )  # fmt: skip
    kmes.km1.misbehave("enc_keys", "http", times=None, code=503)
    async with app.running(site.config) as addresses:
        for number in range(30):
            assert (await submit(addresses["outgoing"], mails.plain().replace(b"<1@", b"<%d@" % number))).code == 451
        async with asyncio.timeout(30):
            while "mail for it finds no key" not in (card := (await page(addresses["status"])).text("keys")):
                await asyncio.sleep(0.05)
        assert "does not run out" not in card
        async with asyncio.timeout(30):
            while not (row := await _pool(site))["trouble"]:
                await asyncio.sleep(0.1)
        assert "no quantum key for peer bob" in row["trouble"]


async def test_a_shortage_is_called_so_wherever_one_looks_whatever_the_kme_calls_it(
    tmp_path: Path, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "WRITE_DOWN_S", 0.1)
    link = LinkSettings(key_rate=0)
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes:
        site = with_status(
            make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
        )
        kmes.link.bits = 0
        kmes.km1.exhausted = Misbehaviour("http", 400, '{"message": "exceeds the generated key count"}')
        with capture_logs() as logs:
            async with app.running(site.config) as addresses:
                assert (await submit(addresses["outgoing"], mails.plain())).code == 451
                await until_written(site, "keys_gone")
                assert "shortage of keys" in (await page(addresses["status"])).text("troubles")
                async with asyncio.timeout(30):
                    while "shortage of keys" not in (await _pool(site))["trouble"]:
                        await asyncio.sleep(0.1)
                _, _, out = await run("check", "--config", site.config_file)
        [held] = [each for each in logs if each["event"] == "not_sealed"]
        assert str(held["cause"]).startswith("KMEExhausted") or "shortage of keys" in str(held)
        [begun] = [each for each in logs if each["event"] == "alarm_begins"]
        assert "shortage of keys" in begun["cause"]
        assert "KMERefusedRequest" not in str(logs) + out.decode()
        for what in ("KME kme", "alarm keys_gone bob"):
            assert re.search(f"WRONG  {what}  .*shortage of keys", out.decode()), out.decode()


async def _pool(site: Site) -> dict[str, Any]:
    _, _, out = await run("keys", "status", "--json", "--config", site.config_file)
    [row] = json.loads(out)["pools"]
    return dict(row)


@pytest.mark.parametrize("addresses", [False, True])
async def test_mail_that_is_put_aside_is_told_the_postmaster_at_once_and_stands_on_the_page(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch, addresses: bool
) -> None:
    monkeypatch.setattr(record, "LOOK_S", 0.1)
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], incoming=sink.address,
    )  # fmt: skip
    settings = f'[alarms]\nmail_to = ["postmaster@alice.example"]\n\n{STATUS}addresses = {str(addresses).lower()}\n'
    async with app.running(with_status(site, settings).config) as addresses_of:
        for number in (1, 2):
            message = SEALED_TYPE + b"AA%02d\r\n" % number
            reply = await submit(
                addresses_of["incoming"], message, sender="eve@bob.example", recipients=["ann@alice.example"]
            )
            assert reply.code == 250
        [told] = await sink.messages(1)
        assert told.recipients == ("postmaster@alice.example",)
        text = told.message.decode()
        assert "mail_put_aside (bob unknown-format) begins" in text
        assert "qumail-relay quarantine list" in text
        assert "eve@" not in text
        async with asyncio.timeout(30):
            while (shown := await page(addresses_of["status"])).text("waiting").count("quarantine show") != 2:
                await asyncio.sleep(0.05)
        listed = shown.text("waiting")
        assert "Put aside: 2 messages, which nobody has got" in listed
        assert "It is not sealed in a way that is known here." in listed
        assert ("eve@bob.example to ann@alice.example" in listed) == addresses
        assert addresses or "@" not in listed


@pytest.mark.parametrize("ahead_s", [86_400.0, -86_400.0])
async def test_a_clock_that_is_not_the_one_of_the_kme_is_an_alarm_until_they_agree(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch, ahead_s: float
) -> None:
    """Each reply of a KME has a Date: what a relay seals by a clock that is a day off, its peer puts aside."""
    difference = [ahead_s]
    said = "aiohttp.web_response.rfc822_formatted_time"
    monkeypatch.setattr(
        said, lambda: format_datetime(datetime.now(UTC) - timedelta(seconds=difference[0]), usegmt=True)
    )
    site = with_status(make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        policies={"default.toml": 'levels = ["aes"]\n'}, kme_settings="cache_high = 0\n",  # each mail asks it
    ))  # fmt: skip
    words = f"this host's clock is 24.0 h {'ahead of' if ahead_s > 0 else 'behind'} that of KME kme"
    _, _, out = await run("check", "--config", site.config_file)
    assert words in out.decode()
    async with app.running(site.config) as addresses:
        await until_written(site, "clock_differs")
        assert words.removeprefix("this ") in (await page(addresses["status"])).text("troubles")
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250, "nothing is held for it, or set by it"
        difference[0] = 0.0
        await submit(addresses["outgoing"], mails.plain().replace(b"<1@", b"<2@"))
        await until_written(site)
    _, _, out = await run("check", "--config", site.config_file)
    assert "that of KME" not in out.decode()


@pytest.mark.parametrize("date", ["", "yesterday", "Tue, 99 Dec 2026 10:00:00 GMT", "9" * 4000])
async def test_a_kme_whose_date_cannot_be_read_is_no_alarm(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch, date: str
) -> None:
    monkeypatch.setattr("aiohttp.web_response.rfc822_formatted_time", lambda: date)
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
    )  # fmt: skip
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        await until_written(site)
