"""The optimized KM client against the development pair KM1 and KM2, over every behaviour that is documented.
Standard: ETSI GS QKD 014 V1.1.1; real servers, real TLS, real certificates, on free ports.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.errors import ConfigError, KeyNotFound, KeyUnavailable, KMEExhausted, KMEMisconfigured, KMEUnreachable
from relay.keys import OptimizedKMClient, get_optimized_km_clients
from relay.keys.development import KMOptions
from relay.keys.faults import KeysMissing, KMERefusedRequest
from relay.keys.group import KMEGroup, Prefetch
from relay.keys.tls import TLSRules
from relay.kme import DevelopmentKMEs, LinkSettings

SNIPPET = """
import asyncio

async def main():
    from relay.keys import get_optimized_km_clients
    km1_client, km2_client = get_optimized_km_clients()
    status = await km1_client.check_key_status(1)
    keys = await km1_client.request_enc_keys(1, number=1, size=256)
    [same] = await km2_client.request_dec_keys(2, [keys[0].key_ID])
    assert same == keys[0] and len(same.key) == 32 and status.stored_key_count > 0
    print("fine")

asyncio.run(main())
"""

Clients = tuple[OptimizedKMClient, OptimizedKMClient]


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[DevelopmentKMEs]:
    link = LinkSettings(key_rate=1_000_000, stored_key_limit=1000)
    state = tmp_path / "qumail-relay" / "kme"
    async with DevelopmentKMEs(state_dir=state, host="localhost", ports=(0, 0), link=link) as kmes:
        yield kmes


@pytest.fixture
async def clients(servers: DevelopmentKMEs) -> AsyncIterator[Clients]:
    alice, bob = get_optimized_km_clients(servers.state_dir)
    async with alice, bob:
        yield alice, bob


async def test_the_snippet_of_the_documentation_runs_verbatim_and_without_noise(
    servers: DevelopmentKMEs,
) -> None:
    environment = {"XDG_STATE_HOME": str(servers.state_dir.parent.parent), "PYTHONPATH": str(Path.cwd())}
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", SNIPPET],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "fine\n", "")


def test_the_defaults_are_the_known_ones(servers: DevelopmentKMEs) -> None:
    client, _ = get_optimized_km_clients(servers.state_dir)
    assert client.retry_attempts == 3
    assert client.retry_delay == 1
    assert client.timeout == 10
    assert client.pool_connections == 5
    assert client.pool_maxsize == 10


async def test_status_tells_the_pair_and_the_limits(clients: Clients) -> None:
    status = await clients[0].check_key_status(1)
    assert (status.source_KME_ID, status.target_KME_ID) == ("KM1", "KM2")
    assert (status.master_SAE_ID, status.slave_SAE_ID) == ("2", "1")
    assert (status.key_size, status.max_key_per_request, status.max_key_count) == (256, 128, 1000)
    assert status.stored_key_count == 1000


async def test_a_key_comes_out_at_the_other_side_once(clients: Clients) -> None:
    alice, bob = clients
    [key] = await alice.request_enc_keys(1, number=1, size=256)
    assert await bob.request_dec_keys(2, [key.key_ID]) == [key]
    with pytest.raises(KeyNotFound):
        await bob.request_dec_keys(2, [key.key_ID])


async def test_both_directions_and_many_keys_in_their_order(clients: Clients) -> None:
    alice, bob = clients
    keys = await bob.request_enc_keys("2", number=20, size=512)
    assert {len(key.key) for key in keys} == {64}
    ids = [key.key_ID for key in keys]
    assert await alice.request_dec_keys("1", ids[::-1]) == keys[::-1]


async def test_one_unknown_key_is_named_and_the_others_stay_where_they_are(clients: Clients) -> None:
    alice, bob = clients
    [key] = await alice.request_enc_keys(1)
    with pytest.raises(KeysMissing) as missing:
        await bob.request_dec_keys(2, ["unknown", key.key_ID])
    assert missing.value.missing == ["unknown"]
    assert missing.value.certain
    assert await bob.request_dec_keys(2, [key.key_ID]) == [key]


async def test_more_keys_than_a_request_may_ask_for_come_by_several(clients: Clients) -> None:
    alice, bob = clients
    for _ in range(2):  # then it is known that these KMEs keep what nobody has fetched
        [key] = await alice.request_enc_keys(1)
        await bob.request_dec_keys(2, [key.key_ID])
    keys = await alice.request_enc_keys(1, number=300)
    assert len({key.key_ID for key in keys}) == 300


async def test_what_the_kme_does_not_accept_is_a_refused_request(clients: Clients) -> None:
    with pytest.raises(KMERefusedRequest):
        await clients[0].request_enc_keys(1, size=65_544)
    with pytest.raises(KMERefusedRequest, match="extension_mandatory"):
        await clients[0].request_enc_keys(1, extension_mandatory=[{"vendor_thing": 1}])
    assert await clients[0].request_enc_keys(1, extension_optional=[{"vendor_thing": 1}])


@pytest.mark.parametrize(("number", "size"), [(0, 256), (1, 0), (1, 12)])
async def test_a_request_that_no_kme_could_accept_is_the_callers_fault(
    clients: Clients, number: int, size: int
) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        await clients[0].request_enc_keys(1, number=number, size=size)


async def test_an_exhausted_link_says_so_and_recovers_with_time(tmp_path: Path) -> None:
    link = LinkSettings(key_rate=0.001, stored_key_limit=3)
    async with DevelopmentKMEs(state_dir=tmp_path, host="localhost", ports=(0, 0), link=link) as kmes:
        state = kmes.state_dir  # no pair that draws ahead: both KMEs are at one link, and Bob's would take its keys
        files = {"ca": state / "ca.pem", "certificate": state / "sae-2.pem", "key": state / "sae-2.key"}
        async with OptimizedKMClient(kmes.urls[0], retry_attempts=0, **files) as alice:  # type: ignore[arg-type]
            await alice.request_enc_keys(1, number=3)
            with pytest.raises(KMEExhausted):
                await alice.request_enc_keys(1)
            kmes.link.bits += 256
            await alice.request_enc_keys(1)


async def test_an_sae_that_the_kme_does_not_know_is_a_configuration_fault(clients: Clients) -> None:
    with pytest.raises(KMEMisconfigured, match="401"):
        await clients[0].check_key_status("mallory")


async def test_another_sae_does_not_get_the_key(servers: DevelopmentKMEs, clients: Clients) -> None:
    [key] = await clients[0].request_enc_keys(1)
    with pytest.raises(KMEMisconfigured, match="401"):
        await clients[0].request_dec_keys(2, [key.key_ID])


async def test_the_kme_id_of_the_certificate_is_confirmed(servers: DevelopmentKMEs) -> None:
    state = servers.state_dir
    files = {"ca": state / "ca.pem", "certificate": state / "sae-2.pem", "key": state / "sae-2.key"}
    for kme_id, accepted in (("KM1", True), ("KM2", False)):
        tls = TLSRules(kme_id=kme_id, name_from="either")
        async with OptimizedKMClient(servers.urls[0], tls=tls, retry_attempts=0, **files) as client:  # type: ignore[arg-type]
            if accepted:
                await client.check_key_status(1)
            else:
                with pytest.raises(KMEMisconfigured, match="not KME KM2's"):
                    await client.check_key_status(1)


async def test_a_common_name_that_would_do_is_hinted_at(servers: DevelopmentKMEs) -> None:
    state = servers.state_dir
    files = {"ca": state / "ca.pem", "certificate": state / "sae-2.pem", "key": state / "sae-2.key"}
    tls = TLSRules(kme_id="KM1", name_from="san")
    async with OptimizedKMClient(servers.urls[0], tls=tls, retry_attempts=0, **files) as client:  # type: ignore[arg-type]
        with pytest.raises(KMEMisconfigured, match='name_from = "cn" looks there'):
            await client.check_key_status(1)


async def test_a_handshake_that_is_cut_is_told_from_a_closed_port(servers: DevelopmentKMEs) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    state = servers.state_dir
    files = {"ca": state / "ca.pem", "certificate": state / "sae-2.pem", "key": state / "sae-2.key"}
    async with await asyncio.start_server(cut, "localhost", 0) as server:
        url = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        async with OptimizedKMClient(url, retry_attempts=0, **files) as client:  # type: ignore[arg-type]
            with pytest.raises(KMEUnreachable, match=r"cuts the TLS handshake.*ciphers"):
                await client.check_key_status(1)


async def test_concurrent_use_shares_few_connections(clients: Clients) -> None:
    alice, bob = clients
    keys = await asyncio.gather(*(alice.request_enc_keys(1, number=2) for _ in range(20)))
    ids = [key.key_ID for some in keys for key in some]
    assert len(set(ids)) == 40
    fetched = await asyncio.gather(*(bob.request_dec_keys(2, [key_ID]) for key_ID in ids))
    assert [some[0].key_ID for some in fetched] == ids


async def test_pools_of_both_sites_agree_on_every_key_and_pad(clients: Clients) -> None:
    alice, bob = (KMEGroup("dev", [client], Prefetch(4, 16)) for client in clients)
    taken = await asyncio.gather(*(alice.take("1") for _ in range(50)))
    fetched = await asyncio.gather(*(bob.fetch("2", [key.key_ID]) for key in taken))
    assert [some[key.key_ID] for some, key in zip(fetched, taken, strict=True)] == taken
    with await alice.take_pad("1", 10_000) as pad:
        assert pad.hides >= 10_000
        ids = [key.reference.key_ID for key in pad.keys]
        assert ids == sorted(ids, key=str.encode)
        keys = await bob.fetch("2", ids)
        assert [keys[key_ID].key for key_ID in ids] == [bytes(key.octets) for key in pad.keys]
    await alice.close()
    await bob.close()


def test_without_development_servers_the_remedy_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="qumail-relay kme"):
        get_optimized_km_clients(tmp_path)


PARTS = ("URL", "SAE", "CA", "CERTIFICATE", "KEY")
"""What is named of each KME: QUMAIL_TEST_KM1_URL and so on; QUMAIL_TEST_KM1_ID where its certificate has no host name."""


def named(kme: str) -> tuple[KMOptions, str] | None:
    """The options and our SAE ID of a KME that the environment names, if it names one."""
    values = {part: os.environ.get(f"QUMAIL_TEST_{kme}_{part}", "") for part in PARTS}
    if not any(values.values()):
        return None
    lacking = [f"QUMAIL_TEST_{kme}_{part}" for part, value in values.items() if not value]
    assert not lacking, f"these are needed too: {lacking}"
    kme_id = os.environ.get(f"QUMAIL_TEST_{kme}_ID")
    options: KMOptions = {
        "url": values["URL"],
        "ca": values["CA"],
        "certificate": values["CERTIFICATE"],
        "key": values["KEY"],
        "tls": TLSRules(kme_id=kme_id, name_from="either") if kme_id else TLSRules(),
    }
    return options, values["SAE"]


async def test_a_key_of_the_pair_that_the_environment_names_comes_out_at_the_other_side(
    servers: DevelopmentKMEs, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without such names it is the development pair. It prints what it tried and what came.

    Whether a KME gives a key once, and keeps those that nobody has fetched, is its own affair: of a named pair it is said.
    """
    first, second = named("KM1"), named("KM2")
    if first and second:
        (km1, sae_1), (km2, sae_2) = first, second
        pair = get_optimized_km_clients(km1=km1, km2=km2, cache=Prefetch(0, 0))
    else:
        assert first is None, "KM1 is named: name KM2, too"
        assert second is None, "KM2 is named: name KM1, too"
        sae_1, sae_2 = "2", "1"
        pair = get_optimized_km_clients(servers.state_dir, cache=Prefetch(0, 0))
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if first:
            with capsys.disabled():
                sys.stdout.write(f"\n{text}")

    async with pair:
        for name, kme, other, ours, theirs in (
            ("KM1", pair.km1, pair.km2, sae_1, sae_2),
            ("KM2", pair.km2, pair.km1, sae_2, sae_1),
        ):
            status = await kme.check_key_status(theirs)
            say(f"{name} {kme.name}: status for SAE {theirs}: {status}")
            at_the_peer = KMEGroup("pair", [other], Prefetch(0, 0))  # waits for keys on their way
            size = status.key_size or 256
            keys = await kme.request_enc_keys(theirs, number=1, size=size)
            assert await at_the_peer.request_dec_keys(ours, [keys[0].key_ID]) == keys
            say(f"{name}: a key of {size} bits came out at the other side")
            gone = False
            try:
                await other.request_dec_keys(ours, [keys[0].key_ID])
                say(f"{name}: asked for it again, the other side gives it again")
            except KeyUnavailable as error:
                gone = isinstance(error, KeyNotFound)
                say(f"{name}: asked for it again, the other side says: {type(error).__name__}: {error}")
            several = [key for _ in range(3) for key in await kme.request_enc_keys(theirs, number=1, size=size)]
            try:
                came = list(await at_the_peer.request_dec_keys(ours, [key.key_ID for key in several]))
            except KeysMissing as error:
                came = list(error.found)
            assert all(key in several for key in came)
            say(f"{name}: of 3 keys by 3 requests {len(came)} came out by one call")
            if not first:
                assert gone
                assert came == several
    assert len(said) == 8
