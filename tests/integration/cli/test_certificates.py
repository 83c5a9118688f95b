"""`qumail-relay certificates`: other people's and gateways' certificates in, listed, and out again.
Standard: PEM, DER and PKCS#7 as openssl writes them; nothing is taken in that its owner's name is not in.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from relay.config import TCPAddress
from relay.smime import CertificateDirectory, OwnKey
from relay.smime.directory import fingerprint
from tests.testlib.relay_command import run, start
from tests.testlib.sites import Site, make_site
from tests.testlib.smime import ca, certified, pem

BEN = certified("ben@bob.example")
GATEWAY = certified("securemail@bob.example", number=1)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return make_site(
        tmp_path / "alice", "alice", state=tmp_path, kme_url="https://127.0.0.1:1", outgoing=TCPAddress("127.0.0.1", 1)
    )


async def certificates(site: Site, word: str, *words: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
    status, err, out = await run("certificates", word, "--config", site.config_file, *words, stdin=stdin)
    return status, err, out.decode()


async def listed(site: Site, *names: str) -> list[tuple[str, str]]:
    status, _, out = await certificates(site, "list", "--json", *names)
    assert status == 0
    return [(row["for"], row["fingerprint"]) for row in json.loads(out)]


def pem7(own: OwnKey) -> bytes:
    return pkcs7.serialize_certificates([own.certificate, *own.chain], Encoding.PEM)


def as_openssl_writes(form: str, *certificates: x509.Certificate) -> bytes:
    """PKCS#7 with the certificates in this order: no DER, unless it happens to be that of a SET."""
    words = ["openssl", "crl2pkcs7", "-nocrl", "-certfile", "/dev/stdin", "-outform", form]
    return subprocess.run(words, input=pem(*certificates), capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    "content",
    [
        pem(BEN.certificate, *BEN.chain),
        BEN.certificate.public_bytes(Encoding.DER),
        pem7(BEN),
        as_openssl_writes("DER", BEN.certificate, *BEN.chain),
        as_openssl_writes("DER", *BEN.chain, BEN.certificate),
        as_openssl_writes("PEM", BEN.certificate, *BEN.chain),
    ],
    ids=["PEM", "DER", "PKCS7 in PEM", "theirs first", "the CA's first", "PKCS7 of openssl in PEM"],
)
async def test_it_shows_whose_a_certificate_is_and_asks(site: Site, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ben").write_bytes(content)
    status, err, out = await certificates(site, "import", tmp_path / "ben", stdin=b"n\n")
    assert err == ""
    for shown in ("ben@bob.example", "CN=Example Mail CA", fingerprint(BEN.certificate), "sealing and signatures"):
        assert shown in out.replace("\n" + 13 * " ", "")
    assert status == 0
    assert await listed(site) == []
    status, _, out = await certificates(site, "import", tmp_path / "ben", stdin=b"y\n")
    assert (status, out.rpartition(": ")[2].strip()) == (0, "Imported for ben@bob.example.")
    assert (
        await listed(site)
        == await listed(site, "Ben@BOB.example")
        == [("ben@bob.example", fingerprint(BEN.certificate))]
    )


async def test_that_of_a_gateway_counts_for_the_domains_that_are_named(site: Site, tmp_path: Path) -> None:
    (tmp_path / "gateway").write_bytes(pem(GATEWAY.certificate))
    wrong = await certificates(site, "import", "--yes", "--domain", "carol.example", tmp_path / "gateway")
    assert wrong[0] == 1
    assert "names no address at carol.example" in wrong[1]
    status, _, _ = await certificates(site, "import", "--yes", "--domain", "Bob.Example", tmp_path / "gateway")
    assert status == 0
    assert await listed(site) == [("bob.example", fingerprint(GATEWAY.certificate))]


async def test_a_fingerprint_chooses_one_and_removes_one(site: Site, tmp_path: Path) -> None:
    renewed = certified("ben@bob.example", number=2)
    (tmp_path / "both").write_bytes(pem(BEN.certificate, renewed.certificate))
    ours = fingerprint(renewed.certificate)
    spelt = ":".join(ours[place : place + 2].upper() for place in range(0, 64, 2))
    assert (await certificates(site, "import", "--fingerprint", spelt, tmp_path / "both"))[0] == 0
    assert await listed(site) == [("ben@bob.example", ours)]
    assert (await certificates(site, "import", "--fingerprint", "00", tmp_path / "both"))[0] == 1
    assert (await certificates(site, "import", "--yes", tmp_path / "both"))[0] == 0
    assert len(await listed(site)) == 2
    assert (await certificates(site, "remove", "--fingerprint", ours[:8], "ben@bob.example"))[0] == 0
    assert await listed(site) == [("ben@bob.example", fingerprint(BEN.certificate))]
    assert (await certificates(site, "remove", "ben@bob.example"))[0] == 0
    assert await listed(site) == []
    assert (await certificates(site, "remove", "ben@bob.example"))[0] == 1


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"nonsense", "neither in PEM, DER nor PKCS#7"),
        (pem(ca().certificate), "of CAs alone"),
        (pem(certified().certificate), "names no mail address"),
        (pem(certified("ben@bob.example", days=(-9, -1)).certificate), "it ended on"),
        (pem(certified("ben@bob.example", kind="rsa-1024").certificate), "1024 bits"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_could_never_be_used_is_not_taken(site: Site, tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "file").write_bytes(content)
    status, err, _ = await certificates(site, "import", "--yes", tmp_path / "file")
    assert status == 1
    assert cause in err
    assert await listed(site) == []


async def test_what_was_shown_is_what_counts_and_what_has_ended_is_in_nobodys_way(site: Site, tmp_path: Path) -> None:
    offers = CertificateDirectory(site.config.offered_certificates_directory)
    forged, ended = certified("ben@bob.example", number=3), certified("ben@bob.example", days=(-9, -1))
    offers.put("ben@bob.example", [ended.certificate, BEN.certificate])
    read, write = os.pipe()
    with (
        os.fdopen(read, "rb") as stdin,
        os.fdopen(write, "wb", buffering=0) as answers,
        (tmp_path / "out").open("wb") as out,
    ):
        process = await start(
            "certificates", "accept", "--config", site.config_file, "ben@bob.example", stdin=stdin, stdout=out
        )
        while b"Use it for" not in (tmp_path / "out").read_bytes():
            assert process.returncode is None
            await asyncio.sleep(0.02)
        offers.put("ben@bob.example", [forged.certificate])
        answers.write(b"y\n")
        assert await process.wait() == 0
    assert await listed(site) == [("ben@bob.example", fingerprint(BEN.certificate))]
    assert offers.named("ben@bob.example").certificates == (forged.certificate,)
