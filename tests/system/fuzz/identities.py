"""Fuzz target for keys, certificates and checkpoints that others wrote: a public key that reads is written the same again.
Standard: relay/identity/composite.py, relay/identity/x509_keys.py, deploy/AUDIT.md.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from relay.audit import checkpoint
from relay.errors import ConfigError
from relay.identity.certificates import check_ca, check_certificate, check_issued_by
from relay.identity.composite import from_public_info, public_info
from relay.identity.pairs import Role
from tests.system.fuzz.target import Target, check
from tests.vectors.people import person

CHECKPOINT = Path(__file__).parents[2] / "data" / "audit" / "checkpoint.json"
WORDS = (
    bytes.fromhex("06082b0601050507063f"), bytes.fromhex("06082b06010505070631"), b"\4", b"\2", b"\0", b"\x30\x80", b"\3\0",
    bytes(97), b"\4" + bytes(96), b"\xff" * 48, b'"format": 2', b'"format": 1', b'"key": ""', b"=", b"{}",
)  # fmt: skip


def seeds() -> list[bytes]:
    """Public keys and certificates of the vectors, and a checkpoint."""
    identity = person("alice").identity
    keys = (identity.kem.private_key.public_key(), identity.signing.private_key.public_key())
    certificates = [each.public_bytes(Encoding.DER) for each in (identity.ca, *identity.certificates.values())]
    return [*(public_info(key) for key in keys), *certificates, CHECKPOINT.read_bytes()]


def _issued() -> set[bytes]:
    identity = person("alice").identity
    return {each.tbs_certificate_bytes for each in (identity.ca, *identity.certificates.values())}


def identities(data: bytes) -> None:
    """Each reader refuses in its own way, or has read what is written the same again."""
    with suppress(ValueError):
        check(public_info(from_public_info(data)) == data, "a public key changes when written")
    with suppress(ConfigError):
        genuine = checkpoint.read(CHECKPOINT.read_bytes(), "x")
        check(checkpoint.read(data, "x") == genuine, "a checkpoint that nobody signed")
    try:
        certificate = x509.load_der_x509_certificate(data)
    except (ValueError, x509.InvalidVersion):
        return
    with suppress(ValueError):
        check_ca(certificate)
    with suppress(ValueError):
        check_issued_by(certificate, person("alice").identity.ca)
        check(certificate.tbs_certificate_bytes in _issued(), "the CA has issued what it never signed")
    for role in Role:
        with suppress(ValueError):
            check_certificate(certificate, role)


IDENTITIES = Target("identity", identities, seeds, WORDS)
