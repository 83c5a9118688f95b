"""Alice, Bob and Eve of the test vectors: keys from fixed seeds, RSA keys and certificates from files beside.
Standard: nothing here protects anything; every private key is public, and every file of one says test-only.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from relay.identity import Identity, PeerCertificates, RSAKeyPair, SigningKeyPair
from relay.identity.composite import CompositeKEMPrivateKey, CompositeSigningPrivateKey
from relay.identity.pairs import KEMKeyPair, PrivateKey
from relay.identity.x509_keys import certified, identifier_of

KEYS = Path(__file__).parent / "keys"
NAMES = {"alice": "2", "bob": "1", "eve": "3"}
"""Each site's SAE ID."""


@dataclass(frozen=True)
class Person:
    """One site: its keys, and what its peers know of it."""

    identity: Identity
    certificates: PeerCertificates


@functools.cache
def person(name: str) -> Person:
    """The site with this name; certificates that are missing are made."""
    issuer = _signing(f"{name} ca")
    ca = _certificate(f"{name}-ca", issuer, issuer)
    kem = KEMKeyPair(
        key := CompositeKEMPrivateKey(
            MLKEM1024PrivateKey.from_seed_bytes(_seed(f"{name} kem", 64)), _p384(f"{name} kem")
        ),
        _certificate(f"{name}-kem", key, issuer),
    )
    signing = SigningKeyPair(
        signer := _signing(f"{name} signing"),
        _certificate(f"{name}-signing", signer, issuer),
    )
    encryption, rsa_signing = (
        RSAKeyPair(each := rsa_key(f"{name}-{role}"), _certificate(f"{name}-{role}", each, issuer))
        for role in ("rsa-encryption", "rsa-signing")
    )
    identity = Identity(ca, (f"{name}.example",), kem, signing, encryption, rsa_signing)
    certificates = PeerCertificates(
        name, (f"{name}.example",), NAMES[name], ("alice-bob",), ("otp", "aes", "pqc", "rsa"), 1, 1,
        datetime(2026, 1, 1, tzinfo=UTC), ca, signing.certificate, kem.certificate, encryption.certificate,
        rsa_signing.certificate,
    )  # fmt: skip
    return Person(identity, certificates)


def _seed(name: str, octets: int) -> bytes:
    """SHAKE-256 of a text that the format document names."""
    return hashlib.shake_256(f"QuMail Relay test vectors: {name}".encode()).digest(octets)


def _p384(name: str) -> ec.EllipticCurvePrivateKey:
    """The private value is 47 octets, so that it is below the order of the group whatever they are."""
    return ec.derive_private_key(int.from_bytes(_seed(f"{name} p384", 47)), ec.SECP384R1())


def _signing(name: str) -> CompositeSigningPrivateKey:
    return CompositeSigningPrivateKey(MLDSA87PrivateKey.from_seed_bytes(_seed(name, 32)), _p384(name))


def rsa_key(name: str) -> rsa.RSAPrivateKey:
    """RSA keys cannot be had from a seed in a standard way, so they lie in files."""
    path = KEYS / f"test-only-{name}.key.pem"
    if not path.exists():
        made = rsa.generate_private_key(65537, 4096)
        path.write_bytes(made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    key = load_pem_private_key(path.read_bytes(), None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _certificate(name: str, key: PrivateKey, issuer: CompositeSigningPrivateKey) -> x509.Certificate:
    """Valid for a hundred years; only subject, key identifier and public key matter here."""
    path = KEYS / f"{name}.crt.pem"
    if not path.exists():
        site = name.partition("-")[0]
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{site}-ca")]))
            .serial_number(1 + int.from_bytes(_seed(f"{name} serial", 8)))
            .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2126, 1, 1, tzinfo=UTC))
            .add_extension(x509.SubjectKeyIdentifier(identifier_of(key.public_key())), critical=False)
        )
        made = certified(builder, key.public_key(), issuer.sign)
        path.write_bytes(made.public_bytes(Encoding.PEM))
    return x509.load_pem_x509_certificate(path.read_bytes())
