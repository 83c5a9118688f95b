"""`qumail-relay check` about keys: what it finds at the KMEs, in the store, and in what the serving relay has noted.
Standard: exit status 0 when all are fine, 1 otherwise; no key is spent unless that is asked for.
"""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from relay.cli import cli
from relay.keys import tls
from relay.kme import DevelopmentKMEs, Misbehaviour
from relay.process import assembly
from relay.store import store
from tests.integration.keys.test_undelivered import LINK
from tests.testlib.next_door import count_undelivered
from tests.testlib.sink import Sink
from tests.testlib.sites import Site, make_site


async def _check(site: Site, *options: str) -> dict[str, list[str]]:
    """Problems by what was looked at."""
    arguments = ["check", "--json", "--config", str(site.config_file), *options]
    done = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    findings: list[dict[str, Any]] = json.loads(done.stdout)
    assert done.exit_code == int(any(finding["problems"] for finding in findings))
    problems: dict[str, list[str]] = {}
    for finding in findings:
        problems.setdefault(finding["what"], []).extend(finding["problems"])
    return problems


async def _said(site: Site) -> str:
    """What a person reads."""
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["check", "--config", str(site.config_file)])
    return done.output


@pytest.mark.parametrize(
    ("change", "settings", "found"),
    [
        ({}, "", "dropped when more are asked for"),
        ({"drops_undelivered": False}, "", "kept"),
        ({"max_sae_id_count": 0}, "", "keys trial"),
        ({}, "one_batch_at_a_time = true", None),
    ],
)
async def test_what_becomes_of_undelivered_keys_is_found_out_with_keys_on_demand_and_remembered(
    tmp_path: Path, sink: Sink, change: dict[str, Any], settings: str, found: str | None
) -> None:
    link = replace(LINK, **change)
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(0, 0), link=link) as kmes:
        site = make_site(
            tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
            kme_settings=settings,
        )  # fmt: skip
        stored = kmes.link.stored_key_count
        said = await _said(site)
        assert kmes.urls[0] in said
        assert ("not tried yet" in said) == (found is not None)
        assert kmes.link.stored_key_count == stored
        async with assembly.parts(site.config, prefetch=False):
            pass  # now there is a store
        told = await _check(site, "--trial-keys")
        assert not any(problems for what, problems in told.items() if "undelivered keys" in what)
        assert kmes.link.stored_key_count == stored - (
            1 if found is None else 4 if change.get("max_sae_id_count") == 0 else 3
        )
        said = " ".join((await _said(site)).split())
        assert (found or "") in said
        assert ("undelivered keys" in said) == (found is not None)


async def test_a_store_that_cannot_be_written_and_what_the_serving_relay_has_noted(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_S", 0.5)
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    async with assembly.parts(site.config, prefetch=False) as parts:
        await parts.keys.take("bob", level="otp")
        pool = parts.keys.groups["alice-bob"].pools[0]
        pool.issued.withheld = "no space left on device"
        site.config.keys_file.write_text(json.dumps((await parts.keys.report(ask=False)).as_json()))
    assert isinstance(site.config.store.database, Path)
    with closing(sqlite3.connect(site.config.store.database)) as other:
        other.execute("BEGIN IMMEDIATE")
        told = await _check(site)
    assert any("no KME is asked for keys" in problem for problem in told["store"])
    [problem] = [problem for what, problems in told.items() if what.startswith("KME") for problem in problems]
    assert "for peer bob: no keys are drawn, the store cannot remember them: no space left on device" in problem
    site.config.keys_file.unlink()
    assert not any((await _check(site)).values())


async def test_development_key_servers_are_advised_where_they_do_not_answer_and_not_where_a_certificate_ends(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "ENDS_SOON", timedelta(days=100_000))
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    said = await _said(site)
    assert "WRONG  KME kme: certificates" in said
    assert "run the development key servers" not in said
    nowhere = "https://127.0.0.1:1"
    away = make_site(tmp_path / "away", "alice", state=kmes.state_dir, kme_url=nowhere, outgoing=sink.address)
    assert "run the development key servers" in await _said(away)


@pytest.mark.parametrize("known", [True, False])
async def test_without_peers_a_kme_that_refuses_us_is_wrong_and_one_that_knows_us_is_ok(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, known: bool
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    text, _, _ = site.config_file.read_text().partition("[peers.bob]")
    site.config_file.write_text(text if known else text.replace("sae-2.", "sae-1."))
    said = await _said(site)
    if known:
        assert f"ok     KME kme  {kmes.urls[0]}: knows this relay; no peer has its group 'alice-bob'" in said
        assert re.search(r"\b401\b", said) is None, "as a word: a port may have these digits"
    else:
        assert "WRONG  KME kme  refuses this relay" in said
        assert "HTTP 401" in said
        assert "ok     KME kme" not in said


@pytest.mark.parametrize("code", [404, 503])
async def test_a_kme_behind_a_proxy_that_answers_everything_with_a_page_is_unreachable(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, code: int
) -> None:
    kmes.km1.decide = lambda _: Misbehaviour("http", code, f"<html><h1>{code} Sorry</h1>nginx</html>")
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    told = await _check(site)
    [problem] = [problem for what, problems in told.items() if what.startswith("KME") for problem in problems]
    assert problem.startswith("KMEUnreachable: ")
    assert f"status: HTTP {code}: {code} Sorry nginx" in problem
    arguments = ["keys", "status", "--json", "--config", str(site.config_file)]
    done = await asyncio.to_thread(CliRunner().invoke, cli, arguments)
    assert done.exit_code == 1
    [row] = json.loads(done.stdout)["pools"]
    assert row["trouble"].startswith("unreachable: ")
    assert f"HTTP {code}: {code} Sorry nginx" in row["trouble"]
    assert row["stored_keys"] is None


HANGS = "CreepPork's next-door-key-simulator: both KMEs of a pair hang for good"


async def test_a_kme_that_takes_requests_and_answers_none_is_said_to_hang(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = make_site(
        tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address,
        kme_settings="timeout = 0.5",
    )  # fmt: skip
    kmes.km1.misbehave("dec_keys", "hang", times=None)
    told = await _check(site)
    [problem] = [problem for what, problems in told.items() if what.startswith("KME") for problem in problems]
    assert "took the request and gave no answer within 0.5 s" in problem
    assert HANGS in problem
    assert "shortage" not in problem


@pytest.mark.parametrize(
    "words",
    [
        "The given master_sae_id is not involved in any key exchanges.",
        "Some of the requested keys do not exist in this KME.",
    ],
)
@pytest.mark.parametrize("with_peer", [True, False])
async def test_the_simulator_whose_pairs_hang_is_named_before_the_first_mail(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink, words: str, with_peer: bool
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    if not with_peer:
        site.config_file.write_text(site.config_file.read_text().partition("[peers.bob]")[0])
    kmes.km1.misbehave("dec_keys", "http", times=None, code=401, body=json.dumps({"message": words}))
    told = await _check(site)
    [problem] = [problem for what, problems in told.items() if what.startswith("KME") for problem in problems]
    assert HANGS in problem
    assert "Put a proxy with a time limit between the two (KEYS.md), then set one_batch_at_a_time = true" in problem
    site.config_file.write_text(
        site.config_file.read_text().replace("retry_delay", "one_batch_at_a_time = true\nretry_delay")
    )
    assert not [
        problem for what, problems in (await _check(site)).items() if what.startswith("KME") for problem in problems
    ]


async def test_a_kme_that_counts_only_keys_not_fetched_has_no_shortage(
    tmp_path: Path, kmes: DevelopmentKMEs, sink: Sink
) -> None:
    site = make_site(tmp_path / "alice", "alice", state=kmes.state_dir, kme_url=kmes.urls[0], outgoing=sink.address)
    count_undelivered(kmes, drops=False)
    assert not any((await _check(site)).values())
    assert sum(kmes.link.issued.values()) == 1
    await _check(site)
    assert sum(kmes.link.issued.values()) == 1, "now one is not fetched"
