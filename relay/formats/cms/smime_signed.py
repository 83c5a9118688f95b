"""SignedData as other mail programs and gateways write it: opaque or detached; reading only, no cryptography.
Standard: RFC 5652 5 and 11, RFC 8551 2, RFC 4056 (RSASSA-PSS), RFC 5754 (SHA-2 with RSA and ECDSA).

signed.py reads what relays of this kind write, and is stricter. Signatures with MD5, SHA-1 or DSA are not read: they
prove nothing. Nor are those without signed attributes. A signature of attributes could be shown as one of content.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure
from relay.formats.cms import ber, der, oids
from relay.formats.cms.der import asn1
from relay.formats.cms.recipients import CertificateID, IssuerAndSerial, decode_rid
from relay.formats.cms.smime_enveloped import algorithm, hash_of, mgf1_hash

MAX_SIGNERS = 10
MAX_CERTIFICATES = 50
MAX_CERTIFICATE_OCTETS = 32 * 1024
MAX_AROUND_OCTETS = 1024 * 1024
"""Maximum size of the certificates and signers, in octets."""
SHA2 = frozenset({"sha256", "sha384", "sha512"})


@dataclass(frozen=True, slots=True)
class OthersSigner:
    """One signer: `attributes` (DER of the SET) are what was signed, and have the `digest` of the content.

    `hash` is the name of the digest and the signature's hash; `salt_octets` is that of PSS.
    """

    certificate: CertificateID
    hash: str
    scheme: Literal["rsa", "pss", "ecdsa"]
    attributes: bytes
    digest: bytes
    signature: bytes
    salt_octets: int = 0


@dataclass(frozen=True, slots=True)
class OthersSigned:
    """`content` is None for a detached signature; `certificates` are DER, and prove nothing.

    `signers` are those whose signature is of a known kind.
    """

    content: bytes | None = field(repr=False)
    signers: tuple[OthersSigner, ...]
    certificates: tuple[bytes, ...] = field(repr=False)


def decode_others_signed(octets: bytes) -> OthersSigned:
    """Decodes SignedData in BER or DER. Raises BadStructure."""
    data = der.parse(_OthersSignedContentInfo, ber.to_der(octets), "SignedData")
    if data.content_type != oids.ID_SIGNED_DATA:
        raise BadStructure(f"content type {data.content_type.dotted_string} is not signed data")
    inner = data.content
    if inner.encapsulated.content_type != oids.ID_DATA:
        raise BadStructure("the signed content is not data")
    certificates = inner.certificates.as_list() if inner.certificates is not None else []
    infos = inner.signer_infos.as_list()
    if len(certificates) > MAX_CERTIFICATES or len(infos) > MAX_SIGNERS:
        raise BadStructure("too many certificates or signers")
    whole = tuple([der.whole(each) for each in certificates if each.tag_bytes == b"\x30"])
    if any(len(each) > MAX_CERTIFICATE_OCTETS for each in whole):
        raise BadStructure(f"a certificate of more than {MAX_CERTIFICATE_OCTETS} octets")
    signers = tuple([signer for info in infos if (signer := _signer(info)) is not None])
    return OthersSigned(inner.encapsulated.content, signers, whole)


def _signer(info: _OthersSignerInfo) -> OthersSigner | None:
    """A signer with signed attributes and a signature of a known kind, else None. Raises BadStructure."""
    hash_name = hash_of(info.digest_algorithm, "")
    scheme, salt = _scheme(info.signature_algorithm, hash_name)
    if not info.attributes or hash_name not in SHA2 or scheme is None:
        return None
    attributes = b"".join(map(der.whole, info.attributes))
    digest, signed = _digest(der.sequence(attributes)), der.element(der.SET, attributes)
    return OthersSigner(decode_rid(info.sid), hash_name, scheme, signed, digest, info.signature, salt)


def _scheme(parts: list[asn1.TLV], hash_name: str) -> tuple[Literal["rsa", "pss", "ecdsa"] | None, int]:
    """The kind of signature with this hash, and the salt length of PSS; None for an unknown kind."""
    name, parameters = algorithm(parts)
    if name == oids.ID_RSASSA_PSS.dotted_string:
        pss = der.parse(_OthersPSSParameters, parameters, "RSASSA-PSS-params")
        fits = hash_of(pss.hash, _SHA1) == hash_name == mgf1_hash(pss.mask) and pss.trailer in (None, 1)
        salt = 20 if pss.salt is None else pss.salt
        return ("pss", salt) if fits and 0 <= salt <= _MAX_SALT_OCTETS else (None, 0)
    kind, its_hash = _SCHEMES.get(name, (None, ""))
    return (kind, 0) if its_hash in ("", hash_name) else (None, 0)


def _digest(attributes: bytes) -> bytes:
    """The digest in the signed attributes, which say that the content is data (RFC 5652, 11). Raises BadStructure."""
    values: dict[ObjectIdentifier, list[asn1.TLV]] = {}
    for each in der.parse(_OthersAttributes, der.sequence(attributes), "signed attributes").attributes:
        if each.kind in values:
            raise BadStructure(f"signed attribute {each.kind.dotted_string} is there twice")
        values[each.kind] = each.values.as_list()
    kinds, digests = values.get(oids.ID_CONTENT_TYPE, []), values.get(oids.ID_MESSAGE_DIGEST, [])
    if len(kinds) != 1 or len(digests) != 1 or der.parse(ObjectIdentifier, kinds[0], "content type") != oids.ID_DATA:
        raise BadStructure("the signed attributes are not about data with one digest")
    return der.parse(bytes, digests[0], "message digest")


_SHA1 = "1.3.14.3.2.26"
_MAX_SALT_OCTETS = 512
_SCHEMES: dict[str, tuple[Literal["rsa", "ecdsa"], str]] = {
    "1.2.840.113549.1.1.1": ("rsa", ""),  # rsaEncryption: the hash is that of the digest (RFC 5754, 3.2)
    "1.2.840.113549.1.1.11": ("rsa", "sha256"),
    "1.2.840.113549.1.1.12": ("rsa", "sha384"),
    "1.2.840.113549.1.1.13": ("rsa", "sha512"),
    "1.2.840.10045.4.3.2": ("ecdsa", "sha256"),
    "1.2.840.10045.4.3.3": ("ecdsa", "sha384"),
    "1.2.840.10045.4.3.4": ("ecdsa", "sha512"),
}


# The structures, field by field as in RFC 5652. An AlgorithmIdentifier is a list of its elements.


@asn1.sequence
class _OthersPSSParameters:
    hash: Annotated[list[asn1.TLV] | None, asn1.Explicit(0)]
    mask: Annotated[list[asn1.TLV] | None, asn1.Explicit(1)]
    salt: Annotated[int | None, asn1.Explicit(2)]
    trailer: Annotated[int | None, asn1.Explicit(3)]


@asn1.sequence
class _OthersEncapsulatedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[bytes | None, asn1.Explicit(0)]


@asn1.sequence
class _OthersSignerInfo:
    version: int
    sid: IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    digest_algorithm: list[asn1.TLV]
    attributes: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    signature_algorithm: list[asn1.TLV]
    signature: bytes
    unsigned: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class _OthersSignedData:
    version: int
    digest_algorithms: asn1.TLV
    encapsulated: _OthersEncapsulatedContentInfo
    certificates: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(0)]
    crls: Annotated[asn1.SetOf[asn1.TLV] | None, asn1.Implicit(1)]
    signer_infos: asn1.SetOf[_OthersSignerInfo]


@asn1.sequence
class _OthersSignedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_OthersSignedData, asn1.Explicit(0)]


@asn1.sequence
class _OthersAttribute:
    kind: ObjectIdentifier
    values: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _OthersAttributes:
    attributes: list[_OthersAttribute]
