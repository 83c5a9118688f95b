"""A relay whose KME knows it by another SAE ID than relay.toml says: no mail is sealed that no peer could open.
Standard: ETSI GS QKD 014 V1.1.1, 6.1 (master_SAE_ID); what real KMEs leave out or spell otherwise breaks nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner
from structlog.testing import LogCapture

from relay.cli import cli
from relay.kme import DevelopmentKMEs
from tests.testlib import mails
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site, serving
from tests.testlib.submit import submit

pytestmark = pytest.mark.in_process


@pytest.fixture
def log() -> Iterator[LogCapture]:
    """All events of the relay; the configuration before is restored."""
    capture = LogCapture()
    before = structlog.get_config()
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, capture])
    yield capture
    structlog.configure(**before)


def alice(tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, *, sae_id: str = "2", kme_settings: str = "") -> Site:
    """Alice's site, with the certificate of SAE 2, whatever SAE ID it writes into mail."""
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        kme_settings=kme_settings,
    )  # fmt: skip
    text = site.config_file.read_text().replace('sae_id = "2"\nhostname', f'sae_id = "{sae_id}"\nhostname')
    site.config_file.write_text(text)
    return site


async def kme_problems(site: Site) -> list[str]:
    """What `check` says of the KME."""
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--json", "--config", str(site.config_file)])
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    return [problem for each in findings if each["what"].startswith("KME ") for problem in each["problems"]]


def events(log: LogCapture, name: str) -> list[Any]:
    """Those that were said aloud."""
    return [entry for entry in log.entries if entry["event"] == name and entry["log_level"] != "debug"]


@pytest.mark.parametrize("level", ["otp", "aes"])
async def test_mail_is_held_and_no_key_spent_where_the_kme_takes_us_for_another_sae(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture, level: str
) -> None:
    site = alice(tmp_path, kmes, sink, sae_id="7")
    (site.directory / "policies" / "default.toml").write_text(f'levels = ["{level}"]\n')
    stored = kmes.link.stored_key_count
    async with serving(site) as addresses:
        reply = await submit(addresses["outgoing"], mails.plain())
    assert str(reply).startswith("451 ")
    assert not sink.got
    assert kmes.link.stored_key_count == stored
    [told] = events(log, "kme_takes_us_for_another")
    assert (told["log_level"], told["named"], told["sae_id"]) == ("error", "2", "7")
    [held] = events(log, "not_sealed")
    assert "knows this relay as SAE '2'" in held["cause"]
    assert ["SAE '2'" in problem and "says '7'" in problem for problem in await kme_problems(site)] == [True]


async def test_sealing_begins_by_itself_once_the_kme_knows_the_relay(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.keys.kme_store.STATUS_RETRY_S", 0.0)
    async with serving(alice(tmp_path, kmes, sink, sae_id="7")) as addresses:
        assert str(await submit(addresses["outgoing"], mails.plain())).startswith("451 ")
        kmes.km1.limits = {"master_SAE_ID": "7"}
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250


@pytest.mark.parametrize(
    "names",
    [
        {"master_SAE_ID": ""},
        {"master_SAE_ID": None, "slave_SAE_ID": None},
        {"master_SAE_ID": 2, "slave_SAE_ID": 1},
        {"master_SAE_ID": "1", "slave_SAE_ID": "2"},
    ],
)
async def test_a_kme_that_names_nobody_numbers_or_the_two_exchanged_is_taken_as_it_is(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, names: dict[str, object]
) -> None:
    kmes.km1.limits = names
    site = alice(tmp_path, kmes, sink)
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert not await kme_problems(site)


async def test_a_kme_with_names_of_its_own_for_both_sites_is_a_finding_and_seals_all_the_same(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, log: LogCapture
) -> None:
    kmes.km1.limits = {"master_SAE_ID": "urn:sae:0042", "slave_SAE_ID": "urn:sae:0043"}
    site = alice(tmp_path, kmes, sink)
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
        async with asyncio.timeout(30):
            while not events(log, "kme_may_take_us_for_another"):  # its status is asked for beside the mail
                await asyncio.sleep(0.01)
    [told] = events(log, "kme_may_take_us_for_another")
    assert told["log_level"] == "warning"
    assert ["calls_us" in problem for problem in await kme_problems(site)] == [True]


async def test_its_spelling_can_be_told_and_is_no_finding_then(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    kmes.km1.limits = {"master_SAE_ID": "urn:sae:0042"}
    site = alice(tmp_path, kmes, sink, kme_settings='calls_us = "urn:sae:0042"\n')
    async with serving(site) as addresses:
        assert (await submit(addresses["outgoing"], mails.plain())).code == 250
    assert not await kme_problems(site)
