"""The recipients of an AuthEnvelopedData: the four kinds of RecipientInfo in sealed messages, and their KEMs.
Standard: RFC 5652 6.2 (KTRI, KEKRI), RFC 8551 and RFC 4055 (RSAES-OAEP), RFC 9629 and
draft-ietf-lamps-cms-composite-kem-00 (KEMRI).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from cryptography.x509 import ObjectIdentifier

from relay import levels
from relay.errors import BadStructure
from relay.formats.cms import der, oids
from relay.formats.cms.der import asn1

WRAPPED_CEK_OCTETS = 40
KEK_OCTETS = 32
RSA_OCTETS = range(512, 2049)
"""Length of an RSA ciphertext: 4096 bits at least; one of more than 16384 bits is an attack."""
KEY_IDENTIFIER_OCTETS = 20
"""Length of the identifier of a further KEM's key, in octets."""
MAX_OCTETS = 64 * 1024
"""Maximum size of all recipientInfos together, in octets; more is refused unparsed."""
MAX_NUMBER = 100


ML_KEM_1024_P384 = levels.ML_KEM_1024_P384.name

_OF_LEVELS = tuple(form for form in (level.form.kem for level in levels.LEVELS) if form is not None)
KEMS = {kem.name: kem for kem in (*_OF_LEVELS, *levels.FURTHER_KEMS)}
"""KEMs by their name in policies, files and peer documents; the secret of each has 32 octets."""
FURTHER_KEMS = tuple(kem.name for kem in levels.FURTHER_KEMS)
"""The KEMs that may wrap pqc as a further layer each; they need liboqs."""


@dataclass(frozen=True, slots=True)
class QKDKeyAttribute:
    """The origin of a QKD key: the SAE that seals, the SAE that opens, and the issuing KME group."""

    master_sae: str
    slave_sae: str
    kme_group: str


@dataclass(frozen=True, slots=True)
class CertificateID:
    """The ID of a certificate: SubjectKeyIdentifier, or issuer (DER of the Name) and serial number."""

    ski: bytes = b""
    issuer: bytes = b""
    serial: int = 0


@dataclass(frozen=True, slots=True)
class KEKRecipient:
    """The holder of the key named by `key_identifier` (KEKRecipientInfo, RFC 5652 6.2.3).

    `key_identifier` is the key_ID in UTF-8, `wrapped_cek` 40 octets; `attribute` is None in messages of
    other software.
    """

    key_identifier: bytes
    wrapped_cek: bytes
    attribute: QKDKeyAttribute | None = None


@dataclass(frozen=True, slots=True)
class RSARecipient:
    """The holder of this certificate's RSA key: RSAES-OAEP with SHA-256 (KeyTransRecipientInfo)."""

    certificate: CertificateID
    encrypted_cek: bytes


@dataclass(frozen=True, slots=True)
class KEMRecipient:
    """The holder of this KEM key, the composite one of a certificate or a further one (KEMRecipientInfo, RFC 9629 3).

    `kem` is its name in KEMS, which determines the length of `kem_ciphertext`. `wrapped_cek` has 40 octets, wrapped
    under the 32 octets that HKDF-SHA256 derives from the shared secret with `kem_kdf_info`. A further KEM has no
    certificate: `certificate.ski` is then the first 20 octets of SHA-256 over the public key.
    """

    certificate: CertificateID
    kem_ciphertext: bytes
    wrapped_cek: bytes
    kem: str = ML_KEM_1024_P384


@dataclass(frozen=True, slots=True)
class PadRecipient:
    """The holder of the keys of the one-time pad, which the content encryption names."""


Recipient = KEKRecipient | RSARecipient | KEMRecipient | PadRecipient


def kem_kdf_info() -> bytes:
    """CMSORIforKEMOtherInfo (RFC 9629 5): AES-256 wrap, 32 octets, no user keying material."""
    return der.sequence(_AES256_WRAP, der.integer(KEK_OCTETS))


def encode(recipient: Recipient) -> bytes:
    """One RecipientInfo."""
    match recipient:
        case KEKRecipient():
            kekid = [der.element(der.OCTET_STRING, recipient.key_identifier)]
            if recipient.attribute:
                kekid.append(_encode_attribute(recipient.attribute))
            wrapped = der.element(der.OCTET_STRING, recipient.wrapped_cek)
            return der.element(0xA2, _KEK_VERSION, der.sequence(*kekid), _AES256_WRAP, wrapped)
        case RSARecipient():
            version = der.integer(2 if recipient.certificate.ski else 0)
            encrypted_key = der.element(der.OCTET_STRING, recipient.encrypted_cek)
            return der.sequence(version, encode_rid(recipient.certificate), _OAEP, encrypted_key)
        case KEMRecipient():
            info = der.sequence(
                der.integer(0),
                encode_rid(recipient.certificate),
                der.algorithm(ObjectIdentifier(KEMS[recipient.kem].oid)),
                der.element(der.OCTET_STRING, recipient.kem_ciphertext),
                der.algorithm(oids.ID_HKDF_SHA256),
                der.integer(KEK_OCTETS),
                _AES256_WRAP,
                der.element(der.OCTET_STRING, recipient.wrapped_cek),
            )
            return der.element(0xA4, der.oid(oids.ID_ORI_KEM), info)
        case PadRecipient():
            return der.element(0xA4, der.oid(oids.ID_ORI_PAD), der.NULL)


def decode_all(infos: asn1.TLV) -> tuple[Recipient, ...]:
    """The RecipientInfos SET, 1 to MAX_NUMBER of them; raises BadStructure for any other kind."""
    if infos.tag_bytes != b"\x31" or not 0 < len(infos.data) <= MAX_OCTETS:
        raise BadStructure(f"recipientInfos are not a SET of 1 to {MAX_OCTETS} octets")
    parsed = der.parse(_RecipientInfos, der.sequence(der.whole(infos)), "recipientInfos").infos.as_list()
    if len(parsed) > MAX_NUMBER:
        raise BadStructure(f"more than {MAX_NUMBER} recipientInfos")
    return tuple(map(_decode, parsed))


def _decode(info: _KeyTransRecipientInfo | _KEKRecipientInfo | _OtherRecipientInfo) -> Recipient:
    match info:
        case _KEKRecipientInfo():
            return _decode_kek(info)
        case _KeyTransRecipientInfo():
            return _decode_rsa(info)
        case _OtherRecipientInfo(kind=oids.ID_ORI_KEM):
            return _decode_kem(der.parse(_KEMRecipientInfo, info.value, "KEMRecipientInfo"))
        case _OtherRecipientInfo(kind=oids.ID_ORI_PAD) if der.whole(info.value) == der.NULL:
            return PadRecipient()
    raise BadStructure(f"unknown kind of recipient: {info.kind.dotted_string}")


@lru_cache(maxsize=256)
def _encode_attribute(named: QKDKeyAttribute) -> bytes:
    """The OtherKeyAttribute; cached, since there is one for each peer and KME group."""
    value = _KeyAttribute(master_sae=named.master_sae, slave_sae=named.slave_sae, kme_group=named.kme_group)
    return der.sequence(_QKD_KEY, asn1.encode_der(value))


def _decode_kek(info: _KEKRecipientInfo) -> KEKRecipient:
    if info.version != 4:
        raise BadStructure(f"KEKRecipientInfo version {der.shown(info.version)}; 4 is the only one")
    if info.kekid.date is not None:
        raise BadStructure("a date beside the key_ID, which no sender writes")
    _check_wrapped(info.algorithm, info.encrypted_key)
    other = info.kekid.other
    attribute = None
    if other is not None:
        if other.identifier != oids.ID_QKD_KEY:
            raise BadStructure(f"unknown key attribute {other.identifier.dotted_string}")
        named = other.attribute
        attribute = QKDKeyAttribute(named.master_sae, named.slave_sae, named.kme_group)
    return KEKRecipient(info.kekid.key_identifier, info.encrypted_key, attribute)


def _decode_rsa(info: _KeyTransRecipientInfo) -> RSARecipient:
    certificate = decode_rid(info.rid)
    if info.version != (2 if certificate.ski else 0):
        raise BadStructure(f"KeyTransRecipientInfo version {der.shown(info.version)} does not fit its identifier")
    if der.whole(info.algorithm) not in _OAEP_AS_OTHERS_WRITE_IT:
        raise BadStructure("key transport is not RSAES-OAEP with SHA-256")
    if len(info.encrypted_key) not in RSA_OCTETS:
        raise BadStructure(f"{8 * len(info.encrypted_key)} bits of RSA; 4096 is the least")
    return RSARecipient(certificate, info.encrypted_key)


def _decode_kem(info: _KEMRecipientInfo) -> KEMRecipient:
    if info.version != 0:
        raise BadStructure(f"KEMRecipientInfo version {der.shown(info.version)}; 0 is the only one")
    oid = info.kem.algorithm.dotted_string
    kem = next((each for each in KEMS.values() if each.oid == oid), None)
    if kem is None:
        raise BadStructure(f"KEM {oid} is unknown")
    if len(info.kem_ciphertext) != kem.ciphertext_octets:
        raise BadStructure(f"a KEM ciphertext of {len(info.kem_ciphertext)} octets is not one of {kem.name}")
    if info.kdf.algorithm != oids.ID_HKDF_SHA256 or info.kek_length != KEK_OCTETS or info.ukm is not None:
        raise BadStructure("the key derivation is not HKDF-SHA256 to 32 octets without ukm")
    _check_wrapped(info.wrap, info.encrypted_key)
    certificate = decode_rid(info.rid)
    if kem.name in FURTHER_KEMS and len(certificate.ski) != KEY_IDENTIFIER_OCTETS:
        raise BadStructure(f"a key of {kem.name} is not named by {KEY_IDENTIFIER_OCTETS} octets")
    return KEMRecipient(certificate, info.kem_ciphertext, info.encrypted_key, kem.name)


def _check_wrapped(algorithm: _PlainAlgorithm, wrapped: bytes) -> None:
    if algorithm.algorithm != oids.ID_AES256_WRAP:
        raise BadStructure(f"key wrap {algorithm.algorithm.dotted_string} is not AES-256 wrap")
    if len(wrapped) != WRAPPED_CEK_OCTETS:
        raise BadStructure("the wrapped content key is not 40 octets")


def encode_rid(certificate: CertificateID) -> bytes:
    """RecipientIdentifier or SignerIdentifier, which are the same CHOICE (RFC 5652 6.2.1 and 5.3)."""
    if certificate.ski:
        return der.element(0x80, certificate.ski)
    return der.sequence(certificate.issuer, der.integer(certificate.serial))


def decode_rid(rid: IssuerAndSerial | bytes) -> CertificateID:
    """RecipientIdentifier or SignerIdentifier as a CertificateID; raises BadStructure for an empty key identifier."""
    if isinstance(rid, bytes):
        if not rid:
            raise BadStructure("an empty key identifier")
        return CertificateID(ski=rid)
    return CertificateID(issuer=der.whole(rid.issuer), serial=rid.serial)


def _oaep(hash_parameters: bytes) -> bytes:
    """RSAES-OAEP-params with SHA-256 and MGF1 with SHA-256; an empty label is the default (RFC 8017 A.2.1)."""
    sha256 = der.algorithm(oids.ID_SHA256, hash_parameters)
    mgf1 = der.algorithm(oids.ID_MGF1, sha256)
    return der.algorithm(oids.ID_RSAES_OAEP, der.sequence(der.element(0xA0, sha256), der.element(0xA1, mgf1)))


_KEK_VERSION = der.integer(4)
_QKD_KEY = der.oid(oids.ID_QKD_KEY)
_AES256_WRAP = der.algorithm(oids.ID_AES256_WRAP)
_OAEP = _oaep(der.NULL)
_OAEP_AS_OTHERS_WRITE_IT = frozenset({_OAEP, _oaep(b"")})
"""RFC 4055 requires NULL for the hash's parameters; some software omits them."""


# The structures, field by field as in the RFCs.


@asn1.sequence
class _KeyAttribute:
    master_sae: Annotated[str, asn1.Size(min=1, max=256)]
    slave_sae: Annotated[str, asn1.Size(min=1, max=256)]
    kme_group: Annotated[str, asn1.Size(min=1, max=256)]


@asn1.sequence
class _OtherKeyAttribute:
    identifier: ObjectIdentifier
    attribute: _KeyAttribute


@asn1.sequence
class _KEKIdentifier:
    key_identifier: Annotated[bytes, asn1.Size(min=1, max=1024)]
    date: asn1.GeneralizedTime | None
    other: _OtherKeyAttribute | None


@asn1.sequence
class _PlainAlgorithm:
    algorithm: ObjectIdentifier


@asn1.sequence
class _KEKRecipientInfo:
    version: int
    kekid: _KEKIdentifier
    algorithm: _PlainAlgorithm
    encrypted_key: bytes


@asn1.sequence
class IssuerAndSerial:
    """IssuerAndSerialNumber (RFC 5652 10.2.4); the issuer is left unparsed."""

    issuer: asn1.TLV
    serial: int


@asn1.sequence
class _KeyTransRecipientInfo:
    version: int
    rid: IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    algorithm: asn1.TLV
    encrypted_key: bytes


@asn1.sequence
class _KEMRecipientInfo:
    version: int
    rid: IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    kem: _PlainAlgorithm
    kem_ciphertext: bytes
    kdf: _PlainAlgorithm
    kek_length: int
    ukm: Annotated[bytes | None, asn1.Explicit(0)]
    wrap: _PlainAlgorithm
    encrypted_key: bytes


@asn1.sequence
class _OtherRecipientInfo:
    kind: ObjectIdentifier
    value: asn1.TLV


@asn1.sequence
class _RecipientInfos:
    infos: asn1.SetOf[
        _KeyTransRecipientInfo
        | Annotated[_KEKRecipientInfo, asn1.Implicit(2)]
        | Annotated[_OtherRecipientInfo, asn1.Implicit(4)]
    ]
