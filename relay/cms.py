"""Encodes and decodes the CMS structures of sealed messages, as DER; no cryptography, no I/O.
Standard: RFC 5652 (CMS), RFC 5083 (AuthEnvelopedData), RFC 5084 (AES-GCM in CMS), RFC 3565 (AES key wrap).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeVar

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure

ID_DATA = ObjectIdentifier("1.2.840.113549.1.7.1")
ID_AUTH_ENVELOPED_DATA = ObjectIdentifier("1.2.840.113549.1.9.16.1.23")
ID_AES256_GCM = ObjectIdentifier("2.16.840.1.101.3.4.1.46")
ID_AES256_WRAP = ObjectIdentifier("2.16.840.1.101.3.4.1.45")
ID_QKD_KEY = ObjectIdentifier("2.25.70870596422438752823789839143307439983")
"""Our OtherKeyAttribute: whose key a key_ID names (UUID 35512e2d-8ec7-4c9b-9e58-ae021d05ef6f)."""

TAG_OCTETS = 16
NONCE_OCTETS = 12
WRAPPED_CEK_OCTETS = 40
MAX_RECIPIENTS_OCTETS = 64 * 1024
"""All recipientInfos together; more is refused before it is parsed."""
MAX_RECIPIENTS = 100


@dataclass(frozen=True, slots=True)
class QKDKeyAttribute:
    """Where a QKD key comes from: the SAE that sealed, the SAE that opens, the KME group that issued it."""

    master_sae: str
    slave_sae: str
    kme_group: str


@dataclass(frozen=True, slots=True)
class KEKRecipient:
    """One KEKRecipientInfo (RFC 5652, 6.2.3): a content key wrapped under a key that both sides hold.

    `key_identifier` is the key_ID in UTF-8, `wrapped_cek` 40 octets; `attribute` is None in messages of
    other software.
    """

    key_identifier: bytes
    wrapped_cek: bytes
    attribute: QKDKeyAttribute | None = None


@dataclass(frozen=True, slots=True)
class GCMEnveloped:
    """AuthEnvelopedData with AES-256-GCM content (RFC 5083, RFC 5084): `nonce` 12 octets, `tag` 16 octets."""

    recipients: tuple[KEKRecipient, ...]
    nonce: bytes
    ciphertext: bytes
    tag: bytes


def encode(enveloped: GCMEnveloped) -> bytes:
    """The ContentInfo around it, as DER."""
    content = _AuthEnvelopedData(
        version=0,
        recipient_infos=asn1.SetOf([_recipient_info(recipient) for recipient in enveloped.recipients]),
        encrypted=_EncryptedContentInfo(
            content_type=ID_DATA,
            algorithm=_GCMAlgorithm(
                algorithm=ID_AES256_GCM,
                parameters=_GCMParameters(nonce=enveloped.nonce, icv_length=TAG_OCTETS),
            ),
            content=enveloped.ciphertext,
        ),
        mac=enveloped.tag,
    )
    return asn1.encode_der(_ContentInfo(content_type=ID_AUTH_ENVELOPED_DATA, content=content))


def decode(der: bytes) -> GCMEnveloped:
    """The one structure that level aes accepts; anything else is BadStructure, before any key is asked for.

    Strict DER; refused are trailing data, other versions, other algorithms, tags that are not 16 octets, and
    attributes (our senders write none, RFC 5083 2.1).
    """
    kind = _parse(_AnyContentInfo, der, "not CMS").content_type
    if kind != ID_AUTH_ENVELOPED_DATA:
        raise BadStructure(f"content type {kind.dotted_string} is not authenticated enveloped data")
    data = _parse(_AnyEnveloped, der, "not AuthEnvelopedData as we accept it").content
    algorithm = data.encrypted.algorithm
    if data.version != 0:
        raise BadStructure(f"AuthEnvelopedData version {data.version}; 0 is the only one")
    if algorithm.algorithm != ID_AES256_GCM:
        raise BadStructure(f"content encryption {algorithm.algorithm.dotted_string} is not AES-256-GCM")
    if data.encrypted.content_type != ID_DATA:
        raise BadStructure(f"encrypted content type {data.encrypted.content_type.dotted_string} is not data")
    try:
        parameters = algorithm.parameters.parse(_GCMParameters)
    except ValueError as error:
        raise BadStructure(f"GCM parameters: {error}") from error
    if (parameters.icv_length, len(data.mac)) != (TAG_OCTETS, TAG_OCTETS):
        raise BadStructure("the authentication tag is not 16 octets")
    if len(parameters.nonce) != NONCE_OCTETS:
        raise BadStructure("the nonce is not 12 octets")
    return GCMEnveloped(
        recipients=_recipients(data.recipient_infos),
        nonce=parameters.nonce,
        ciphertext=data.encrypted.content,
        tag=data.mac,
    )


def _recipients(infos: asn1.TLV) -> tuple[KEKRecipient, ...]:
    if infos.tag_bytes != b"\x31" or not 0 < len(infos.data) <= MAX_RECIPIENTS_OCTETS:
        raise BadStructure(f"recipientInfos are not a SET of 1 to {MAX_RECIPIENTS_OCTETS} octets")
    wrapped = _tlv(0x30, _tlv(0x31, bytes(infos.data)))
    parsed = _parse(_RecipientInfos, wrapped, "recipientInfos other than KEKRecipientInfo").infos.as_list()
    if len(parsed) > MAX_RECIPIENTS:
        raise BadStructure(f"more than {MAX_RECIPIENTS} recipientInfos")
    return tuple(_recipient(info) for info in parsed)


def _tlv(tag: int, value: bytes) -> bytes:
    """One DER element (X.690, 10.1: the shortest length)."""
    size = len(value)
    if size < 0x80:
        return bytes((tag, size)) + value
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + value


def _recipient_info(recipient: KEKRecipient) -> _KEKRecipientInfo:
    attribute = recipient.attribute
    other = None
    if attribute is not None:
        value = _QKDKeyAttribute(
            master_sae=attribute.master_sae, slave_sae=attribute.slave_sae, kme_group=attribute.kme_group
        )
        other = _OtherKeyAttribute(identifier=ID_QKD_KEY, attribute=value)
    return _KEKRecipientInfo(
        version=4,
        kekid=_KEKIdentifier(key_identifier=recipient.key_identifier, date=None, other=other),
        algorithm=_WrapAlgorithm(algorithm=ID_AES256_WRAP),
        encrypted_key=recipient.wrapped_cek,
    )


def _recipient(info: _KEKRecipientInfo) -> KEKRecipient:
    if info.version != 4:
        raise BadStructure(f"KEKRecipientInfo version {info.version}; 4 is the only one")
    if info.algorithm.algorithm != ID_AES256_WRAP:
        raise BadStructure(f"key wrap {info.algorithm.algorithm.dotted_string} is not AES-256 wrap")
    if len(info.encrypted_key) != WRAPPED_CEK_OCTETS:
        raise BadStructure("the wrapped content key is not 40 octets")
    other = info.kekid.other
    if other is not None and other.identifier != ID_QKD_KEY:
        raise BadStructure(f"unknown key attribute {other.identifier.dotted_string}")
    attribute = None
    if other is not None:
        named = other.attribute
        attribute = QKDKeyAttribute(named.master_sae, named.slave_sae, named.kme_group)
    return KEKRecipient(info.kekid.key_identifier, info.encrypted_key, attribute)


T = TypeVar("T")


def _parse(structure: type[T], der: bytes, what: str) -> T:
    try:
        return asn1.decode_der(structure, der)
    except (ValueError, OverflowError) as error:
        raise BadStructure(f"{what}: {error}") from error


# The structures, field by field as in the RFCs. A field of type TLV is looked at before it is parsed.


@asn1.sequence
class _QKDKeyAttribute:
    master_sae: Annotated[str, asn1.Size(min=1, max=256)]
    slave_sae: Annotated[str, asn1.Size(min=1, max=256)]
    kme_group: Annotated[str, asn1.Size(min=1, max=256)]


@asn1.sequence
class _OtherKeyAttribute:
    identifier: ObjectIdentifier
    attribute: _QKDKeyAttribute


@asn1.sequence
class _KEKIdentifier:
    key_identifier: Annotated[bytes, asn1.Size(min=1, max=1024)]
    date: asn1.GeneralizedTime | None
    other: _OtherKeyAttribute | None


@asn1.sequence
class _WrapAlgorithm:
    algorithm: ObjectIdentifier


@asn1.sequence
class _KEKRecipientInfo:
    version: int
    kekid: _KEKIdentifier
    algorithm: _WrapAlgorithm
    encrypted_key: bytes


@asn1.sequence
class _RecipientInfos:
    infos: asn1.SetOf[Annotated[_KEKRecipientInfo, asn1.Implicit(2)]]


@asn1.sequence
class _GCMParameters:
    nonce: bytes
    icv_length: Annotated[int, asn1.Default(12)]


@asn1.sequence
class _GCMAlgorithm:
    algorithm: ObjectIdentifier
    parameters: _GCMParameters


@asn1.sequence
class _EncryptedContentInfo:
    content_type: ObjectIdentifier
    algorithm: _GCMAlgorithm
    content: Annotated[bytes, asn1.Implicit(0)]


@asn1.sequence
class _AuthEnvelopedData:
    version: int
    recipient_infos: asn1.SetOf[Annotated[_KEKRecipientInfo, asn1.Implicit(2)]]
    encrypted: _EncryptedContentInfo
    mac: bytes


@asn1.sequence
class _ContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_AuthEnvelopedData, asn1.Explicit(0)]


@asn1.sequence
class _AnyAlgorithm:
    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _AnyEncryptedContentInfo:
    content_type: ObjectIdentifier
    algorithm: _AnyAlgorithm
    content: Annotated[bytes, asn1.Implicit(0)]


@asn1.sequence
class _AnyAuthEnvelopedData:
    version: int
    recipient_infos: asn1.TLV
    encrypted: _AnyEncryptedContentInfo
    mac: bytes


@asn1.sequence
class _AnyEnveloped:
    content_type: ObjectIdentifier
    content: Annotated[_AnyAuthEnvelopedData, asn1.Explicit(0)]


@asn1.sequence
class _AnyContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[asn1.TLV, asn1.Explicit(0)]
