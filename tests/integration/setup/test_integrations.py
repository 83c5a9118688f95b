"""Another integration: what setup wrote for the former one goes, what the administrator wrote stays, and `check` finds the rest.
Standard: Postfix's own postconf says what is in force; every change of integration in both directions.
"""

from __future__ import annotations

import asyncio
import shutil
from itertools import permutations
from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from relay import postfix as checked
from relay.cli import cli
from relay.config import Config
from relay.postfix import queue
from relay.setup.answers import Integration
from relay.setup.backups import BACKUP, this_machine
from relay.setup.mail_server import apply, planned_change
from relay.setup.still_queued import StillQueued
from tests.integration.setup.test_mail_server import site, texts
from tests.testlib import mails, postfix
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postconf, requires_postfix, run

pytestmark = requires_postconf

CHANGES = list(permutations(get_args(Integration), 2))


@pytest.fixture
async def etc(tmp_path: Path) -> Path:
    """A Postfix as it is before, with two settings that an integration replaces."""
    await postfix.configure(tmp_path, (), settings={"bounce_size_limit": "40000", "message_size_limit": "9000000"})
    return tmp_path / "etc"


async def in_force(etc: Path) -> list[str]:
    """All that main.cf and master.cf say, in an order of its own."""
    said = [await run("postconf", "-c", str(etc), way) for way in ("-n", "-M", "-P")]
    return sorted(
        " ".join(line.partition(" -o ")[0].split())
        for line in "".join(said).splitlines()
        if not line.startswith("config_directory ")
    )


async def set_up(etc: Path, beside: Path, config: Config) -> None:
    apply(await planned_change(etc, config, beside=beside), beside)
    await postfix.change(etc.parent, "")  # which has the files look older: Postfix waits for younger ones


@pytest.mark.parametrize(("former", "integration"), CHANGES)
async def test_another_integration_leaves_nothing_of_the_former(
    etc: Path, tmp_path: Path, former: Integration, integration: Integration
) -> None:
    fresh, kept = tmp_path / "fresh", tmp_path / "kept"
    shutil.copytree(etc, fresh / "etc")
    kept.mkdir()
    await set_up(fresh / "etc", fresh, site(tmp_path, integration))
    await set_up(etc, kept, site(tmp_path, former))
    await set_up(etc, kept, site(tmp_path, integration))
    assert await in_force(etc) == await in_force(fresh / "etc")
    assert not (await planned_change(etc, site(tmp_path, integration), beside=kept)).differs


@pytest.mark.parametrize(("former", "integration"), CHANGES[::2])
async def test_what_leads_to_the_former_integration_goes_where_no_backup_tells_of_it(
    etc: Path, tmp_path: Path, former: Integration, integration: Integration
) -> None:
    await set_up(etc, tmp_path, site(tmp_path, former))
    shutil.rmtree(tmp_path / BACKUP)
    await set_up(etc, tmp_path, config := site(tmp_path, integration))
    assert (await checked.judge_all(etc, config)).faults == ()
    said = "\n".join(await in_force(etc))
    ports = {"content-filter": ("15024", "15034"), "milter": ("15028", "15038"), "smarthost": ("15025",)}
    assert [port for port in ports[former] if port in said] == []


async def test_what_an_administrator_wrote_since_stays(etc: Path, tmp_path: Path) -> None:
    await set_up(etc, tmp_path, site(tmp_path, "milter"))
    await postfix.change(
        tmp_path,
        "postconf -e bounce_size_limit=20000 'smtpd_milters = inet:127.0.0.1:15038, inet:127.0.0.1:11332, "
        "inet:127.0.0.1:15028'; echo 'mine unix - - n - - smtp' >>etc/master.cf",
    )
    await set_up(etc, tmp_path, site(tmp_path, "smarthost"))
    said = await in_force(etc)
    assert "bounce_size_limit = 20000" in said
    assert "smtpd_milters = inet:127.0.0.1:11332" in said
    assert any(line.startswith("mine ") for line in said)


@pytest.mark.parametrize("former", get_args(Integration))
async def test_check_names_what_a_former_integration_has_left(etc: Path, tmp_path: Path, former: Integration) -> None:
    await set_up(etc, tmp_path, site(tmp_path, former))
    integration: Integration = "milter" if former == "content-filter" else "content-filter"
    found = {fault.code for fault in (await checked.judge_all(etc, site(tmp_path, integration))).faults}
    assert "left-over" in found


@pytest.mark.parametrize(("before", "after"), [("", "4h"), ("0h", "4h"), ("30m", "30m")])
async def test_senders_hear_of_mail_that_waits_when_the_administrator_wants_it(
    etc: Path, tmp_path: Path, before: str, after: str
) -> None:
    if before:
        await postfix.change(tmp_path, f"postconf -e delay_warning_time={before}")
    await set_up(etc, tmp_path, site(tmp_path))
    assert f"delay_warning_time = {after}" in await in_force(etc)


@requires_postfix
async def test_mail_that_waits_for_the_former_integration_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Postfix would keep it for ever, and once it is requeued it asks no milter: what is for a peer would leave in clear."""
    [smtp] = free_addresses(1)
    former, other = site(tmp_path, "content-filter"), site(tmp_path, "milter")
    settings = {"content_filter": "qumail:[127.0.0.1]:15024"}
    transport = "postconf -M 'qumail/unix=qumail unix - - n - - lmtp'"
    async with postfix.running(smtp=smtp, fragments=(), ports={}, settings=settings, changes=transport) as server:
        for recipient in ("ben@bob.example", "carl@bob.example"):
            await server.submit(mails.plain(), recipients=[recipient])
            await server.deferred(recipient)  # nobody serves
        monkeypatch.setattr(queue, "AT_ONCE", 1)  # however many wait, none is passed over
        before = texts(server.config)
        with pytest.raises(StillQueued, match="2 mails in the queue"):
            await planned_change(server.config, other, beside=tmp_path, service=f"{smtp}/inet")
        assert texts(server.config) == before
        assert "queue-stranded" in [fault.code for fault in (await checked.judge_all(server.config, other)).faults]
        assert "queue-stranded" not in [fault.code for fault in (await checked.judge_all(server.config, former)).faults]
        await server.command("postfix", "stop")
        assert len(await queue.filtered(server.config)) == 2
        await server.command("postfix", "start")
        await server.command("postsuper", "-d", "ALL")
        assert (await planned_change(server.config, other, beside=tmp_path, service=f"{smtp}/inet")).differs


@requires_postfix
@pytest.mark.parametrize("broken", ["postqueue", "postcat"])
async def test_where_the_queue_cannot_be_read_nothing_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    [smtp] = free_addresses(1)
    former, other = site(tmp_path, "content-filter"), site(tmp_path, "milter")
    settings = {"content_filter": "qumail:[127.0.0.1]:15024"}
    transport = "postconf -M 'qumail/unix=qumail unix - - n - - lmtp'"
    async with postfix.running(smtp=smtp, fragments=(), ports={}, settings=settings, changes=transport) as server:
        await server.submit(mails.plain(), recipients=["ben@bob.example"])
        await server.deferred("ben@bob.example")
        fails = tmp_path / "bin" / broken
        fails.parent.mkdir()
        fails.write_text(f"#!/bin/sh\necho '{broken}: fatal: no room' >&2\nexit 1\n")
        fails.chmod(0o755)
        monkeypatch.setenv("PATH", str(fails.parent), prepend=":")
        before = texts(server.config)
        with pytest.raises(StillQueued, match="no room") as refused:
            await planned_change(server.config, other, beside=tmp_path, service=f"{smtp}/inet")
        assert "postqueue -j" in str(refused.value)
        assert texts(server.config) == before
        assert "queue-unknown" in [fault.code for fault in (await checked.judge_all(server.config, former)).faults]


@requires_postfix
async def test_undo_of_another_integration_leaves_no_queued_mail_behind(tmp_path: Path) -> None:
    """As a change of integration does: what waits for the content filter would stay for ever behind a milter."""
    [smtp] = free_addresses(1)
    site(tmp_path, "content-filter")
    settings = {"content_filter": "qumail:[127.0.0.1]:15024"}
    transport = "postconf -M 'qumail/unix=qumail unix - - n - - lmtp'"
    async with postfix.running(smtp=smtp, fragments=(), ports={}, settings=settings, changes=transport) as server:
        for number in ("1", "2"):
            kept = tmp_path / BACKUP / number
            for when in ("before", "after"):
                shutil.copytree(server.config, kept / when)
            (kept / "directory").write_text(f"{server.config}\n{this_machine()}\n")
        await run("postconf", "-c", str(kept / "before"), "-X", "content_filter")
        await run("postconf", "-c", str(kept / "before"), "-MX", "qumail/unix")
        await server.submit(mails.plain(), recipients=["ben@bob.example"])
        await server.deferred("ben@bob.example")
        words = ["setup", "--config", str(tmp_path / "relay.toml"), "--undo"]
        before = texts(server.config)
        refused = await asyncio.to_thread(CliRunner().invoke, cli, words)
        assert isinstance(refused.exception, StillQueued)
        assert "1 mail in the queue for the relay" in str(refused.exception)
        assert texts(server.config) == before
        await server.command("postsuper", "-d", "ALL")
        done = await asyncio.to_thread(CliRunner().invoke, cli, words)
        assert done.exit_code == 0, done.output
        assert "qumail" not in (server.config / "main.cf").read_text()
