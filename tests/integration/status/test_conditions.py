"""A state in which mail leaves weaker than it could, or stays, is told alike wherever an administrator looks.
Standard: relay/counting/alarms.py has them all; `check`, the page, metrics and policy commands say what stands there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import app
from relay.kme import DevelopmentKMEs
from tests.integration.status.test_alarms import until_written
from tests.integration.status.test_metrics import asked, numbers, with_status
from tests.system.drill import shortened
from tests.testlib.relay_command import run
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site


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
