"""Fuzz target for S/MIME of other programs: whole messages, and the CMS inside of them, with all keys at hand.
Standard: RFC 8551, RFC 5652; what has a good signature is what Ben has signed.
"""

from __future__ import annotations

import base64
import functools
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from relay.errors import BadStructure, CannotOpen, MalformedMessage
from relay.formats import mime
from relay.formats.cms.smime_enveloped import decode_others_enveloped
from relay.formats.cms.smime_signed import decode_others_signed
from relay.smime import OwnKey
from relay.smime.reading import read
from relay.smime.trust import Trust
from tests.system.fuzz import structures
from tests.system.fuzz.target import Target, check
from tests.testlib import hostile

DATA = Path(__file__).parents[2] / "data" / "smime"
NOW = datetime(2026, 12, 3, tzinfo=UTC)
SIGNED = b"The budget of the merger."
HEADER = b"From: Ben <ben@bob.example>\r\nContent-Type: application/pkcs7-mime; smime-type=%s\r\n"
WORDS = (
    *structures.WORDS, b"\r\n", b"\r\n\r\n", b"--", b"From: ", b"Content-Type: multipart/signed; boundary=x", b"\r\n--x\r\n",
    b'hp="cipher"', b"; smime-type=", b"signed-data", b"Content-Transfer-Encoding: binary\r\n", b"\xa0\x80", b"\xa1\x00",
    bytes.fromhex("06092a864886f70d010703"), bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06062b8104010b01"),
)  # fmt: skip


def seeds() -> list[bytes]:
    """The messages, and the CMS in those that are one structure."""
    messages = [each.read_bytes() for each in sorted(DATA.glob("*.eml"))]
    structure = [each for each in messages if b"multipart/signed" not in mime.header_of(each)]
    return [*messages, *map(mime.sealed_content, structure)]


@functools.cache
def _keys() -> tuple[OwnKey, ...]:
    pem = (DATA / "keys.pem").read_bytes()
    certificates = x509.load_pem_x509_certificates(pem)
    end = b"-----END PRIVATE KEY-----\n"
    keys = [load_pem_private_key(part[part.index(b"-----BEGIN PRIVATE") :] + end, None) for part in pem.split(end)[:-1]]
    return tuple(
        OwnKey(certificate, key)
        for certificate, key in zip(certificates, keys, strict=True)
        if isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey)
    )


@functools.cache
def _trust() -> Trust:
    return Trust(lambda _: (), (x509.load_pem_x509_certificate((DATA / "ca.pem").read_bytes()),))


def smime(data: bytes) -> None:
    """CannotOpen, nothing, or a message; a good signature only where the words stand that were signed."""
    for decode in (decode_others_enveloped, decode_others_signed):
        with suppress(BadStructure):
            decode(data)
    messages = [data]
    if not data.startswith(b"From:"):
        body = b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.encodebytes(data).replace(b"\n", b"\r\n")
        messages = [HEADER % kind + body for kind in (b"enveloped-data", b"authenveloped-data", b"signed-data")]
    for message in messages:
        with suppress(CannotOpen, MalformedMessage):
            mime.check_carriable(message, 100)
            reading = read(message, _keys(), _trust(), ["ann@alice.example"], NOW)
            if reading is None:
                continue
            if reading.signature.verdict == "good":
                opaque = not reading.opened and b"multipart" not in mime.header_of(message)
                check(opaque or SIGNED in reading.message, "a good signature of nothing")
            if reading.opened:
                mime.check_carriable(reading.message, 100)
                authors = mime.header_of(reading.message).lower().count(b"from:")
                check(authors <= 1 + message.lower().count(b"from:"), "authors that nobody wrote")


SMIME = Target("smime", smime, seeds, WORDS, hostile.STRUCTURES)
