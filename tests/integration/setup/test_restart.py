"""Nobody who was connected before Postfix was changed brings mail past the relay afterwards.
Standard: a real Postfix, and a client that keeps its connection, as amavisd does for the mail that it gives back.
"""

from __future__ import annotations

import asyncio
import os
import smtplib
from pathlib import Path

import pytest

from relay.errors import ConfigError
from relay.setup import restart
from relay.setup.restart import restarted
from tests.testlib import postfix, reference, relay_command
from tests.testlib.ports import free_addresses
from tests.testlib.postfix import requires_postfix
from tests.testlib.sink import Sink


@requires_postfix
async def test_a_client_that_was_connected_before_goes_by_the_changed_settings_as_well() -> None:
    smtp, nobody = free_addresses(2)
    async with Sink() as sink:
        settings = {"relay_domains": "bob.example", "default_transport": f"smtp:[127.0.0.1]:{sink.address.port}"}
        settings["relay_transport"] = settings["default_transport"]
        async with postfix.running(smtp=smtp, fragments=(), ports={}, settings=settings) as server:
            amavis = await asyncio.to_thread(smtplib.SMTP, *smtp)
            await asyncio.to_thread(amavis.ehlo)
            await postfix.change(server.directory, f"postconf -e content_filter=smtp:[127.0.0.1]:{nobody.port}")
            assert await restarted(server.config)
            with pytest.raises(smtplib.SMTPServerDisconnected):
                await asyncio.to_thread(amavis.sendmail, "ann@alice.example", ["ben@bob.example"], b"From: a@b\n\nx\n")
            assert (await server.submit(b"From: <ann@alice.example>\r\n\r\nx\r\n")).code == 250
            assert "refused" in await server.deferred("ben@bob.example")
            assert sink.got == []


@requires_postfix
async def test_check_names_each_process_that_takes_mail_in_by_the_settings_of_before(tmp_path: Path) -> None:
    [smtp] = free_addresses(1)
    words = ("check", "--config", str(reference.written(tmp_path)), "--postfix")
    async with postfix.running(smtp=smtp, fragments=(), ports={}, settings={}) as server:
        amavis = await asyncio.to_thread(smtplib.SMTP, *smtp)
        _, _, out = await relay_command.run(*words, server.config)
        assert b"former settings" not in out
        (server.config / "main.cf").touch()
        _, _, out = await relay_command.run(*words, server.config)
        said = out.decode()
        assert f"smtpd of {server.config}, process " in said
        assert f"pickup of {server.config}, process " in said, "it takes in what programs of this host send"
        assert "what it takes in goes by the former settings, past the relay; restart Postfix" in said
        assert await restarted(server.config)
        _, _, out = await relay_command.run(*words, server.config)
        assert b"former settings" not in out
        await asyncio.to_thread(amavis.close)


@requires_postfix
async def test_a_postfix_that_systemd_runs_is_restarted_by_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    groups = "0::/system.slice/system-postfix.slice/postfix@-.service\n"
    monkeypatch.setattr(restart, "control_groups", lambda _: groups)
    [smtp] = free_addresses(1)
    async with postfix.running(smtp=smtp, fragments=(), ports={}, settings={}) as server:
        assert await restarted(server.config)
        assert (tmp_path / "asked").read_text() == "restart postfix@-.service\n"


@requires_postfix
@pytest.mark.parametrize("failures", [2, 99])
async def test_a_postfix_whose_ports_are_not_free_yet_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    await postfix.configure(tmp_path, ())
    program = tmp_path / "bin" / "postfix"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$3" >>{tmp_path}/asked\n'
        f'[ "$3" != start ] || [ "$(grep -c start {tmp_path}/asked)" -gt {failures} ] || {{ echo in use >&2; exit 1; }}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(restart, "PAUSES_S", (0.0, 0.0, 0.0, 0.0))
    if failures == 2:
        assert await restarted(tmp_path / "etc")
        assert (tmp_path / "asked").read_text().split() == ["status", "stop", "start", "start", "start"]
    else:
        with pytest.raises(ConfigError, match="in use; Postfix is stopped now"):
            await restarted(tmp_path / "etc")


@requires_postfix
async def test_a_postfix_that_does_not_run_is_not_started(tmp_path: Path) -> None:
    await postfix.configure(tmp_path, ())
    assert not await restarted(tmp_path / "etc")
