"""The development KMEs as a client sees them: over HTTPS with real certificates, free ports and a fake clock.
Standard: ETSI GS QKD 014 V1.1.1; the names of the tests say what it, or these servers, promise.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import socket
import ssl
import stat
import subprocess
import zlib
from base64 import b64decode
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog.testing
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.errors import ConfigError
from relay.keys.development import DEFAULT_PORTS, ENDPOINTS_FILE, default_state_dir, endpoints
from relay.kme import DevelopmentKMEs, LinkSettings, SimulatedLink, certificates, requests
from tests.testlib import relay_command

KM1, KM2 = 0, 1
ALICE, BOB = ("sae-2", KM1), ("sae-1", KM2)
NOT_FOUND = "one or more keys specified are not found on KME"
NOT_MULTIPLE = "size shall be a multiple of 8"
NOT_SUPPORTED = "not all extension_mandatory parameters are supported"
FILES = {f"{name}.{kind}" for name in ("ca", "km-1", "km-2", "sae-1", "sae-2") for kind in ("pem", "key")}


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass(frozen=True)
class Answer:
    status: int
    raw: bytes
    headers: dict[str, str]

    @property
    def body(self) -> Any:
        assert self.headers["Content-Type"].startswith("application/json")
        return json.loads(self.raw)

    @property
    def message(self) -> str:
        """The message of an error body, which has no other members than the standard's."""
        assert set(self.body) <= {"message", "details"}
        assert all(isinstance(detail, dict) for detail in self.body.get("details", [{}]))
        return str(self.body["message"])

    @property
    def keys(self) -> dict[str, bytes]:
        """key_ID and key bytes of a key container, in its order."""
        assert self.status == 200, self.raw
        assert set(self.body) == {"keys"}
        assert all(set(key) == {"key_ID", "key"} for key in self.body["keys"])
        return {key["key_ID"]: b64decode(key["key"], validate=True) for key in self.body["keys"]}


@dataclass(frozen=True)
class Client:
    """One SAE with its certificate at one KME."""

    session: aiohttp.ClientSession
    base: str

    async def get(self, call: str, **query: Any) -> Answer:
        return await self.request("GET", call, params=query)

    async def post(self, call: str, body: Any) -> Answer:
        return await self.request("POST", call, json=body)

    async def post_raw(self, call: str, body: bytes, content_type: str = "application/json") -> Answer:
        return await self.request("POST", call, data=BytesIO(body), headers={"Content-Type": content_type})

    async def request(self, method: str, call: str, **options: Any) -> Answer:
        async with self.session.request(method, f"{self.base}/api/v1/keys/{call}", **options) as response:
            return Answer(response.status, await response.read(), dict(response.headers))


def tls(state_dir: Path, identity: str | None, authority: Path | None = None) -> ssl.SSLContext:
    """What the strictest Python client does: RFC 5280 to the letter, host name checked."""
    context = ssl.create_default_context(cafile=authority or state_dir / "ca.pem")
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if identity:
        context.load_cert_chain(state_dir / f"{identity}.pem", state_dir / f"{identity}.key")
    return context


@asynccontextmanager
async def client(kmes: DevelopmentKMEs, who: tuple[str, int]) -> AsyncIterator[Client]:
    identity, kme = who
    connector = aiohttp.TCPConnector(ssl=tls(kmes.state_dir, identity))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield Client(session, kmes.urls[kme])


@dataclass(frozen=True)
class Site:
    """Running KMEs and both SAEs."""

    kmes: DevelopmentKMEs
    clock: Clock
    alice: Client
    bob: Client


@asynccontextmanager
async def running(tmp_path: Path, **settings: Any) -> AsyncIterator[Site]:
    clock = Clock()
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0), link=LinkSettings(**settings), clock=clock)
    async with kmes, client(kmes, ALICE) as alice, client(kmes, BOB) as bob:
        yield Site(kmes, clock, alice, bob)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with running(tmp_path) as site:
        yield site


def repr_start(value: bytes | str) -> str:
    """A short name for a long test parameter."""
    return repr(value[:20])


def ids(*key_ids: str) -> dict[str, Any]:
    return {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}


# Get status


async def test_status_has_every_field_of_the_standard_and_says_that_it_is_not_quantum(site: Site) -> None:
    status = (await site.alice.get("1/status")).body
    extension = status.pop("status_extension")
    assert status == {
        "source_KME_ID": "KM1",
        "target_KME_ID": "KM2",
        "master_SAE_ID": "2",
        "slave_SAE_ID": "1",
        "key_size": 256,
        "stored_key_count": 10_000,
        "max_key_count": 10_000,
        "max_key_per_request": 128,
        "max_key_size": 65_536,
        "min_key_size": 64,
        "max_SAE_ID_count": 2,
    }
    assert extension["quantum"] is False
    assert "operating system's random generator" in extension["note"]


async def test_status_at_the_other_end_is_the_mirror_image(site: Site) -> None:
    status = (await site.bob.get("2/status")).body
    assert (status["source_KME_ID"], status["target_KME_ID"]) == ("KM2", "KM1")
    assert (status["master_SAE_ID"], status["slave_SAE_ID"]) == ("1", "2")


async def test_status_tells_the_settings(tmp_path: Path) -> None:
    settings = {
        "key_size": 512,
        "stored_key_limit": 50,
        "starting_fill": 0.5,
        "max_key_per_request": 3,
        "max_key_size": 1024,
        "min_key_size": 128,
        "max_sae_id_count": 0,
    }
    async with running(tmp_path, **settings) as site:
        status = (await site.alice.get("1/status")).body
    assert (status["key_size"], status["min_key_size"], status["max_key_size"]) == (512, 128, 1024)
    assert (status["stored_key_count"], status["max_key_count"]) == (25, 50)
    assert (status["max_key_per_request"], status["max_SAE_ID_count"]) == (3, 0)


# Get key


async def test_get_without_parameters_gives_one_key_of_the_default_size(site: Site) -> None:
    (key,) = (await site.alice.get("1/enc_keys")).keys.values()
    assert len(key) == 32


async def test_post_of_an_empty_object_gives_one_key_of_the_default_size(site: Site) -> None:
    (key,) = (await site.alice.post("1/enc_keys", {})).keys.values()
    assert len(key) == 32


@pytest.mark.parametrize(("number", "size"), [(1, 64), (3, 256), (128, 8192), (2, 65_536)])
async def test_number_and_size_in_bits_mean_the_same_by_get_and_by_post(tmp_path: Path, number: int, size: int) -> None:
    async with running(tmp_path) as site:
        got = (await site.alice.get("1/enc_keys", number=number, size=size)).keys
        posted = (await site.alice.post("1/enc_keys", {"number": number, "size": size})).keys
    for keys in (got, posted):
        assert [len(key) * 8 for key in keys.values()] == [size] * number
    assert not set(got) & set(posted)
    assert len({*got.values(), *posted.values()}) == 2 * number


async def test_key_answers_are_not_to_be_cached(site: Site) -> None:
    assert (await site.alice.get("1/enc_keys")).headers["Cache-Control"] == "no-store"


async def test_optional_extensions_and_empty_lists_change_nothing(site: Site) -> None:
    answer = await site.alice.post(
        "1/enc_keys",
        {
            "number": 2,
            "size": 128,
            "additional_slave_SAE_IDs": [],
            "extension_mandatory": [],
            "extension_optional": [{"vendor_route": "north"}],
        },
    )
    assert [len(key) for key in answer.keys.values()] == [16, 16]


async def test_a_mandatory_extension_is_refused_by_name(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys", {"extension_mandatory": [{"vendor_route": "north"}]})
    assert (answer.status, answer.message) == (400, NOT_SUPPORTED)
    assert answer.body["details"] == [{"extension_mandatory_unsupported": "vendor_route is not supported"}]


async def test_even_an_empty_mandatory_extension_is_refused(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys", {"extension_mandatory": [{}]})
    assert (answer.status, answer.message) == (400, NOT_SUPPORTED)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"number": 0}, "number shall be from 1 to 128 (max_key_per_request)"),
        ({"number": -1}, "number shall be from 1 to 128 (max_key_per_request)"),
        ({"number": 129}, "number shall be from 1 to 128 (max_key_per_request)"),
        ({"number": "3"}, "number shall be an integer"),
        ({"number": 1.0}, "number shall be an integer"),
        ({"number": True}, "number shall be an integer"),
        ({"number": None}, "number shall be an integer"),
        ({"size": 257}, NOT_MULTIPLE),
        ({"size": 4}, NOT_MULTIPLE),
        ({"size": 0}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": -8}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": 56}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": 65_544}, "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ({"size": "256"}, "size shall be an integer"),
        ({"size": [256]}, "size shall be an integer"),
        ({"additional_slave_SAE_IDs": "1"}, "additional_slave_SAE_IDs shall be an array of strings"),
        ({"additional_slave_SAE_IDs": [1]}, "additional_slave_SAE_IDs shall be an array of strings"),
        (
            {"additional_slave_SAE_IDs": ["1", "2", "2"]},
            "number of additional_slave_SAE_IDs shall be from 0 to 2 (max_SAE_ID_count)",
        ),
        ({"additional_slave_SAE_IDs": ["9"]}, "one or more additional_slave_SAE_IDs are not known"),
        ({"extension_mandatory": {}}, "extension_mandatory shall be an array of objects"),
        ({"extension_mandatory": ["x"]}, "extension_mandatory shall be an array of objects"),
        ({"extension_optional": "x"}, "extension_optional shall be an array of objects"),
        (
            {"Number": 1},
            (
                "unknown parameters; known here: number, size, additional_slave_SAE_IDs, "
                "extension_mandatory, extension_optional"
            ),
        ),
    ],
)
async def test_a_faulty_key_request_is_refused_with_its_reason_and_takes_no_key(
    site: Site, body: dict[str, Any], message: str
) -> None:
    answer = await site.alice.post("1/enc_keys", body)
    assert (answer.status, answer.message) == (400, message)
    assert site.kmes.link.stored_key_count == 10_000


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("size=257", NOT_MULTIPLE),
        ("size=32", "size shall be from 64 to 65536 (min_key_size and max_key_size)"),
        ("number=0", "number shall be from 1 to 128 (max_key_per_request)"),
        ("number=129", "number shall be from 1 to 128 (max_key_per_request)"),
        ("number=", "number shall be an integer"),
        ("number=-1", "number shall be an integer"),
        ("number=1.0", "number shall be an integer"),
        ("number=%D9%A3", "number shall be an integer"),
        ("number=99999999999999999999", "number shall be an integer"),
        ("number=1&number=2", "a parameter is given more than once"),
        ("key_ID=1", "unknown parameters; known here: number, size"),
        ("additional_slave_SAE_IDs=1", "unknown parameters; known here: number, size"),
    ],
)
async def test_a_faulty_query_is_refused_with_its_reason(site: Site, query: str, message: str) -> None:
    answer = await site.alice.get(f"1/enc_keys?{query}")
    assert (answer.status, answer.message) == (400, message)


@pytest.mark.parametrize("call", ["1/status?number=1", "1/dec_keys?number=1"])
async def test_calls_refuse_parameters_that_are_not_theirs(site: Site, call: str) -> None:
    answer = await site.alice.get(call)
    assert answer.status == 400
    assert answer.message.startswith("unknown parameters")


async def test_a_post_has_its_parameters_in_its_body_only(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys?number=2", {})
    assert (answer.status, answer.message) == (400, "unknown parameters; known here: none")


# Get key with key IDs


async def test_the_slave_gets_the_masters_keys_in_the_order_that_it_asks_for(site: Site) -> None:
    issued = (await site.alice.post("1/enc_keys", {"number": 5, "size": 512})).keys
    wanted = list(reversed(issued))
    delivered = (await site.bob.post("2/dec_keys", ids(*wanted))).keys
    assert list(delivered) == wanted
    assert delivered == issued


async def test_the_other_direction_works_too(site: Site) -> None:
    issued = (await site.bob.post("2/enc_keys", {"number": 2})).keys
    assert (await site.alice.post("1/dec_keys", ids(*issued))).keys == issued


async def test_get_fetches_exactly_one_key(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys", number=2)).keys
    first, second = issued
    assert (await site.bob.get("2/dec_keys", key_ID=first)).keys == {first: issued[first]}
    both = await site.bob.get(f"2/dec_keys?key_ID={second}&key_ID={second}")
    assert (both.status, both.message) == (400, "a parameter is given more than once")
    none = await site.bob.get("2/dec_keys")
    assert (none.status, none.message) == (400, "key_ID shall be a string of at least one character")
    assert (await site.bob.get("2/dec_keys", key_ID=second)).keys == {second: issued[second]}


async def test_a_key_is_delivered_once(site: Site) -> None:
    (key_id,) = (await site.alice.get("1/enc_keys")).keys
    assert (await site.bob.post("2/dec_keys", ids(key_id))).status == 200
    again = await site.bob.post("2/dec_keys", ids(key_id))
    assert (again.status, again.message) == (400, NOT_FOUND)
    assert again.body["details"] == [{"key_ID": key_id}]


async def test_one_unknown_id_costs_none_of_the_other_keys(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys", number=2)).keys
    mixed = await site.bob.post("2/dec_keys", ids(*issued, "no-such-key"))
    assert (mixed.status, mixed.message) == (400, NOT_FOUND)
    assert mixed.body["details"] == [{"key_ID": "no-such-key"}]
    assert (await site.bob.post("2/dec_keys", ids(*issued))).keys == issued


async def test_simultaneous_requests_for_a_key_deliver_it_once(site: Site) -> None:
    (key_id,) = (await site.alice.get("1/enc_keys")).keys
    answers = await asyncio.gather(*(site.bob.post("2/dec_keys", ids(key_id)) for _ in range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


async def test_extensions_of_key_ids_are_accepted(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys")).keys
    entries = [{"key_ID": key_id, "key_ID_extension": {"future": 1}} for key_id in issued]
    answer = await site.bob.post("2/dec_keys", {"key_IDs": entries, "key_IDs_extension": {"future": 2}})
    assert answer.keys == issued


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "key_IDs shall be an array of objects"),
        ({"key_IDs": None}, "key_IDs shall be an array of objects"),
        ({"key_IDs": ["a"]}, "key_IDs shall be an array of objects"),
        ({"key_IDs": []}, "number of key_IDs shall be from 1 to 128 (max_key_per_request)"),
        (ids(*map(str, range(129))), "number of key_IDs shall be from 1 to 128 (max_key_per_request)"),
        (ids("a", "a"), "key_IDs shall not name a key twice"),
        ({"key_IDs": [{}]}, "key_ID shall be a string of at least one character"),
        ({"key_IDs": [{"key_ID": ""}]}, "key_ID shall be a string of at least one character"),
        ({"key_IDs": [{"key_ID": 7}]}, "key_ID shall be a string of at least one character"),
        ({"key_IDs": [{"key_id": "a"}]}, "unknown parameters; known here: key_ID, key_ID_extension"),
        ({"key_IDs": [{"key_ID": "a", "key_ID_extension": 1}]}, "key_ID_extension shall be an object"),
        ({**ids("a"), "key_IDs_extension": []}, "key_IDs_extension shall be an object"),
        ({**ids("a"), "number": 1}, "unknown parameters; known here: key_IDs, key_IDs_extension"),
        (ids("\ud800"), NOT_FOUND),
    ],
)
async def test_a_faulty_list_of_key_ids_is_refused_with_its_reason(
    site: Site, body: dict[str, Any], message: str
) -> None:
    answer = await site.bob.post("2/dec_keys", body)
    assert (answer.status, answer.message) == (400, message)


# Several slaves


async def test_each_named_slave_gets_the_key_once(site: Site) -> None:
    asked = {"additional_slave_SAE_IDs": ["2"]}
    issued = (await site.alice.post("1/enc_keys", asked)).keys
    for slave in (site.bob, site.alice):
        assert (await slave.post("2/dec_keys", ids(*issued))).keys == issued
    for slave in (site.bob, site.alice):
        again = await slave.post("2/dec_keys", ids(*issued))
        assert (again.status, again.message) == (400, NOT_FOUND)


async def test_a_slave_that_has_had_the_key_is_told_not_found_while_another_still_waits(site: Site) -> None:
    issued = (await site.alice.post("1/enc_keys", {"additional_slave_SAE_IDs": ["2"]})).keys
    await site.bob.post("2/dec_keys", ids(*issued))
    assert (await site.bob.post("2/dec_keys", ids(*issued))).message == NOT_FOUND
    assert (await site.alice.post("2/dec_keys", ids(*issued))).keys == issued


async def test_naming_the_slave_again_as_additional_gives_it_no_second_copy(site: Site) -> None:
    issued = (await site.alice.post("1/enc_keys", {"additional_slave_SAE_IDs": ["1"]})).keys
    assert (await site.bob.post("2/dec_keys", ids(*issued))).keys == issued
    assert (await site.bob.post("2/dec_keys", ids(*issued))).message == NOT_FOUND


async def test_unknown_additional_slaves_are_named_in_the_refusal(site: Site) -> None:
    answer = await site.alice.post("1/enc_keys", {"additional_slave_SAE_IDs": ["1", "9"]})
    assert answer.status == 400
    assert answer.body["details"] == [{"additional_slave_SAE_ID": "9"}]


# Who may ask


@pytest.mark.parametrize(
    ("who", "call"),
    [
        (("sae-1", KM1), "2/status"),
        (("sae-1", KM1), "2/enc_keys"),
        (("sae-1", KM1), "2/dec_keys?key_ID=a"),
        (("sae-2", KM2), "1/enc_keys"),
        (ALICE, "2/status"),
        (ALICE, "2/enc_keys"),
        (ALICE, "9/enc_keys"),
        (ALICE, "9/status"),
        (BOB, "9/dec_keys?key_ID=a"),
        (BOB, "%2e%2e%2f/dec_keys?key_ID=a"),
    ],
)
async def test_a_sae_at_the_wrong_kme_or_asking_for_an_unknown_one_gets_401_without_body(
    site: Site, who: tuple[str, int], call: str
) -> None:
    async with client(site.kmes, who) as sae:
        answer = await sae.get(call)
    assert (answer.status, answer.raw) == (401, b"")


async def test_a_certificate_of_the_authority_with_an_unknown_name_gets_401_without_body(site: Site) -> None:
    for name in ("sae-3", "1", "KM1", "SAE-2"):
        sign_client(site.kmes.state_dir, name)
        async with client(site.kmes, ("stranger", KM1)) as stranger:
            answer = await stranger.get("1/enc_keys")
        assert (answer.status, answer.raw) == (401, b"")


async def test_401_comes_before_the_request_is_judged(site: Site) -> None:
    answer = await site.alice.post_raw("9/enc_keys", b"{")
    assert (answer.status, answer.raw) == (401, b"")


async def test_a_sae_that_is_not_a_slave_of_the_key_gets_401_and_the_slave_still_gets_the_key(
    site: Site,
) -> None:
    issued = (await site.bob.get("2/enc_keys")).keys
    masters_own_attempt = await site.bob.post("2/dec_keys", ids(*issued))
    assert (masters_own_attempt.status, masters_own_attempt.raw) == (401, b"")
    assert (await site.alice.post("1/dec_keys", ids(*issued))).keys == issued


async def test_a_key_is_not_found_under_another_master(site: Site) -> None:
    issued = (await site.alice.get("1/enc_keys")).keys
    wrong = await site.bob.post("1/dec_keys", ids(*issued))
    assert (wrong.status, wrong.message) == (400, NOT_FOUND)
    assert (await site.bob.post("2/dec_keys", ids(*issued))).keys == issued


async def test_a_client_without_certificate_is_refused_by_tls(site: Site) -> None:
    await refused_by_tls(site, tls(site.kmes.state_dir, None))


async def test_a_client_certificate_of_another_authority_is_refused_by_tls(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    certificates.prepare(other, "localhost")
    await refused_by_tls(site, tls(other, "sae-2", authority=site.kmes.state_dir / "ca.pem"))


async def test_a_server_certificate_does_not_pass_for_a_client_certificate(site: Site) -> None:
    await refused_by_tls(site, tls(site.kmes.state_dir, "km-1"))


async def test_a_client_of_another_authority_refuses_the_server(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "other"
    certificates.prepare(other, "localhost")
    await refused_by_tls(site, tls(other, "sae-2"), aiohttp.ClientConnectorCertificateError)


async def test_tls_1_2_is_spoken_and_nothing_older(site: Site) -> None:
    context = tls(site.kmes.state_dir, "sae-2")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        assert (await Client(session, site.kmes.urls[KM1]).get("1/status")).status == 200
    served = certificates.server_context(site.kmes.state_dir, "KM1")
    assert served.minimum_version == ssl.TLSVersion.TLSv1_2
    assert served.verify_mode == ssl.CERT_REQUIRED


async def test_plain_http_is_not_spoken(site: Site) -> None:
    url = site.kmes.urls[KM1].replace("https", "http")
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await Client(session, url).get("1/status")


async def refused_by_tls(
    site: Site, context: ssl.SSLContext, error: type[aiohttp.ClientError] = aiohttp.ClientError
) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session:
        with pytest.raises(error):
            await Client(session, site.kmes.urls[KM1]).get("1/enc_keys")
    assert site.kmes.link.issued == {}


def sign_client(state_dir: Path, common_name: str) -> None:
    """A client certificate "stranger" that the servers' own authority signed."""
    authority = x509.load_pem_x509_certificate((state_dir / "ca.pem").read_bytes())
    signer = serialization.load_pem_private_key((state_dir / "ca.key").read_bytes(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=5))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .sign(signer, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (state_dir / "stranger.key").write_bytes(private)
    (state_dir / "stranger.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


# The link


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


# Nothing breaks out of the standard's form


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "request body shall be JSON"),
        (b"{", "request body shall be JSON"),
        (b"\xff\xfe{}", "request body shall be JSON"),
        ('{"number": 1}'.encode("utf-16"), "request body shall be JSON"),
        (b'{"number": 1, "number": 2}', "request body shall be JSON"),
        (b'{"number": NaN}', "request body shall be JSON"),
        (b'{"number": ' + b"9" * 5000 + b"}", "request body shall be JSON"),
        (b"[" * 60_000, "request body shall be JSON"),
        (b"[]", "request body shall be a JSON object"),
        (b"null", "request body shall be a JSON object"),
        (b'"number"', "request body shall be a JSON object"),
        (b"{" + b" " * (64 * 1024) + b"}", "request body shall be at most 65536 octets"),
        (b"\0" * 3_000_000, "request body shall be at most 65536 octets"),
    ],
    ids=repr_start,
)
@pytest.mark.parametrize("call", ["1/enc_keys", "1/dec_keys"])
async def test_a_garbage_body_is_answered_with_400_and_the_error_body(
    site: Site, call: str, body: bytes, message: str
) -> None:
    answer = await site.alice.post_raw(call, body)
    assert (answer.status, answer.message) == (400, message)


async def test_a_body_of_exactly_the_limit_is_read(site: Site) -> None:
    body = b'{"number": 2}'.ljust(64 * 1024)
    assert len((await site.alice.post_raw("1/enc_keys", body)).keys) == 2


async def test_a_bomb_of_compressed_spaces_is_not_unpacked(site: Site) -> None:
    bomb = zlib.compress(b" " * 50_000_000)
    assert len(bomb) < 64 * 1024
    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    answer = await site.alice.request("POST", "1/enc_keys", data=BytesIO(bomb), headers=headers)
    assert (answer.status, answer.message) == (400, "request body shall be at most 65536 octets")


async def test_a_body_with_broken_chunks_never_gets_a_page_or_a_traceback(site: Site) -> None:
    head = (
        "POST /api/v1/keys/1/enc_keys HTTP/1.1\r\nHost: localhost\r\n"
        "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    port = int(site.kmes.urls[KM1].rpartition(":")[2])
    context = tls(site.kmes.state_dir, "sae-2")
    reader, writer = await asyncio.open_connection("localhost", port, ssl=context)
    writer.write(head.encode() + b"2\r\n{}\r\nnot a length\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert answer[:13] in (b"HTTP/1.0 400 ", b"")  # said by aiohttp, below our reach, or just hung up
    assert b"<" not in answer
    assert b"Traceback" not in answer


async def test_a_body_that_does_not_come_is_not_waited_for_without_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "BODY_TIMEOUT", 0)

    async def never_ending() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    answer = await site.alice.request(
        "POST", "1/enc_keys", data=never_ending(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status, answer.message) == (400, "request body did not come as its header announced")


async def test_another_content_type_is_refused_by_name(site: Site) -> None:
    answer = await site.alice.post_raw("1/enc_keys", b"{}", "application/x-www-form-urlencoded")
    assert (answer.status, answer.message) == (400, "Content-Type shall be application/json")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "1/no_such_call", 404),
        ("GET", "1/status/", 404),
        ("POST", "1/status", 405),
        ("PUT", "1/enc_keys", 405),
        ("DELETE", "1/dec_keys", 405),
    ],
)
async def test_wrong_paths_and_methods_have_the_error_body_too(site: Site, method: str, path: str, status: int) -> None:
    answer = await site.alice.request(method, path)
    assert answer.status == status
    assert answer.message
    assert ("Allow" in answer.headers) == (status == 405)


async def test_head_uses_no_key_up(site: Site) -> None:
    assert (await site.alice.request("HEAD", "1/enc_keys")).status == 405
    assert site.kmes.link.issued == {}


async def test_our_own_fault_is_a_503_that_tells_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(site.kmes.link, "issue", broken)
    with structlog.testing.capture_logs() as logs:
        answer = await site.alice.get("1/enc_keys")
    assert (answer.status, answer.message) == (503, "error on the server side")
    assert b"secret" not in answer.raw
    assert [entry["event"] for entry in logs] == ["kme_fault"]
    assert "RuntimeError" in logs[0]["trace"]
    assert not any("exc_info" in entry for entry in logs)  # a log with frames would show their keys


async def test_the_log_says_not_quantum_at_the_start_and_never_has_a_key(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with running(tmp_path) as site:
            issued = await site.alice.get("1/enc_keys", number=3)
            await site.bob.post("2/dec_keys", ids(*issued.keys))
            await site.bob.post("9/dec_keys", ids(*issued.keys))
    started = [entry for entry in logs if entry["event"] == "kme_started"]
    assert [(entry["kme"], entry["quantum"]) for entry in started] == [("KM1", False), ("KM2", False)]
    assert [entry["kme"] for entry in logs if entry["event"] == "kme_unauthorized"] == ["KM2"]
    assert not [key["key"] for key in issued.body["keys"] if key["key"] in repr(logs)]


# Certificates


async def test_the_first_start_makes_every_file_for_its_owner_only(site: Site) -> None:
    state_dir = site.kmes.state_dir
    assert {path.name for path in state_dir.iterdir()} == FILES | {ENDPOINTS_FILE}
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in state_dir.iterdir()} == {0o600}


async def test_keys_are_pkcs8_and_names_are_as_promised(site: Site) -> None:
    names = {"km-1": "KM1", "km-2": "KM2", "sae-1": "sae-1", "sae-2": "sae-2"}
    for file, name in names.items():
        certificate = x509.load_pem_x509_certificate((site.kmes.state_dir / f"{file}.pem").read_bytes())
        assert certificate.subject.rfc4514_string() == f"CN={name}"
        assert (site.kmes.state_dir / f"{file}.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    authority = x509.load_pem_x509_certificate((site.kmes.state_dir / "ca.pem").read_bytes())
    assert authority.not_valid_after_utc - datetime.now(UTC) > timedelta(days=3650)


async def test_a_restart_keeps_the_certificates(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    assert await files_after_a_run(tmp_path) == before


@pytest.mark.parametrize("missing", sorted(FILES))
async def test_an_incomplete_set_is_made_anew_as_a_whole(tmp_path: Path, missing: str) -> None:
    before = await files_after_a_run(tmp_path)
    (tmp_path / "kme" / missing).unlink()
    await all_made_anew(tmp_path, before)


@pytest.mark.parametrize("damage", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n"])
@pytest.mark.parametrize("file", ["ca.pem", "km-2.key", "sae-1.pem"])
async def test_a_damaged_set_is_made_anew(tmp_path: Path, file: str, damage: bytes) -> None:
    before = await files_after_a_run(tmp_path)
    (tmp_path / "kme" / file).write_bytes(damage)
    await all_made_anew(tmp_path, before)


@pytest.mark.parametrize("name", ["sae-2", "km-1", "ca"])
async def test_a_set_that_does_not_belong_together_is_made_anew(tmp_path: Path, name: str) -> None:
    before = await files_after_a_run(tmp_path)
    certificates.prepare(tmp_path / "other", "localhost")
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / "other" / f"{name}.{kind}", tmp_path / "kme")
    await all_made_anew(tmp_path, before)


async def test_a_key_of_another_certificate_is_made_anew(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    shutil.copy(tmp_path / "kme" / "sae-1.key", tmp_path / "kme" / "sae-2.key")
    await all_made_anew(tmp_path, before)


async def test_swapped_identities_are_made_anew(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    for kind in ("pem", "key"):
        shutil.copy(tmp_path / "kme" / f"sae-1.{kind}", tmp_path / "kme" / f"sae-2.{kind}")
    await all_made_anew(tmp_path, before)


async def test_a_key_that_others_could_read_is_made_anew(tmp_path: Path) -> None:
    before = await files_after_a_run(tmp_path)
    (tmp_path / "kme" / "sae-2.key").chmod(0o644)
    await all_made_anew(tmp_path, before)


@pytest.mark.parametrize("days", [368, 400, 4000])
async def test_certificates_that_have_expired_or_soon_will_are_made_anew(tmp_path: Path, days: int) -> None:
    certificates.prepare(tmp_path / "kme", "localhost", now=datetime.now(UTC) - timedelta(days=days))
    await all_made_anew(tmp_path, certificate_files(tmp_path))


def test_processes_that_start_together_end_with_one_set(tmp_path: Path) -> None:
    def prepare(_: int) -> dict[str, bytes]:
        certificates.prepare(tmp_path / "kme", "localhost")
        return certificate_files(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(prepare, range(8))
    assert all(other == first for other in others)


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.prepare(tmp_path / "kme", "localhost")
    before = certificate_files(tmp_path)
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ConfigError, match="No space left"):
        certificates.prepare(tmp_path / "kme", "localhost", now=datetime.now(UTC) + timedelta(days=800))
    assert certificate_files(tmp_path) == before
    assert set(before) == FILES


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
async def test_a_directory_that_others_may_enter_is_refused_and_left_as_it_is(tmp_path: Path, mode: int) -> None:
    state_dir = tmp_path / "shared"
    state_dir.mkdir()
    state_dir.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 700"):
        await DevelopmentKMEs(state_dir=state_dir, ports=(0, 0)).start()
    assert stat.S_IMODE(state_dir.stat().st_mode) == mode
    assert list(state_dir.iterdir()) == []


async def test_a_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kme").write_bytes(b"")
    with pytest.raises(ConfigError, match="cannot be made into a directory"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)).start()


async def files_after_a_run(tmp_path: Path) -> dict[str, bytes]:
    async with running(tmp_path) as site:
        assert (await site.alice.get("1/status")).status == 200
        assert (await site.bob.get("2/status")).status == 200
    return certificate_files(tmp_path)


def certificate_files(tmp_path: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (tmp_path / "kme").iterdir()}


async def all_made_anew(tmp_path: Path, before: dict[str, bytes]) -> None:
    after = await files_after_a_run(tmp_path)
    assert set(after) == FILES
    assert not [name for name in FILES if after[name] == before.get(name)]


# Where they listen


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "", "bücher.example"])
async def test_a_host_that_is_not_loopback_is_refused_with_the_remedy(tmp_path: Path, host: str) -> None:
    with pytest.raises(ConfigError, match=r"use localhost, 127\.0\.0\.1 or ::1"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host=host, ports=(0, 0)).start()
    assert not (tmp_path / "kme").exists()


async def test_a_name_that_resolves_to_loopback_and_elsewhere_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "192.0.2.1")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 can be reached by others"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host="kme.test", ports=(0, 0)).start()


async def test_a_name_that_cannot_be_resolved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(ConfigError, match="cannot be resolved"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host="kme.test", ports=(0, 0)).start()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("localhost", "https://localhost:"),
        ("127.0.0.1", "https://127.0.0.1:"),
        ("127.0.0.2", "https://127.0.0.2:"),
        ("::1", "https://[::1]:"),
    ],
)
async def test_each_loopback_host_is_served_under_its_own_name(tmp_path: Path, host: str, url: str) -> None:
    if host not in ("localhost", "127.0.0.1") and not can_listen(host):
        pytest.skip(f"this machine has no {host}")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", host=host, ports=(0, 0)) as kmes:
        assert all(served.startswith(url) for served in kmes.urls)
        async with client(kmes, ALICE) as alice:
            assert (await alice.get("1/status")).status == 200


async def test_every_address_of_the_name_that_this_machine_has_is_served_at_one_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [address for address in ("127.0.0.1", "::1") if can_listen(address)]
    resolve_to(monkeypatch, "127.0.0.1", "::1")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as kmes:
        monkeypatch.undo()
        port = int(kmes.urls[KM1].rpartition(":")[2])
        for address in addresses:
            with socket.create_connection((address, port)):
                pass


async def test_an_address_that_this_machine_lacks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_server_fails(monkeypatch, "::1", errno.EADDRNOTAVAIL)
    resolve_to(monkeypatch, "::1", "127.0.0.1")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as kmes:
        monkeypatch.undo()
        with socket.create_connection(("127.0.0.1", int(kmes.urls[KM1].rpartition(":")[2]))):
            pass


async def test_a_name_none_of_whose_addresses_this_machine_has_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_server_fails(monkeypatch, "::1", errno.EAFNOSUPPORT)
    resolve_to(monkeypatch, "::1")
    with pytest.raises(ConfigError, match="this machine has none of ::1"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)).start()


async def test_a_free_port_that_is_taken_at_the_second_address_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_server_fails(monkeypatch, "127.0.0.2", errno.EADDRINUSE, times=2)
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as kmes:
        monkeypatch.undo()
        async with client(kmes, ALICE) as alice:
            assert (await alice.get("1/status")).status == 200


async def test_a_port_that_this_user_may_not_have_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_server_fails(monkeypatch, "127.0.0.1", errno.EACCES)
    with pytest.raises(ConfigError, match=r"KM1: cannot listen on 127\.0\.0\.1 port 443: Permission denied"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=(443, 444)).start()


async def test_an_addresses_file_that_cannot_be_written_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates.prepare(tmp_path / "kme", "localhost")
    monkeypatch.setattr(Path, "replace", no_space)
    with pytest.raises(ConfigError, match="cannot be written: No space left"):
        await DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)).start()
    assert {path.name for path in (tmp_path / "kme").iterdir()} == FILES


async def test_a_port_in_use_is_reported_and_nothing_is_left_behind(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
        other.close()
        ports = (free, taken.getsockname()[1])
        kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", host="127.0.0.1", ports=ports)
        with pytest.raises(ConfigError, match=rf"KM2: port {ports[1]} on 127\.0\.0\.1 is in use"):
            await kmes.start()
    with pytest.raises(RuntimeError):
        _ = kmes.urls
    socket.create_server(("127.0.0.1", free)).close()
    assert not (tmp_path / "kme" / ENDPOINTS_FILE).exists()


async def test_stopped_servers_can_be_started_again_and_stopping_twice_does_no_harm(tmp_path: Path) -> None:
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await kmes.stop()
    for _ in range(2):
        await kmes.start()
        with pytest.raises(RuntimeError):
            await kmes.start()
        async with client(kmes, ALICE) as alice:
            assert (await alice.get("1/status")).status == 200
        await kmes.stop()
        await kmes.stop()


async def test_the_servers_stop_although_a_client_keeps_its_connection(tmp_path: Path) -> None:
    kmes = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await kmes.start()
    async with client(kmes, ALICE) as alice:
        assert (await alice.get("1/status")).status == 200
        await asyncio.wait_for(kmes.stop(), 5)
        with pytest.raises(aiohttp.ClientError):
            await alice.get("1/status")


def create_server_fails(monkeypatch: pytest.MonkeyPatch, address: str, number: int, times: int = 1000) -> None:
    """Listening on `address` fails with errno `number`, that many times."""
    real = socket.create_server
    left = iter(range(times))

    def create_server(where: tuple[str, int], **options: Any) -> socket.socket:
        if where[0] == address and next(left, None) is not None:
            raise OSError(number, os.strerror(number))
        return real(where, **options)

    monkeypatch.setattr(socket, "create_server", create_server)


def no_space(*_: object) -> None:
    """What a rename does on a full disk."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def resolved(*_: object, **__: object) -> list[Any]:
        families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, 0))
            for family, address in zip(families, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)


def can_listen(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.create_server((address, 0), family=family).close()
    except OSError:
        return False
    return True


# How they are found


async def test_running_servers_say_where_they_are_and_stopped_ones_no_longer_do(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        state_dir = site.kmes.state_dir
        assert endpoints(state_dir) == site.kmes.urls
        written = json.loads((state_dir / ENDPOINTS_FILE).read_bytes())
        assert (written["KM1"], written["KM2"]) == site.kmes.urls
    assert not (state_dir / ENDPOINTS_FILE).exists()


async def test_servers_do_not_remove_the_addresses_of_others(tmp_path: Path) -> None:
    first = DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0))
    await first.start()
    async with DevelopmentKMEs(state_dir=tmp_path / "kme", ports=(0, 0)) as second:
        await first.stop()
        assert endpoints(tmp_path / "kme") == second.urls


async def test_a_missing_addresses_file_does_not_keep_the_servers_from_stopping(tmp_path: Path) -> None:
    async with running(tmp_path) as site:
        (site.kmes.state_dir / ENDPOINTS_FILE).unlink()


def test_without_running_servers_the_addresses_are_the_usual_ones(tmp_path: Path) -> None:
    assert endpoints(tmp_path) == ("https://localhost:13000", "https://localhost:14000")
    assert DEFAULT_PORTS == (13000, 14000)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '{"KM1": "https://localhost:1"}',
        '{"KM1": 1, "KM2": 2}',
        '{"KM1": "http://localhost:1", "KM2": "https://localhost:2"}',
        '{"KM1": "https://", "KM2": "https://localhost:2"}',
    ],
    ids=repr_start,
)
def test_an_addresses_file_that_cannot_be_used_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / ENDPOINTS_FILE).write_text(content)
    with pytest.raises(ConfigError, match="remove it"):
        endpoints(tmp_path)


def test_the_state_directory_follows_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    usual = Path("/home/alice/.local/state/qumail-relay/kme")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_state_dir() == usual
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_state_dir() == usual
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/state")
    assert default_state_dir() == Path("/var/lib/state/qumail-relay/kme")
    assert DevelopmentKMEs().state_dir == default_state_dir()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
async def test_curl_gets_a_key_from_km1_and_fetches_it_from_km2(site: Site) -> None:
    async def curl(identity: str, *arguments: str) -> Any:
        command = ["curl", "-sS", "--fail", "--noproxy", "*", "--cacert", "ca.pem"]
        command += ["--cert", f"{identity}.pem", "--key", f"{identity}.key", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=site.kmes.state_dir, capture_output=True, timeout=30, check=False
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first, second = site.kmes.urls
    issued = await curl("sae-2", f"{first}/api/v1/keys/1/enc_keys?number=2")
    wanted = json.dumps({"key_IDs": [{"key_ID": key["key_ID"]} for key in issued["keys"]]})
    header = ("-H", "Content-Type: application/json")
    assert await curl("sae-1", *header, "-d", wanted, f"{second}/api/v1/keys/2/dec_keys") == issued
