"""Documents of a site that lies: its own CA certifies whatever it likes, and all signatures in them are right.
Standard: RFC 5280; what is not lied about is as `identity new` makes it.
"""

from __future__ import annotations

import base64
from dataclasses import replace

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from relay.identity import PeerCertificates, read_document
from relay.identity.composite import SIGNATURE_ALGORITHM, CompositeSigningPrivateKey, signing_key
from relay.identity.directory import read_key
from relay.identity.document import write_document
from relay.identity.pairs import Role
from relay.identity.x509_keys import AnyPublicKey, certified as signed_certificate, identifier_of, key_of
from tests.unit.identity.homes import Home, inner, signed


def certified(
    certificate: x509.Certificate,
    ca_key: CompositeSigningPrivateKey,
    *,
    issuer: x509.Name | None = None,
    key: AnyPublicKey | None = None,
    serial: int | None = None,
    ski: bytes | None = None,
    algorithm: bytes = SIGNATURE_ALGORITHM,
) -> x509.Certificate:
    """The certificate once more, with what is given in place of what was true."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(certificate.subject)
        .issuer_name(issuer or certificate.issuer)
        .serial_number(serial or certificate.serial_number)
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(certificate.not_valid_after_utc)
    )
    for extension in certificate.extensions:
        value = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            usual = x509.SubjectKeyIdentifier(identifier_of(key)) if key else value
            value = x509.SubjectKeyIdentifier(ski) if ski else usual
        builder = builder.add_extension(value, extension.critical)
    return signed_certificate(builder, key or key_of(certificate), ca_key.sign, algorithm)


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


def ca_key(home: Home) -> CompositeSigningPrivateKey:
    """The private key of the site's own CA."""
    return read_key(home.identity_directory / "ca.key", signing_key, None)


def under_another_name(home: Home, issuer: x509.Name, serials: dict[Role, int]) -> bytes:
    """The site's document, all certificates issued by a CA of this name with these serial numbers."""
    key, identity = ca_key(home), home.identity
    ca = identity.ca
    builder = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
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
    return document(home, ca=signed_certificate(builder, key.public_key(), key.sign), **issued)


def pinned(home: Home, **documents: bytes) -> dict[str, PeerCertificates]:
    """Puts documents where pinned ones lie, without asking anybody, and gives what they say."""
    home.peers.mkdir(mode=0o700, exist_ok=True)
    for name, raw in documents.items():
        path = home.peers / f"{name}.json"
        path.touch(mode=0o600)
        path.write_bytes(raw)
    return {name: replace(read_document(raw), name=name) for name, raw in documents.items()}
