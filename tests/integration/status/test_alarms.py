"""Alarms at the boundary: said once by all workers together, not again after a restart, and by mail or a command.
Standard: relay/counting/alarms.py; what each fault raises is in tests/system/test_drill.py.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay.audit.reading import records
from relay.counting.alarms import ALARMS
from relay.counting.board import Board
from relay.kme import DevelopmentKMEs
from relay.process import app
from relay.status import notifier, observation
from relay.status.active_alarms import ActiveAlarm
from tests.system.drill import shortened
from tests.testlib import mails
from tests.testlib.alarms import break_policies, standing, until_written, with_alarms
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site
from tests.testlib.status_numbers import asked, numbers, with_status
from tests.testlib.submit import submit
from tests.testlib.workers import workers

POLICIES = {"default.toml": 'levels = ["aes"]\n', "alice.example.toml": 'levels = ["plaintext"]\n'}


@pytest.fixture(autouse=True)
def _short() -> Iterator[None]:
    with shortened():
        yield


@pytest.fixture(name="site")
def _site(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink) -> Site:
    return with_status(
        make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            policies=POLICIES,
        )
    )  # fmt: skip


def repair_policies(site: Site) -> None:
    (site.directory / "policies" / "default.toml").write_text(POLICIES["default.toml"])


async def until_told(site: Site, *, but: str = "") -> None:
    """Nothing waits to be told, or something for this address alone: a relay that ends before tells it once more."""
    async with asyncio.timeout(30):
        while list(json.loads(site.config.alarms_file.read_text())["untold"]) != [but] * bool(but):
            await asyncio.sleep(0.02)


def said(logs: list[Any], event: str) -> list[str]:
    return [each["alarm"] for each in logs if each["event"] == event]


async def test_a_restart_says_nothing_again_that_was_said_and_ends_what_is_over(site: Site) -> None:
    with capture_logs() as logs:
        async with app.running(site.config) as addresses:
            break_policies(site)
            await until_written(site, "policy_broken")
            assert (await numbers(addresses["status"])).sum("qumail_alarm", alarm="policy_broken") == 1
        assert said(logs, "alarm_begins") == ["policy_broken"]
        await until_written(site, "policy_broken")
        repair_policies(site)
        logs.clear()
        async with app.running(site.config):
            await until_written(site)
        assert (said(logs, "alarm_begins"), said(logs, "alarm_ends")) == ([], ["policy_broken"])


@pytest.mark.promise("The status address names no policy file")
async def test_no_name_of_a_policy_file_is_shown_to_those_who_can_connect(site: Site) -> None:
    person = site.directory / "policies" / "bob.example" / "chief.executive.toml"
    person.parent.mkdir()
    with capture_logs() as logs:
        async with app.running(site.config) as addresses:
            person.write_text("levels = [99]\n")
            await until_written(site, "policy_broken")
            assert "chief.executive" in standing(site)[0]["cause"]
            for path in ("/", "/metrics", "/readyz", "/healthz"):
                shown = await asked(addresses["status"], path)
                assert "chief.executive" not in shown, path
                assert path != "/" or "policy_broken" in shown
    assert "chief.executive" in str(logs), "which the administrator reads"


async def test_what_stands_over_a_restart_is_said_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "free_octets", lambda _: 1000)
    with capture_logs() as logs:
        for _ in range(3):
            async with app.running(site.config):
                await until_written(site, "disk_full")
                since = standing(site)[0]["since"]
                site.config.alarms_file.touch()
                mark = site.config.alarms_file.stat().st_mtime_ns
                async with asyncio.timeout(30):
                    while site.config.alarms_file.stat().st_mtime_ns == mark:
                        site.config.alarms_file.touch()
                        await asyncio.sleep(0.3)
                assert standing(site)[0]["since"] == since
        assert (said(logs, "alarm_begins"), said(logs, "alarm_ends")) == (["disk_full"], [])


async def test_check_has_an_alarm_of_the_serving_relay_as_a_finding(site: Site) -> None:
    async def alarms() -> list[str]:
        _, _, text = await run("check", "--config", site.config_file, "--json")
        return [
            problem for each in json.loads(text) if each["what"].startswith("alarm ") for problem in each["problems"]
        ]

    async with app.running(site.config):
        break_policies(site)
        await until_written(site, "policy_broken")
        [problem] = await alarms()
        assert "default.toml" in problem
        assert "what to do: `qumail-relay policy check`" in problem
        repair_policies(site)
        await until_written(site)
        assert await alarms() == []
    break_policies(site)
    os.utime(site.config.alarms_file, (0, 0))
    assert await alarms() == [], "what a relay said that serves no more counts for nothing"


async def test_the_administrator_is_told_by_mail_at_most_every_five_minutes(
    site: Site, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "MAIL_EVERY_S", 1.5)
    with_alarms(site, 'mail_to = ["root@alice.example", "root@bob.example"]')
    async with app.running(site.config) as addresses:
        break_policies(site)
        sealed, inside = sorted(await sink.messages(2), key=lambda each: "alice" in each.recipients[0])
        assert inside.recipients == ("root@alice.example",)
        assert b"policy_broken begins" in inside.message
        headline = ALARMS["policy_broken"].line("").encode()
        assert b"Subject: QuMail Relay at alice: " + headline in inside.message.replace(b"\r\n ", b" ")
        assert b"qumail-relay policy check" in inside.message
        assert b"Cause: 1 fault in the policy files; the set from before is in force" in inside.message
        assert b"default.toml" not in inside.message, "names of policy files may be addresses"
        assert sealed.recipients == ("root@bob.example",)
        assert b"policy_broken" not in sealed.message, "policy seals it"
        assert (inside.sender, sealed.sender) == ("", "")
        for _ in range(2):
            repair_policies(site)
            await until_written(site)
            break_policies(site)
            await until_written(site, "policy_broken")
        later = (await sink.messages(4))[2:4]
        [third] = [each for each in later if each.recipients == inside.recipients]
        assert third.at - inside.at >= 1.4
        assert third.message.count(b"policy_broken ends") >= 1
        found = await numbers(addresses["status"])
        assert found.sum("qumail_alarm_notices_total", way="mail", outcome="sent") >= 2
        assert found.sum("qumail_mails_total", listener="relay", peer="bob", level="aes", outcome="delivered") >= 1
    recorded = [each["mail"] for each in records(site.config.audit_directory, events=("mail",))]
    assert len(set(recorded)) == len(recorded) >= 4, "a relay that is killed knows of each whether it has its record"


async def test_each_address_is_told_each_word_once_also_where_another_cannot_be_told(
    site: Site, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "MAIL_EVERY_S", 0.1)
    with_alarms(site, 'mail_to = ["good@alice.example", "bad@alice.example"]')
    sink.on_rcpt["bad@alice.example"] = "450 4.2.0 mailbox busy"
    with capture_logs() as logs:
        async with app.running(site.config):
            break_policies(site)
            async with asyncio.timeout(30):
                while len([each for each in logs if each["event"] == "alarm_mail_not_sent"]) < 3:
                    await asyncio.sleep(0.02)
            repair_policies(site)
            await sink.messages(2)
            del sink.on_rcpt["bad@alice.example"]
            *good, bad = await sink.messages(3)
    assert {each["to"] for each in logs if each["event"] == "alarm_mail_not_sent"} == {"bad@alice.example"}
    assert [each.recipients for each in good] == [("good@alice.example",)] * 2
    words = [each.message.count(b"policy_broken begins") + each.message.count(b"policy_broken ends") for each in good]
    assert words == [1, 1]
    assert (bad.recipients, bad.message.count(b"policy_broken begins")) == (("bad@alice.example",), 1)
    assert len(sink.got) == 3


async def test_what_was_still_to_be_told_is_told_once_by_the_relay_that_starts_next(
    site: Site, sink: Sink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, told = tmp_path / "page", tmp_path / "told"
    program.write_text('#!/bin/sh\ncat >>"$1"\n')
    program.chmod(0o755)
    with_alarms(site, f'mail_to = ["root@alice.example"]\ncommand = ["{program}", "{told}"]')
    async with app.running(site.config):
        break_policies(site)
        await until_written(site, "policy_broken")
        await until_told(site)
        repair_policies(site)
        await until_written(site)
        await until_told(site, but="root@alice.example")
        assert len(sink.got) == 1, "its end waits for the next mail"
    async with app.running(site.config):
        _, second = await sink.messages(2)
        await until_told(site)
        assert second.message.count(b"policy_broken ends") == 1
        assert second.message.count(b"policy_broken begins") == 0
    monkeypatch.setattr(notifier, "MAIL_EVERY_S", 0.1)
    async with app.running(site.config):
        break_policies(site)
        await sink.messages(3)
        await until_written(site, "policy_broken")
        await until_told(site)
    states = [json.loads(line)["state"] for line in told.read_text().splitlines()]
    assert states == ["begins", "ends", "begins"]
    assert len(sink.got) == 3


async def test_mail_does_not_wait_for_a_command_that_hangs(site: Site, sink: Sink, tmp_path: Path) -> None:
    program, began = tmp_path / "page", tmp_path / "began"
    program.write_text('#!/bin/sh\ntouch "$1"\nsleep 1000\n')
    program.chmod(0o755)
    with_alarms(site, f'mail_to = ["root@alice.example"]\ncommand = ["{program}", "{began}"]')
    with capture_logs() as logs:
        async with app.running(site.config):
            break_policies(site)
            await sink.messages(1)
            async with asyncio.timeout(20):
                while not began.exists():
                    await asyncio.sleep(0.02)
    assert not [each for each in logs if each["event"] == "alarm_command_failed"], "it still ran"


async def test_telling_ends_when_the_relay_does_also_if_there_is_something_to_tell_at_that_moment(site: Site) -> None:
    with_alarms(site, 'mail_to = ["root@alice.example"]')
    alarm = ActiveAlarm(ALARMS["policy_broken"], "", "", since=0, reported=0, seen=0)
    for turns in range(6):
        tells = notifier.AlarmNotifier(site.config, Board(), None, {})
        keeping = asyncio.create_task(tells.keep_up())
        for pause in (20, turns):  # at first the mail cannot be sent, and waits for the next one
            tells.notify(alarm, "begins")
            for _ in range(pause):
                await asyncio.sleep(0)
        keeping.cancel()
        await asyncio.wait([keeping], timeout=5)
        assert keeping.cancelled(), f"{turns} turns of the event loop later"


async def test_a_mail_that_policy_keeps_is_not_sent_and_waits_for_the_next(
    site: Site, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "MAIL_EVERY_S", 0.2)
    with_alarms(site, 'mail_to = ["root@nobody.example"]')
    with capture_logs() as logs:
        async with app.running(site.config) as addresses:
            break_policies(site)
            async with asyncio.timeout(30):
                while not [each for each in logs if each["event"] == "alarm_mail_not_sent"]:
                    await asyncio.sleep(0.02)
            found = await numbers(addresses["status"])
            assert found.sum("qumail_held_recipients") == 0, "nobody tries it again: it waits in no queue"
    assert sink.got == []


async def test_a_command_is_run_without_a_shell_with_json_on_its_input_and_little_time(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifier, "COMMAND_S", 2.0)
    program = tmp_path / "page"
    program.write_text(
        '#!/bin/sh\ncat >>"$1"\necho "$2" >>"$1"\n[ "$NOTIFY_SOCKET" ] && echo leaked >>"$1"\nsleep 100 &\nwait\n'
    )
    program.chmod(0o755)
    told = tmp_path / "told"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nowhere"))
    with_alarms(site, f'command = ["{program}", "{told}", "$(id); x"]')
    with capture_logs() as logs:
        async with app.running(site.config):
            break_policies(site)
            async with asyncio.timeout(30):
                while not [each for each in logs if each["event"] == "alarm_command_failed"]:
                    await asyncio.sleep(0.02)
    first, second, *rest = told.read_text().splitlines()
    assert (second, rest) == ("$(id); x", [])
    found = json.loads(first)
    assert (found["alarm"], found["state"], found["site"]) == ("policy_broken", "begins", "alice")
    assert found["cause"].startswith("1 fault in the policy files; the set from before is in force: ")
    assert "default.toml:1" in found["cause"], "to a program of this host all of it is told"
    assert found["what_to_do"] == "`qumail-relay policy check` names file and line."
    [failed] = [each for each in logs if each["event"] == "alarm_command_failed"]
    assert "not within" in failed["cause"]


async def test_mail_that_waits_raises_an_alarm_until_it_has_gone(site: Site, sink: Sink) -> None:
    with_alarms(site, "held_longer_than = 1")
    async with app.running(site.config) as addresses:
        sink.on_data = ["451 later"] * 2
        for _ in range(2):
            assert (await submit(addresses["outgoing"], mails.plain())).code == 451
        await until_written(site, "mail_held")
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        await until_written(site)
        found = await numbers(addresses["status"])
        assert found.sum("qumail_held_recipients") == 0
        assert found.sum("qumail_alarms_total", alarm="mail_held") == 1
        assert found.sum("qumail_mails_first_held_total", direction="outgoing") == 1


async def test_mail_that_policy_holds_at_rcpt_waits_as_well(site: Site) -> None:
    with_alarms(site, "held_longer_than = 1")
    (site.directory / "policies" / "default.toml").rename(site.directory / "policies" / "bob.example.toml")
    async with app.running(site.config) as addresses:
        for _ in range(2):
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=["x@nobody.example"])).code == 451
        await until_written(site, "mail_held", "policy_holds")
        (site.directory / "policies" / "nobody.example.toml").write_text('peer = "bob"\nlevels = ["aes"]\n')
        async with asyncio.timeout(30):
            while (await submit(addresses["outgoing"], mails.plain(), recipients=["x@nobody.example"])).code != 250:
                await asyncio.sleep(0.1)
        await until_written(site)


async def test_mail_that_was_deleted_from_the_queue_is_forgotten_with_the_file_of_what_is_held(site: Site) -> None:
    """As the alarm says; without that it stands for two hours, also over a restart."""
    (site.directory / "policies" / "default.toml").rename(site.directory / "policies" / "bob.example.toml")
    async with app.running(site.config) as addresses:
        for _ in range(2):
            assert (await submit(addresses["outgoing"], mails.plain(), recipients=["x@nobody.example"])).code == 451
        await until_written(site, "policy_holds")
    async with app.running(site.config):
        await until_written(site, "policy_holds")
    assert site.config.held_file.name in ALARMS["policy_holds"].what_to_do
    site.config.held_file.unlink()
    async with app.running(site.config):
        await until_written(site)


async def test_a_client_that_was_held_once_and_never_comes_again_raises_no_alarm(site: Site) -> None:
    with_alarms(site, "held_longer_than = 1")
    (site.directory / "policies" / "default.toml").rename(site.directory / "policies" / "bob.example.toml")
    async with app.running(site.config) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=["once@nobody.example"])).code == 451
        async with asyncio.timeout(30):
            while (await numbers(addresses["status"])).sum("qumail_held_longest_seconds", direction="outgoing") < 2:
                await asyncio.sleep(0.1)
        found = await numbers(addresses["status"])
        assert found.sum("qumail_held_recipients") == 1
        assert found.sum("qumail_alarms_total", alarm="mail_held") == 0
        assert (await submit(addresses["outgoing"], mails.plain(), recipients=["once@nobody.example"])).code == 451
        await until_written(site, "mail_held", "policy_holds")


async def test_over_a_restart_mail_still_waits_and_the_alarm_ends_as_soon_as_it_has_gone(
    site: Site, sink: Sink
) -> None:
    with_alarms(site, "held_longer_than = 1")
    with capture_logs() as logs:
        async with app.running(site.config) as addresses:
            sink.on_data = ["451 later"] * 2
            for _ in range(2):
                assert (await submit(addresses["outgoing"], mails.plain())).code == 451
            await until_written(site, "mail_held")
        async with app.running(site.config) as addresses:
            async with asyncio.timeout(30):
                while (await numbers(addresses["status"])).sum("qumail_held_recipients") != 1:
                    await asyncio.sleep(0.02)
            assert "What waits was held before that." in await asked(addresses["status"], "/")
            assert said(logs, "alarm_ends") == []
            assert (await submit(addresses["outgoing"], mails.plain())).code == 250
            await until_written(site)
    assert (said(logs, "alarm_begins"), said(logs, "alarm_ends")) == (["mail_held"], ["mail_held"])


async def test_workers_go_on_with_what_waited_at_those_before(site: Site, sink: Sink) -> None:
    async with workers(site, 2) as relay:
        sink.on_data = ["451 later"] * 4
        for number in range(4):
            message = mails.plain().replace(b"<1@", b"<%d@" % number)
            assert (await submit(relay.addresses["outgoing"], message)).code == 451
    async with workers(site, 2) as relay:
        for number in range(3):
            message = mails.plain().replace(b"<1@", b"<%d@" % number)
            assert (await submit(relay.addresses["outgoing"], message)).code == 250
        async with asyncio.timeout(60):
            while (await numbers(relay.addresses["status"])).sum("qumail_held_recipients") != 1:
                await asyncio.sleep(0.1)


async def test_with_several_workers_each_alarm_is_said_once_and_what_waits_at_one_may_go_by_another(
    site: Site, sink: Sink
) -> None:
    with_alarms(site, "held_longer_than = 1")
    async with workers(site, 3) as relay:
        sink.on_data = ["451 later"] * 16
        for number in 2 * list(range(8)):
            message = mails.plain().replace(b"<1@", b"<%d@" % number)
            assert (await submit(relay.addresses["outgoing"], message)).code == 451
        await until_written(site, "mail_held", "next_hop_refuses")
        for number in range(8):
            message = mails.plain().replace(b"<1@", b"<%d@" % number)
            assert (await submit(relay.addresses["outgoing"], message)).code == 250
        async with asyncio.timeout(100):
            while (await numbers(relay.addresses["status"])).sum("qumail_held_recipients"):
                await asyncio.sleep(0.1)
        lines = [json.loads(line) for line in relay.log.splitlines() if line.startswith("{")]
        assert sorted(said(lines, "alarm_begins")) == ["mail_held", "next_hop_refuses"]
