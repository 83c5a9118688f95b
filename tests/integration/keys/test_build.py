"""From relay.toml to a key ring: every setting of a KME and of a peer's keys arrives where it works.
Standard: relay/config for the settings, with their defaults and limits.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relay.config import KMESettings, PeerSettings, load_config
from relay.errors import ConfigError, KMEMisconfigured
from relay.keys import OptimizedKMClient
from relay.keys.build import key_ring, km_client, peer_keys, prefetch_of
from relay.keys.faults import Call, ErrorRule, KMEFault
from relay.keys.health import BreakerRules
from relay.keys.refill import Prefetch
from relay.keys.ring import PeerKeys, SupplyLimits
from relay.keys.rotation import Rotation
from relay.keys.skip import SKIPClient
from tests.testlib.fake_kme import Certificates, FakeKME

TOML = """
[site]
name = "alice"
domains = ["alice.example"]
sae_id = "sae-alice"
[outgoing]
listen = "127.0.0.1:0"
next_hop = "127.0.0.1:25"
[policies]
directory = "policies"
[store]
database = "store.sqlite"
secret = "secret"
[kmes.one]
url = "URL"
group = "g"
ca = "FILES/ca.pem"
certificate = "FILES/sae.pem"
key = "FILES/sae.key"
SETTINGS
[peers.bob]
domains = ["bob.example"]
sae_id = "sae-bob"
kme_groups = ["g"]
key_max_messages = 5
"""


def _write(directory: Path, files: Path, settings: str = "", url: str = "https://localhost:1") -> Path:
    path = directory / "relay.toml"
    path.write_text(
        TOML.replace("URL", url).replace("FILES", str(files)).replace("SETTINGS", settings), encoding="utf-8"
    )
    return path


def _kme(certificates: Certificates, **settings: object) -> KMESettings:
    files = {name: str(path) for name, path in certificates.files.items()}
    return KMESettings.model_validate({"url": "https://localhost:1", **files, **settings})


async def test_a_ring_built_from_a_file_gives_keys(tmp_path: Path, certificates: Certificates, kme: FakeKME) -> None:
    config = load_config(_write(tmp_path, certificates.directory, 'method = "GET"', kme.url))
    before = asyncio.all_tasks()
    ring = key_ring(config, prefetch=False)
    assert asyncio.all_tasks() == before
    taken = await ring.take("bob")
    assert (taken.reference.master_sae, taken.reference.slave_sae) == ("sae-alice", "sae-bob")
    assert kme.got("enc_keys")[0].method == "GET"
    assert ring.peers == {"bob": PeerKeys("sae-bob", ("g",), Rotation(max_messages=5))}
    await ring.close()


def test_every_quirk_has_its_place(certificates: Certificates) -> None:
    settings = {
        "size_unit": "bytes",
        "integer_key_ids": True,
        "errors": [{"call": "dec_keys", "code": 401, "text": "no key", "means": "not_found"}],
    }
    client = km_client("one", _kme(certificates, retry_attempts=1, timeout=4, **settings))
    assert isinstance(client, OptimizedKMClient)
    assert (client.name, client.retry_attempts, client.timeout) == ("one", 1, 4)
    quirks = client.settings.quirks
    assert (quirks.size_unit, quirks.integer_key_ids) == ("bytes", True)
    assert quirks.errors == (ErrorRule(KMEFault.NOT_FOUND, 401, Call.DEC_KEYS, "no key"),)


async def test_a_kme_whose_certificate_has_its_id_and_no_host_name_is_known_by_that(certificates: Certificates) -> None:
    tls = certificates.server_tls("elsewhere.example", common_name="KME-A")
    async with FakeKME(certificates, tls=tls) as kme:
        for settings in ({}, {"kme_id": "KME-B", "name_from": "cn"}, {"kme_id": "KME-A"}):
            async with km_client("one", _kme(certificates, url=kme.url, retry_attempts=0, **settings)) as client:
                with pytest.raises(KMEMisconfigured):
                    await client.request_enc_keys("bob")
        known = _kme(certificates, url=kme.url, kme_id="kme-a", name_from="cn")
        async with km_client("one", known) as client:
            assert len(await client.request_enc_keys("bob")) == 1


def test_a_kme_is_left_alone_and_given_up_by_the_times_of_its_own_tries(certificates: Certificates) -> None:
    quick = km_client("one", _kme(certificates, retry_delay=0.25, timeout=5))
    rules = quick.settings.breaker
    assert rules == BreakerRules(failures=5, delay=1.25, longest=3.75)
    assert (quick.timeout, quick.settings.adaptive) == (5, False)


def test_a_skip_provider_is_another_interface(certificates: Certificates) -> None:
    assert isinstance(km_client("one", _kme(certificates, interface="skip")), SKIPClient)


def test_a_key_leaves_the_peer_a_fifth_of_its_lifetime(certificates: Certificates) -> None:
    assert prefetch_of(_kme(certificates, key_lifetime=600, cache_high=40)) == Prefetch(2, 40, 480)
    assert prefetch_of(_kme(certificates)) == Prefetch(8, 256, 240)
    assert not prefetch_of(_kme(certificates, prefetch=False)).high


def test_rotation_is_set_for_a_peer() -> None:
    peer = PeerSettings.model_validate(
        {"domains": ["b.example"], "sae_id": "b", "kme_groups": ["g", "h"], "key_max_bytes": "1 MiB", "key_max_age": 5}
    )
    assert peer_keys(peer) == PeerKeys("b", ("g", "h"), Rotation(1, 2**20, 5))


def test_reserve_and_alarm_go_to_the_ring(tmp_path: Path, certificates: Certificates) -> None:
    config = load_config(_write(tmp_path, certificates.directory, "reserve = 50\nalarm = 60"))
    assert key_ring(config)._limits == {"one": SupplyLimits(50, 60)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("breaker_delay = 1", r"kmes\.one\.breaker_delay: is no longer a setting: it is 5 times retry_delay"),
        ('name_from = "none"', "name_from"),
        ("verify = false", "unknown setting"),
        ('errors = [{ code = 200, means = "exhausted" }]', "errors.0.code"),
        ('errors = [{ code = 500, means = "fine" }]', "errors.0.means"),
    ],
)
def test_settings_that_cannot_be_are_told_with_their_line(
    tmp_path: Path, certificates: Certificates, settings: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        load_config(_write(tmp_path, certificates.directory, settings))
    assert str(error.value).startswith(f"{tmp_path}/relay.toml:")
