"""Mail in at level smime, as Bouncy Castle, NSS and gpgsm write it: opened, with a good signature.
Standard: RFC 8551; Bouncy Castle is what most gateways in Java use, NSS is Thunderbird's, gpgsm is KMail's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pybase64
import pytest

from relay.smime import OwnKey
from tests.testlib import bouncycastle
from tests.testlib.bouncycastle import requires_bouncycastle
from tests.testlib.gpgsm import gpgsm_of, requires_gpgsm
from tests.testlib.nss import NSS, requires_nss
from tests.testlib.openssl_cms import ENTITY, mail
from tests.testlib.sink import Sink
from tests.testlib.sites import relay_process
from tests.testlib.smime import ca, certified, key_pem, make_smime_site, pem, write_secret
from tests.testlib.submit import submit

OFFICE = certified("securemail@alice.example", number=100)
OFFICE_EC = certified("securemail@alice.example", kind="p384", number=101)
BEN = "ben@bob.example"
BENS = [certified(BEN, kind=kind, number=103) for kind in ("rsa", "p256")]


def entity(cms: bytes, kind: str) -> bytes:
    """The MIME entity around CMS."""
    lines = pybase64.b64encode_as_string(cms)
    body = "\r\n".join(lines[start : start + 64] for start in range(0, len(lines), 64))
    header = f"Content-Type: application/pkcs7-mime; smime-type={kind}; name=smime.p7m\r\n"
    return f"{header}Content-Transfer-Encoding: base64\r\n\r\n{body}\r\n".encode()


def by_bouncy_castle(_: Path, by: OwnKey, to: OwnKey) -> Iterator[bytes]:
    for ber in (True, False):
        signed = entity(bouncycastle.sign(ENTITY, by.key, by.certificate, ber=ber), "signed-data")
        yield bouncycastle.envelop(signed, to.certificate, ber=ber)
        if to is OFFICE:
            yield bouncycastle.seal_rsa(signed, to.certificate, ber=ber)


def by_nss(directory: Path, by: OwnKey, to: OwnKey) -> Iterator[bytes]:
    nss = NSS.of(directory / "nss", by)
    nss.add("office", to.certificate)
    signed = nss.run("cmsutil", "-S", "-N", "own", "-G", "-P", data=ENTITY)
    yield nss.run("cmsutil", "-E", "-r", "office", data=entity(signed, "signed-data"))


def by_gpgsm(_: Path, by: OwnKey, to: OwnKey) -> Iterator[bytes]:
    with gpgsm_of(by) as gpgsm:
        gpgsm.add(to.certificate)
        signed = gpgsm.run("--output", "-", "--sign", data=ENTITY)
        yield gpgsm.run(
            "--output", "-", "--recipient", "securemail@alice.example", "--encrypt", data=entity(signed, "signed-data")
        )


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(by_bouncy_castle, marks=requires_bouncycastle, id="Bouncy Castle"),
        pytest.param(by_nss, marks=requires_nss, id="NSS"),
        pytest.param(by_gpgsm, marks=requires_gpgsm, id="gpgsm"),
    ],
)
async def test_what_others_write_arrives_opened_and_verified(
    tmp_path: Path, sink: Sink, written: Callable[[Path, OwnKey, OwnKey], Iterator[bytes]]
) -> None:
    site = make_smime_site(
        tmp_path / "alice", incoming=sink.address, certificates={}, own=OFFICE,
        policies={"default.toml": 'levels = ["smime"]\n'},
        settings='anchors = ["anchors.pem"]\n[[smime.keys]]\ncertificate = "ec.pem"\nkey = "ec.key"\n',
    )  # fmt: skip
    (site.directory / "anchors.pem").write_bytes(pem(ca().certificate))
    (site.directory / "ec.pem").write_bytes(pem(OFFICE_EC.certificate))
    write_secret(site.directory / "ec.key", key_pem(OFFICE_EC))
    async with relay_process(site) as relay:
        for number, (by, to) in enumerate(product(BENS, (OFFICE, OFFICE_EC))):
            (tmp_path / str(number)).mkdir()
            for sealed in written(tmp_path / str(number), by, to):
                message = mail(entity(sealed, "enveloped-data"))
                reply = await submit(relay.addresses["incoming"], message, sender=BEN, recipients=["ann@alice.example"])
                assert reply.code == 250, reply
                got = sink.got[-1].message
                assert f"\r\nX-QuMail-Protection: smime; signed=good; signer={BEN}; site=".encode() in got
                assert got.endswith(b"\r\nThe budget of the merger.\r\n")
