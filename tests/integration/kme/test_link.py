"""The simulated link between the development KMEs: keys come, are counted, and go as on a real one.
Standard: ETSI GS QKD 014 V1.1.1; settings in relay/kme/link.py.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from relay.errors import ConfigError
from relay.keys.development import ENDPOINTS_FILE, endpoints
from relay.kme import LinkSettings, SimulatedLink
from tests.integration.kme.clients import KM1, NOT_FOUND, Client, Clock, Site, ids, running, tls
from tests.testlib import relay_command


async def test_a_key_is_not_found_at_the_other_side_before_the_lag_has_passed(tmp_path: Path) -> None:
    async with running(tmp_path, lag=5) as site:
        issued = (await site.alice.get("1/enc_keys")).keys
        site.clock.advance(4.9)
        early = await site.bob.post("2/dec_keys", ids(*issued))
        assert (early.status, early.message) == (400, NOT_FOUND)
        site.clock.advance(0.1)
        assert (await site.bob.post("2/dec_keys", ids(*issued))).keys == issued


async def test_a_key_is_destroyed_when_its_lifetime_has_passed(tmp_path: Path) -> None:
    async with running(tmp_path, lifetime=60) as site:
        first = (await site.alice.get("1/enc_keys")).keys
        site.clock.advance(1)
        second = (await site.alice.get("1/enc_keys")).keys
        site.clock.advance(59)
        late = await site.bob.post("2/dec_keys", ids(*first))
        assert (late.status, late.message) == (400, NOT_FOUND)
        assert (await site.bob.post("2/dec_keys", ids(*second))).keys == second


async def test_an_exhausted_pool_answers_503_with_a_body_and_gives_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, stored_key_limit=3, key_rate=0) as site:
        answer = await site.alice.post("1/enc_keys", {"number": 4})
        assert (answer.status, answer.message) == (503, "key pool too low for this request")
        assert answer.body["details"] == [{"stored_key_count": 3}]
        assert len((await site.alice.post("1/enc_keys", {"number": 3})).keys) == 3
        assert (await site.alice.get("1/enc_keys")).status == 503
        assert (await site.alice.get("1/status")).body["stored_key_count"] == 0


async def test_the_pool_fills_with_time_up_to_its_limit(tmp_path: Path) -> None:
    async with running(tmp_path, key_rate=256, stored_key_limit=10, starting_fill=0) as site:

        async def stored() -> int:
            return int((await site.alice.get("1/status")).body["stored_key_count"])

        assert await stored() == 0
        site.clock.advance(0.5)
        assert await stored() == 0
        assert (await site.alice.get("1/enc_keys")).status == 503
        site.clock.advance(0.5)
        assert await stored() == 1
        assert (await site.alice.get("1/enc_keys")).status == 200
        assert await stored() == 0
        site.clock.advance(7)
        assert await stored() == 7
        site.clock.advance(1_000_000)
        assert await stored() == 10


async def test_larger_keys_cost_their_size(tmp_path: Path) -> None:
    async with running(tmp_path, key_rate=0, stored_key_limit=10) as site:
        await site.alice.get("1/enc_keys", size=1024)
        assert (await site.alice.get("1/status")).body["stored_key_count"] == 6
        await site.alice.get("1/enc_keys", size=64)
        assert (await site.alice.get("1/status")).body["stored_key_count"] == 5


async def test_both_directions_share_the_one_link(tmp_path: Path) -> None:
    async with running(tmp_path, key_rate=0, stored_key_limit=10) as site:
        await site.bob.get("2/enc_keys", number=4)
        assert (await site.alice.get("1/status")).body["stored_key_count"] == 6


async def test_every_key_is_accounted_for_in_its_direction(tmp_path: Path) -> None:
    async with running(tmp_path, lifetime=60) as site:
        to_bob = (await site.alice.get("1/enc_keys", number=3)).keys
        to_alice = (await site.bob.get("2/enc_keys", number=2)).keys
        await site.bob.post("2/dec_keys", ids(*list(to_bob)[:2]))
        await site.alice.post("1/dec_keys", ids(*to_alice))
        link = site.kmes.link
        assert link.issued == {"KM1": 3, "KM2": 2}
        assert link.delivered == {"KM1": 2, "KM2": 2}
        assert link.expired == {}
        site.clock.advance(60)
        assert link.expired == {"KM1": 1}


async def test_what_became_of_each_key_is_remembered(site: Site) -> None:
    async def drawn() -> str:
        [key_id] = (await site.alice.get("1/enc_keys")).keys
        return key_id

    given, spent, late = [await drawn() for _ in range(3)]
    assert (await site.bob.post("2/dec_keys", ids(given))).status == 200
    for key_id, spends in ((spent, True), (late, False)):
        site.kmes.km2.misbehave("dec_keys", "lose_reply", spends=spends)
        with pytest.raises(aiohttp.ClientError):
            await site.bob.post("2/dec_keys", ids(key_id))
    assert (await site.bob.post("2/dec_keys", ids(spent))).message == NOT_FOUND
    assert (await site.bob.post("2/dec_keys", ids(late))).status == 200
    waiting, site.kmes.link.drops_undelivered = await drawn(), True
    await drawn()
    known = site.kmes.link.keys
    assert [(bool(known[key].given), known[key].lost, known[key].destroyed) for key in (given, spent, late, waiting)] == [
        (True, "", ""), (True, "spent", ""), (True, "", ""), (False, "", "dropped"),
    ]  # fmt: skip
    assert [request.call for request in site.kmes.km2.requests] == ["dec_keys"] * 5


async def test_a_client_that_leaves_before_the_answer_has_lost_its_keys(site: Site) -> None:
    kme = site.kmes.km1
    kme.misbehave("enc_keys", "late", until=asyncio.Event())
    asking = asyncio.create_task(site.alice.get("1/enc_keys"))
    await kme.next_request()
    asking.cancel()
    while kme.open_connections:
        await asyncio.sleep(0)
    [issued] = site.kmes.link.keys.values()
    assert issued.lost == "client left"


async def test_keys_of_an_answer_that_a_closing_connection_does_not_take_are_lost(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def closing(*_: object) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.Response, "write_eof", closing)
    with pytest.raises(aiohttp.ClientError):
        await site.alice.get("1/enc_keys")
    assert {each.lost for each in site.kmes.link.keys.values()} == {"client left"}


async def test_fresh_keys_have_names_that_the_other_side_knows_however_the_kme_misbehaves(site: Site) -> None:
    site.kmes.km1.misbehave("enc_keys", "other_keys")
    answer = await site.alice.get("1/enc_keys")
    assert {entry["key_ID"] for entry in answer.body["keys"]} == set(site.kmes.link.keys)


async def test_the_command_runs_servers_that_misbehave_as_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    state = tmp_path / "kme"
    told = ("--port", "0", "--port", "0", "--state", state, "--misbehave", "enc_keys", "none", "--latency", "0.01")
    servers = await relay_command.start("kme", *told)
    async with asyncio.timeout(30):
        while not (state / ENDPOINTS_FILE).exists():
            await asyncio.sleep(0.02)
    connector = aiohttp.TCPConnector(ssl=tls(state, "sae-2"))
    async with aiohttp.ClientSession(connector=connector) as session:
        alice = Client(session, endpoints(state)[KM1])
        assert (await alice.get("1/enc_keys")).keys == {}
        assert (await alice.get("1/status")).body["stored_key_count"] > 0
    servers.terminate()
    assert await servers.wait() == 0


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"key_size": 250}, "multiples of 8"),
        ({"min_key_size": 0}, "multiples of 8"),
        ({"key_size": 128, "min_key_size": 256}, "min_key_size <= key_size"),
        ({"max_key_size": 128}, "key_size <= max_key_size"),
        ({"key_rate": -1}, "key_rate"),
        ({"key_rate": float("inf")}, "key_rate"),
        ({"key_rate": float("nan")}, "key_rate"),
        ({"stored_key_limit": 0}, "stored_key_limit"),
        ({"starting_fill": 1.5}, "starting_fill"),
        ({"lag": -1}, "lag"),
        ({"lag": 600}, "lag < lifetime"),
        ({"max_key_per_request": 0}, "max_key_per_request"),
        ({"max_sae_id_count": -1}, "max_sae_id_count"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        LinkSettings(**settings)


def test_the_link_does_not_show_key_bytes(tmp_path: Path) -> None:
    link = SimulatedLink(LinkSettings(), Clock())
    (key,) = link.issue(kme="KM1", master="2", slaves={"1"}, number=1, size=256)
    assert repr(key.key) not in repr(key) + repr(vars(link))
