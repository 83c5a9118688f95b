"""SignedData with one signer and the content inside.
Standard: RFC 5652 5, RFC 9882 (ML-DSA-87 with SHA-512), RFC 4055 and RFC 4056 (RSASSA-PSS with SHA-256), RFC 6211.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Annotated

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from relay.cms import ber, der, oids
from relay.cms.recipients import CertificateID, IssuerAndSerial, decode_rid, encode_rid
from relay.errors import BadStructure

MAX_SIGNATURE_OCTETS = 8192
MAX_ATTRIBUTES_OCTETS = 16 * 1024
MAX_AROUND_OCTETS = 256 * 1024
"""Everything in SignedData but the signed content: certificates above all."""


class SignatureScheme(Enum):
    """How a signer signs: digest and signature always go together."""

    ML_DSA_87 = "ml-dsa-87"
    RSA_PSS = "rsa-pss"


@dataclass(frozen=True, slots=True)
class Signed:
    """One SignedData: `content`, its one signer, and what was signed.

    `attributes` is the DER of the signed attributes as SET OF, which is what the signature covers;
    `digest` is the content's digest as they say it. `certificate` (DER) is the signer's, b"" for none.
    """

    content: bytes = field(repr=False)
    scheme: SignatureScheme
    signer: CertificateID
    attributes: bytes
    digest: bytes
    signature: bytes
    certificate: bytes = b""


def attributes_to_sign(scheme: SignatureScheme, digest: bytes, when: datetime) -> bytes:
    """The signed attributes as DER SET OF: content type, digest, time, algorithms (RFC 5652 11, RFC 6211)."""
    digest_algorithm, signature_algorithm = _ALGORITHMS[scheme]
    protection = der.sequence(digest_algorithm, der.retagged(0xA1, signature_algorithm))
    return der.set_of(
        [
            _attribute(oids.ID_CONTENT_TYPE, der.oid(oids.ID_DATA)),
            _attribute(oids.ID_MESSAGE_DIGEST, der.Element(der.OCTET_STRING, digest).octets()),
            _attribute(oids.ID_SIGNING_TIME, asn1.encode_der(asn1.UTCTime(when.replace(microsecond=0)))),
            _attribute(oids.ID_ALGORITHM_PROTECTION, protection.octets()),
        ]
    ).octets()


def encode_signed(signed: Signed) -> bytes:
    """The ContentInfo around it, as DER."""
    digest_algorithm, signature_algorithm = _ALGORITHMS[signed.scheme]
    certificates = [der.Element(0xA0, signed.certificate)] if signed.certificate else []
    signer_info = der.sequence(
        der.integer(3 if signed.signer.ski else 1),
        encode_rid(signed.signer),
        digest_algorithm,
        der.retagged(0xA0, signed.attributes),
        signature_algorithm,
        der.Element(der.OCTET_STRING, signed.signature),
    )
    data = der.sequence(
        der.integer(3 if signed.signer.ski else 1),
        der.set_of([digest_algorithm]),
        der.sequence(der.oid(oids.ID_DATA), der.Element(0xA0, der.Element(der.OCTET_STRING, signed.content))),
        *certificates,
        der.set_of([signer_info.octets()]),
    )
    return der.sequence(der.oid(oids.ID_SIGNED_DATA), der.Element(0xA0, data)).octets()


def decode_signed(octets: bytes) -> Signed:
    """SignedData with exactly one signer, signed attributes and the content inside; raises BadStructure.

    Nothing is verified here. Digest and signature algorithm must be one of SignatureScheme, and the same in
    the signed attributes where these repeat them.
    """
    if not ber.is_definite(octets):
        octets = ber.to_der(octets)
    _check_size(octets)
    data = der.parse(_SignedContentInfo, octets, "not SignedData as we accept it")
    if data.content_type != oids.ID_SIGNED_DATA:
        raise BadStructure(f"content type {data.content_type.dotted_string} is not signed data")
    inner = data.content
    if inner.encapsulated.content_type != oids.ID_DATA:
        raise BadStructure("the signed content is not data")
    signers = inner.signer_infos.as_list()
    if len(signers) != 1:
        raise BadStructure(f"{len(signers)} signers; exactly one is expected")
    info = signers[0]
    signer = decode_rid(info.sid)
    version = 3 if signer.ski else 1
    if info.version != version or inner.version not in (1, 3):
        raise BadStructure("the version does not fit the signer's identifier")
    scheme = _scheme(der.whole(info.digest_algorithm), der.whole(info.signature_algorithm))
    if len(info.signature) > MAX_SIGNATURE_OCTETS:
        raise BadStructure("the signature is longer than any that we know")
    attributes, digest = _decode_attributes(info.signed_attributes, scheme)
    return Signed(inner.encapsulated.content, scheme, signer, attributes, digest, info.signature)


def _check_size(octets: bytes) -> None:
    """Raises BadStructure where there is too much around the content, before all of it becomes objects."""
    data: list[memoryview] = der.children(octets, 1)
    for most in (2, 1, 6):
        data = der.children(data[-1], most) if data else []
    if sum(map(len, data[:2] + data[3:])) > MAX_AROUND_OCTETS:
        raise BadStructure(f"more than {MAX_AROUND_OCTETS} octets around the signed content")


def _decode_attributes(element: asn1.TLV, scheme: SignatureScheme) -> tuple[bytes, bytes]:
    """The signed attributes as SET OF, and the digest among them."""
    if element.tag_bytes != b"\xa0" or len(element.data) > MAX_ATTRIBUTES_OCTETS:
        raise BadStructure("signed attributes are missing or too long")
    attributes = der.Element(der.SET, bytes(element.data)).octets()
    parsed = der.parse(_Attributes, der.sequence(attributes).octets(), "signed attributes").attributes.as_list()
    values: dict[ObjectIdentifier, bytes] = {}
    for attribute in parsed:
        found = attribute.values.as_list()
        if attribute.kind in values or len(found) != 1:
            raise BadStructure(f"signed attribute {attribute.kind.dotted_string} does not have one value")
        values[attribute.kind] = der.whole(found[0])
    if values.get(oids.ID_CONTENT_TYPE) != der.oid(oids.ID_DATA):
        raise BadStructure("the signed content type is missing or is not data")
    if (protection := values.get(oids.ID_ALGORITHM_PROTECTION)) is not None:
        digest_algorithm, signature_algorithm = _protected(protection)
        if _scheme(digest_algorithm, signature_algorithm) is not scheme:
            raise BadStructure("the signed algorithms are other ones")
    digest = der.parse(_Digest, der.sequence(values.get(oids.ID_MESSAGE_DIGEST, b"")).octets(), "message digest")
    return attributes, digest.digest


def _protected(value: bytes) -> tuple[bytes, bytes]:
    parsed = der.parse(_AlgorithmProtection, value, "algorithm protection")
    signature = parsed.signature
    if signature.tag_bytes != b"\xa1":
        raise BadStructure("algorithm protection without a signature algorithm")
    return der.whole(parsed.digest), der.retagged(der.SEQUENCE, der.whole(signature))


def _scheme(digest_algorithm: bytes, signature_algorithm: bytes) -> SignatureScheme:
    for scheme, (digest, _) in _ALGORITHMS.items():
        if digest_algorithm in (digest, _with_null(digest)) and signature_algorithm in _SIGNATURES[scheme]:
            return scheme
    raise BadStructure("the signature is neither ML-DSA-87 with SHA-512 nor RSASSA-PSS with SHA-256")


def _attribute(kind: ObjectIdentifier, value: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of([value])).octets()


def _with_null(algorithm: bytes) -> bytes:
    """An AlgorithmIdentifier whose parameters are NULL instead of absent, as some software writes it."""
    return der.sequence(algorithm[2:], der.NULL).octets()


def _pss(hash_parameters: bytes) -> bytes:
    """RSASSA-PSS-params: SHA-256, MGF1 with SHA-256, a salt of 32 octets (RFC 8017 A.2.3)."""
    sha256 = der.algorithm(oids.ID_SHA256, hash_parameters)
    return der.algorithm(
        oids.ID_RSASSA_PSS,
        der.sequence(
            der.Element(0xA0, sha256),
            der.Element(0xA1, der.algorithm(oids.ID_MGF1, sha256)),
            der.Element(0xA2, der.integer(32)),
        ),
    )


_ALGORITHMS: dict[SignatureScheme, tuple[bytes, bytes]] = {
    SignatureScheme.ML_DSA_87: (der.algorithm(oids.ID_SHA512), der.algorithm(oids.ID_ML_DSA_87)),
    SignatureScheme.RSA_PSS: (der.algorithm(oids.ID_SHA256), _pss(der.NULL)),
}
_SIGNATURES: dict[SignatureScheme, frozenset[bytes]] = {
    SignatureScheme.ML_DSA_87: frozenset({der.algorithm(oids.ID_ML_DSA_87)}),
    SignatureScheme.RSA_PSS: frozenset({_pss(der.NULL), _pss(b"")}),
}


# The structures, field by field as in RFC 5652.


@asn1.sequence
class _EncapsulatedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[bytes, asn1.Explicit(0)]


@asn1.sequence
class _SignerInfo:
    version: int
    sid: IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    digest_algorithm: asn1.TLV
    signed_attributes: asn1.TLV
    signature_algorithm: asn1.TLV
    signature: bytes


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: asn1.TLV
    encapsulated: _EncapsulatedContentInfo
    certificates: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(0)]
    signer_infos: asn1.SetOf[_SignerInfo]


@asn1.sequence
class _SignedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_SignedData, asn1.Explicit(0)]


@asn1.sequence
class _Attribute:
    kind: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _Attributes:
    attributes: asn1.SetOf[_Attribute]


@asn1.sequence
class _AlgorithmProtection:
    digest: asn1.TLV
    signature: asn1.TLV


@asn1.sequence
class _Digest:
    digest: bytes
