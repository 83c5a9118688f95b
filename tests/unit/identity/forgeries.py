"""Documents of a site that lies: its own CA certifies whatever it likes, and all signatures in them are right.
Standard: RFC 5280; what is not lied about is as `identity new` makes it.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from relay.identity import PeerCertificates, read_document
from relay.identity.certificates import PublicKey
from relay.identity.document import write_document
from relay.identity.pairs import Role
from tests.unit.identity.homes import Home, inner, signed


def certified(
    certificate: x509.Certificate,
    ca_key: MLDSA87PrivateKey,
    *,
    issuer: x509.Name | None = None,
    key: PublicKey | None = None,
    serial: int | None = None,
    ski: bytes | None = None,
) -> x509.Certificate:
    """The certificate once more, with what is given in place of what was true."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(issuer or certificate.issuer)
        .public_key(key or certificate.public_key())
        .serial_number(serial or certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            usual = x509.SubjectKeyIdentifier.from_public_key(key) if key else value
            value = x509.SubjectKeyIdentifier(ski) if ski else usual
        builder = builder.add_extension(value, extension.critical)
    return builder.sign(ca_key, None)


def document(home: Home, **certificates: x509.Certificate) -> bytes:
    """The site's document with these certificates in place of its own."""
    content = inner(home.document())
    for name, certificate in certificates.items():
        content["certificates"][name] = base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()
    return signed(content, home.identity.signing.private_key)


def with_kems(home: Home, **kems: bytes) -> bytes:
    """The site's document with these public keys of further KEMs."""
    peer = read_document(home.document())
    return write_document(replace(peer, further_kems=kems), home.identity.signing.private_key)


def ca_key(home: Home) -> MLDSA87PrivateKey:
    """The private key of the site's own CA."""
    key = load_pem_private_key(Path(home.identity_directory / "ca.key").read_bytes(), None)
    assert isinstance(key, MLDSA87PrivateKey)
    return key


def under_another_name(home: Home, issuer: x509.Name, serials: dict[Role, int]) -> bytes:
    """The site's document, all certificates issued by a CA of this name with these serial numbers."""
    key, identity = ca_key(home), home.identity
    ca = identity.ca
    builder = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(ca.public_key())
        .serial_number(ca.serial_number)
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_after_utc)
    )
    for extension in ca.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    issued = {
        str(role): certified(certificate, key, issuer=issuer, serial=serials.get(role))
        for role, certificate in identity.certificates.items()
    }
    return document(home, ca=builder.sign(key, None), **issued)


def pinned(home: Home, **documents: bytes) -> dict[str, PeerCertificates]:
    """Puts documents where pinned ones lie, without asking anybody, and gives what they say."""
    home.peers.mkdir(mode=0o700, exist_ok=True)
    for name, raw in documents.items():
        path = home.peers / f"{name}.json"
        path.touch(mode=0o600)
        path.write_bytes(raw)
    return {name: replace(read_document(raw), name=name) for name, raw in documents.items()}
