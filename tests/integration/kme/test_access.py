"""Who may ask the development KMEs: what certificates they want, and what others hear.
Standard: ETSI GS QKD 014 V1.1.1 (401 without a body), over TLS 1.2 and 1.3.
"""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from relay.kme import certificates
from tests.integration.kme.clients import ALICE, BOB, KM1, KM2, NOT_FOUND, Client, Site, client, ids, tls


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
