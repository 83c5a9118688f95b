"""SignedData with one signer and embedded content.
Standard: RFC 5652 5 and 11, RFC 6211, draft-ietf-lamps-cms-composite-sigs-01 (ML-DSA-87 with ECDSA P-384,
SHA-512), RFC 4055 and RFC 4056 (RSASSA-PSS, SHA-256).

Gateways write it for gateways, so only what they write is accepted. It has four signed attributes, each once: content
type, message digest, signing time, algorithm protection. No others are allowed, and only the signer's digest
algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Annotated

from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure
from relay.formats.cms import ber, der, oids
from relay.formats.cms.der import asn1
from relay.formats.cms.recipients import CertificateID, IssuerAndSerial, decode_rid, encode_rid
from relay.formats.pieces import Octets, Pieces

MAX_SIGNATURE_OCTETS = 8192
MAX_ATTRIBUTES_OCTETS = 16 * 1024
MAX_AROUND_OCTETS = 256 * 1024
"""Maximum size of SignedData without its content, in octets; certificates are most of it."""


class SignatureScheme(Enum):
    """The signature schemes, each with its digest."""

    ML_DSA_87_P384 = "ml-dsa-87-p384"
    RSA_PSS = "rsa-pss"


@dataclass(frozen=True, slots=True)
class Signed:
    """One SignedData: `content`, its one signer, and what was signed.

    `attributes` is the DER of the signed attributes as SET OF, which the signature covers. `digest` is the content's
    digest in them. `signing_time` is aware, in UTC and whole seconds; decode_signed always sets it. `certificate` (DER)
    is the signer's, b"" for none.
    """

    content: bytes = field(repr=False)
    scheme: SignatureScheme
    signer: CertificateID
    attributes: bytes
    digest: bytes
    signature: bytes
    certificate: bytes = b""
    signing_time: datetime | None = None


def attributes_to_sign(scheme: SignatureScheme, digest: bytes, when: datetime) -> bytes:
    """The signed attributes as DER SET OF: content type, digest, time, algorithms (RFC 5652 11, RFC 6211).

    `when` is aware; only its whole seconds are written.
    """
    return der.set_of(
        [
            _attribute(oids.ID_CONTENT_TYPE, _DATA),
            _attribute(oids.ID_MESSAGE_DIGEST, der.element(der.OCTET_STRING, digest)),
            _attribute(oids.ID_SIGNING_TIME, _encoded_time(when)),
            _attribute(oids.ID_ALGORITHM_PROTECTION, _protection(*_ALGORITHMS[scheme])),
        ]
    )


def encode_signed(signed: Signed) -> bytes:
    """The ContentInfo around it, as DER."""
    return bytes(signed_pieces(signed, signed.content))


def signed_pieces(signed: Signed, content: Octets | Pieces) -> Pieces:
    """Returns `signed` with this content instead of its own, in pieces."""
    digest_algorithm, signature_algorithm = _ALGORITHMS[signed.scheme]
    version = der.integer(_version(signed.signer))
    signer_info = der.sequence(
        version,
        encode_rid(signed.signer),
        digest_algorithm,
        der.retagged(0xA0, signed.attributes),
        signature_algorithm,
        der.element(der.OCTET_STRING, signed.signature),
    )
    certificate = der.element(0xA0, signed.certificate) if signed.certificate else b""
    behind = certificate + der.set_of([signer_info])
    size, more = len(content), len(content) + len(behind)
    encapsulated = der.around(0xA0, der.around(der.OCTET_STRING, [], size), size)
    data = [version, der.set_of([digest_algorithm]), *der.around(der.SEQUENCE, [_DATA, *encapsulated], size)]
    inside = [der.oid(oids.ID_SIGNED_DATA), *der.around(0xA0, der.around(der.SEQUENCE, data, more), more)]
    return Pieces.of(b"".join(der.around(der.SEQUENCE, inside, more)), content, behind)


def decode_signed(octets: bytes) -> Signed:
    """SignedData with exactly one signer, the four signed attributes and the content inside; raises BadStructure.

    It verifies nothing. Digest and signature algorithm must be one of SignatureScheme, and the same in
    digestAlgorithms and in the signed attributes.
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
    # RFC 5652, 5.1 and 5.3: the content is data and all certificates are X.509, so both versions are equal.
    if {info.version, inner.version} != {_version(signer)}:
        raise BadStructure("a version does not fit the signer's identifier")
    if inner.certificates is not None and any(each.tag_bytes != b"\x30" for each in inner.certificates.as_list()):
        raise BadStructure("a certificate that is not one of X.509")
    scheme = _scheme(der.whole(info.digest_algorithm), der.whole(info.signature_algorithm))
    if der.whole(inner.digest_algorithms) not in _DIGEST_SETS[scheme]:
        raise BadStructure("the digest algorithms are not the signer's alone")
    if len(info.signature) > MAX_SIGNATURE_OCTETS:
        raise BadStructure("the signature is longer than any that we know")
    attributes, digest, when = _decode_attributes(info.signed_attributes, scheme)
    return Signed(inner.encapsulated.content, scheme, signer, attributes, digest, info.signature, signing_time=when)


def _version(signer: CertificateID) -> int:
    """Returns the version of SignerInfo, which is also that of SignedData here (RFC 5652, 5.1 and 5.3)."""
    return 3 if signer.ski else 1


def _check_size(octets: bytes) -> None:
    """Raises BadStructure for too many octets around the content, before they are parsed."""
    data: list[memoryview] = der.children(octets, 1)
    for most in (2, 1, 6):
        data = der.children(data[-1], most) if data else []
    if sum(map(len, data[:2] + data[3:])) > MAX_AROUND_OCTETS:
        raise BadStructure(f"more than {MAX_AROUND_OCTETS} octets around the signed content")


def _decode_attributes(element: asn1.TLV, scheme: SignatureScheme) -> tuple[bytes, bytes, datetime]:
    """The signed attributes as SET OF, the digest and the signing time among them."""
    if element.tag_bytes != b"\xa0" or len(element.data) > MAX_ATTRIBUTES_OCTETS:
        raise BadStructure("signed attributes are missing or too long")
    attributes = der.element(der.SET, bytes(element.data))
    parsed = der.parse(_Attributes, der.sequence(attributes), "signed attributes").attributes.as_list()
    values = {attribute.kind: _only_value(attribute) for attribute in parsed}
    if values.keys() != _WANTED or len(parsed) != len(_WANTED):
        raise BadStructure("the signed attributes are not the four that are wanted, each once")
    if values[oids.ID_CONTENT_TYPE] != _DATA:
        raise BadStructure("the signed content type is not data")
    if values[oids.ID_ALGORITHM_PROTECTION] not in _PROTECTIONS[scheme]:
        raise BadStructure("the signed algorithms are other ones")
    digest = der.parse(bytes, values[oids.ID_MESSAGE_DIGEST], "message digest")
    return attributes, digest, _decoded_time(values[oids.ID_SIGNING_TIME])


def _only_value(attribute: _Attribute) -> bytes:
    values = attribute.values.as_list()
    if len(values) != 1:
        raise BadStructure(f"signed attribute {attribute.kind.dotted_string} does not have one value")
    return der.whole(values[0])


def _encoded_time(when: datetime) -> bytes:
    """The signing time; UTCTime from 1950 to 2049, GeneralizedTime otherwise (RFC 5652, 11.3)."""
    seconds = when.astimezone(UTC).replace(microsecond=0)
    kind = asn1.UTCTime if seconds.year in _UTC_TIME_YEARS else asn1.GeneralizedTime
    octets: bytes = asn1.encode_der(kind(seconds))
    return octets


def _decoded_time(value: bytes) -> datetime:
    """The signing time, in the one valid form."""
    kind: type[asn1.UTCTime | asn1.GeneralizedTime]
    kind = asn1.UTCTime if value.startswith(_UTC_TIME) else asn1.GeneralizedTime
    when = der.parse(kind, value, "signing time").as_datetime()
    if _encoded_time(when) != value:
        raise BadStructure("the signing time is not in the form that its year wants, or has parts of a second")
    return when


def _protection(digest_algorithm: bytes, signature_algorithm: bytes) -> bytes:
    """CMSAlgorithmProtection (RFC 6211)."""
    return der.sequence(digest_algorithm, der.retagged(0xA1, signature_algorithm))


def _scheme(digest_algorithm: bytes, signature_algorithm: bytes) -> SignatureScheme:
    for scheme in SignatureScheme:
        if digest_algorithm in _DIGESTS[scheme] and signature_algorithm in _SIGNATURES[scheme]:
            return scheme
    raise BadStructure("the signature is neither ML-DSA-87 with ECDSA P-384 nor RSASSA-PSS with SHA-256")


def _attribute(kind: ObjectIdentifier, value: bytes) -> bytes:
    return der.sequence(der.oid(kind), der.set_of([value]))


def _with_null(algorithm: bytes) -> bytes:
    """An AlgorithmIdentifier whose parameters are NULL instead of absent, as some software writes it."""
    return der.sequence(algorithm[2:], der.NULL)


def _pss(hash_parameters: bytes) -> bytes:
    """RSASSA-PSS-params: SHA-256, MGF1 with SHA-256, a salt of 32 octets (RFC 8017 A.2.3)."""
    sha256 = der.algorithm(oids.ID_SHA256, hash_parameters)
    return der.algorithm(
        oids.ID_RSASSA_PSS,
        der.sequence(
            der.element(0xA0, sha256),
            der.element(0xA1, der.algorithm(oids.ID_MGF1, sha256)),
            der.element(0xA2, der.integer(32)),
        ),
    )


_DATA = der.oid(oids.ID_DATA)
_ALGORITHMS: dict[SignatureScheme, tuple[bytes, bytes]] = {
    SignatureScheme.ML_DSA_87_P384: (der.algorithm(oids.ID_SHA512), der.algorithm(oids.ID_ML_DSA_87_P384)),
    SignatureScheme.RSA_PSS: (der.algorithm(oids.ID_SHA256), _pss(der.NULL)),
}
_SIGNATURES: dict[SignatureScheme, frozenset[bytes]] = {
    SignatureScheme.ML_DSA_87_P384: frozenset({der.algorithm(oids.ID_ML_DSA_87_P384)}),
    SignatureScheme.RSA_PSS: frozenset({_pss(der.NULL), _pss(b"")}),
}
_DIGESTS = {scheme: (digest, _with_null(digest)) for scheme, (digest, _) in _ALGORITHMS.items()}
_DIGEST_SETS = {scheme: {der.set_of([each]) for each in digests} for scheme, digests in _DIGESTS.items()}
_PROTECTIONS = {
    scheme: {_protection(digest, signature) for digest in digests for signature in _SIGNATURES[scheme]}
    for scheme, digests in _DIGESTS.items()
}
_WANTED = {oids.ID_CONTENT_TYPE, oids.ID_MESSAGE_DIGEST, oids.ID_SIGNING_TIME, oids.ID_ALGORITHM_PROTECTION}
"""The required signed attributes, each once, and no others."""
_UTC_TIME, _UTC_TIME_YEARS = b"\x17", range(1950, 2050)


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
