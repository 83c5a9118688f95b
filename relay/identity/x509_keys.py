"""Public keys in certificates, and certificates and requests of composite keys, which `cryptography` cannot write.
Standard: RFC 5280 and RFC 2986, with the composite keys and signatures of composite.py.

`cryptography` writes the certificate for another key first. Then key, algorithm and signature are put in place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.formats.cms import der
from relay.formats.cms.der import asn1
from relay.identity.composite import (
    COMPOSITE_OIDS,
    SIGNATURE_ALGORITHM,
    CompositeKEMPublicKey,
    CompositePublicKey,
    CompositeSigningPrivateKey,
    CompositeSigningPublicKey,
    from_public_info,
    public_info,
)

PublicKey = CompositePublicKey | RSAPublicKey
"""The public keys of a site."""
AnyPublicKey = CompositePublicKey | CertificatePublicKeyTypes
"""The public keys that a certificate may have; that of an organisation's CA may be of another kind than a site's."""
Sign = Callable[[bytes], bytes]

_ALGORITHM_POSITION, _KEY_POSITION = 2, 6
"""Positions of signature and subjectPublicKeyInfo in a TBSCertificate of version 3."""
_PARTS = 10
"""Maximum number of fields of a TBSCertificate (RFC 5280, 4.1)."""
MAX_CACHED = 1024
"""Maximum number of certificates whose key and issuer are remembered: each reload and each mail asks for them again."""


@lru_cache(maxsize=MAX_CACHED)
def key_of(certificate: x509.Certificate) -> AnyPublicKey:
    """The certificate's public key. Raises ValueError, BadStructure or UnsupportedAlgorithm for an unusable one."""
    if certificate.public_key_algorithm_oid.dotted_string not in COMPOSITE_OIDS:
        return certificate.public_key()
    return from_public_info(_part(certificate, _KEY_POSITION))


def info_of(key: AnyPublicKey) -> bytes:
    """The SubjectPublicKeyInfo of the key, as DER."""
    if isinstance(key, CompositeKEMPublicKey | CompositeSigningPublicKey):
        return public_info(key)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def infos_of(key: AnyPublicKey) -> tuple[bytes, ...]:
    """What belongs to one owner alone: the SubjectPublicKeyInfo of the key, and of each half of a composite one."""
    if isinstance(key, CompositeKEMPublicKey | CompositeSigningPublicKey):
        first, second = key.halves
        return public_info(key), info_of(first), info_of(second)
    return (info_of(key),)


def identifier_of(key: AnyPublicKey) -> bytes:
    """The usual SubjectKeyIdentifier of the key: SHA-1 of its bits, 20 octets (RFC 5280, 4.2.1.2, method 1)."""
    [inside] = der.children(info_of(key), 1)
    return hashlib.sha1(der.children(inside, 2)[1][1:], usedforsecurity=False).digest()


@lru_cache(maxsize=MAX_CACHED)
def check_issued_by(certificate: x509.Certificate, ca: x509.Certificate) -> None:
    """Returns if `ca` issued the certificate: names and signature (RFC 5280, 6.1.3).

    Raises InvalidSignature, or what `cryptography` and `key_of` raise for an unusable certificate.
    """
    key = key_of(ca)
    if not isinstance(key, CompositeSigningPublicKey):
        certificate.verify_directly_issued_by(ca)
        return
    [whole] = der.children(certificate.public_bytes(Encoding.DER), 1)
    stated = der.sequence(bytes(der.children(whole, 3)[1]))
    if certificate.issuer != ca.subject or {stated, _part(certificate, _ALGORITHM_POSITION)} != {SIGNATURE_ALGORITHM}:
        raise InvalidSignature
    key.verify(certificate.signature, certificate.tbs_certificate_bytes)


def certified(
    builder: x509.CertificateBuilder, key: AnyPublicKey, sign: Sign, algorithm: bytes = SIGNATURE_ALGORITHM
) -> x509.Certificate:
    """The certificate of this key with what `builder` says, signed by the issuer's `sign` under its `algorithm`.

    Raises ValueError if X.509 cannot encode it.
    """
    placeholder = ec.generate_private_key(ec.SECP384R1())
    made = builder.public_key(placeholder.public_key()).sign(placeholder, hashes.SHA384())
    parsed = der.parse(_ToBeSigned, made.tbs_certificate_bytes, "TBSCertificate")
    before = (parsed.version, parsed.serial), (parsed.issuer, parsed.validity, parsed.subject)
    first, second = (b"".join(map(der.whole, parts)) for parts in before)
    return x509.load_der_x509_certificate(
        _signed(der.sequence(first, algorithm, second, info_of(key), der.whole(parsed.extensions)), sign, algorithm)
    )


def requested(
    builder: x509.CertificateSigningRequestBuilder, key: CompositeSigningPrivateKey
) -> x509.CertificateSigningRequest:
    """The PKCS#10 request for this key with what `builder` says. Raises ValueError if it cannot be encoded."""
    made = builder.sign(ec.generate_private_key(ec.SECP384R1()), hashes.SHA384())
    parsed = der.parse(_RequestInfo, made.tbs_certrequest_bytes, "CertificationRequestInfo")
    version, subject, attributes = map(der.whole, (parsed.version, parsed.subject, parsed.attributes))
    body = der.sequence(version, subject, info_of(key.public_key()), attributes)
    return x509.load_der_x509_csr(_signed(body, key.sign, SIGNATURE_ALGORITHM))


def _signed(body: bytes, sign: Sign, algorithm: bytes) -> bytes:
    return der.sequence(body, algorithm, der.element(der.BIT_STRING, b"\0", sign(body)))


def _part(certificate: x509.Certificate, position: int) -> bytes:
    """One SEQUENCE of the TBSCertificate. Raises ValueError or BadStructure."""
    if certificate.version is not x509.Version.v3:
        raise ValueError("it is not of version 3")
    [inside] = der.children(certificate.tbs_certificate_bytes, 1)
    return der.sequence(bytes(der.children(inside, _PARTS)[position]))


@asn1.sequence
class _ToBeSigned:
    version: asn1.TLV
    serial: asn1.TLV
    signature: asn1.TLV
    issuer: asn1.TLV
    validity: asn1.TLV
    subject: asn1.TLV
    key: asn1.TLV
    extensions: asn1.TLV


@asn1.sequence
class _RequestInfo:
    version: asn1.TLV
    subject: asn1.TLV
    key: asn1.TLV
    attributes: asn1.TLV
