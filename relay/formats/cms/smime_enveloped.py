"""EnvelopedData and AuthEnvelopedData as other mail programs and gateways write them; reading only, no cryptography.
Standard: RFC 5652 6 (EnvelopedData), RFC 5083 and RFC 5084 (AuthEnvelopedData, AES-GCM), RFC 3565 (AES-CBC), RFC 3560
(RSAES-OAEP), RFC 5753 (ECDH).

enveloped.py reads what relays of this kind write, and is stricter. Here any number of recipients up to a limit may be
of kinds that are not understood, since they are for somebody else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure
from relay.formats.cms import ber, der, oids
from relay.formats.cms.der import asn1
from relay.formats.cms.recipients import CertificateID, IssuerAndSerial, decode_rid

ID_ENVELOPED_DATA = ObjectIdentifier("1.2.840.113549.1.7.3")
MAX_RECIPIENTS = 500
"""Maximum number of RecipientInfos, and of keys within one of them."""
MAX_RECIPIENTS_OCTETS = 512 * 1024
"""Maximum size of all RecipientInfos, in octets; an RSA key of 4096 bits needs some 700."""
MAX_ATTRIBUTES_OCTETS = 64 * 1024
TAG_OCTETS = range(12, 17)
"""Lengths of a GCM tag (RFC 5084, 3.2)."""


@dataclass(frozen=True, slots=True)
class KeyTransport:
    """A content key encrypted to this certificate's RSA key (RFC 5652, 6.2.1).

    `oaep` has the names of the hashes of RSAES-OAEP and of its MGF1; None is RSAES-PKCS1-v1_5.
    """

    certificate: CertificateID
    encrypted_key: bytes
    oaep: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class KeyAgreement:
    """A content key wrapped under an ephemeral-static ECDH secret with this certificate's key (RFC 5753, 3.1).

    `point` is the ephemeral public key. `hash` and `shared_info` are for the X9.63 key derivation. `kek_octets` is the
    length of the key that it makes, for AES key wrap.
    """

    certificate: CertificateID
    encrypted_key: bytes
    point: bytes
    hash: str
    shared_info: bytes
    kek_octets: int


OthersRecipient = KeyTransport | KeyAgreement


@dataclass(frozen=True, slots=True)
class OthersEnveloped:
    """Encrypted content, and those of its recipients that are understood.

    `nonce` is that of GCM or the initialization vector of CBC. `tag` and `attributes` (authenticated, DER of the SET)
    are b"" for CBC, which authenticates nothing.
    """

    recipients: tuple[OthersRecipient, ...]
    mode: Literal["cbc", "gcm"]
    key_octets: int
    nonce: bytes
    ciphertext: bytes = field(repr=False)
    tag: bytes = b""
    attributes: bytes = b""


def decode_others_enveloped(octets: bytes) -> OthersEnveloped:
    """Decodes EnvelopedData or AuthEnvelopedData in BER or DER. Raises BadStructure."""
    octets = ber.to_der(octets)
    kind = der.parse(_OthersAnyContentInfo, octets, "not CMS").content_type
    if kind == ID_ENVELOPED_DATA:
        data = der.parse(_OthersEnvelopedContentInfo, octets, "EnvelopedData").content
        return _decoded(data.recipient_infos, data.encrypted)
    if kind == oids.ID_AUTH_ENVELOPED_DATA:
        sealed = der.parse(_OthersAuthEnvelopedContentInfo, octets, "AuthEnvelopedData").content
        attributes = b"".join(map(der.whole, sealed.attributes or ()))
        return _decoded(sealed.recipient_infos, sealed.encrypted, sealed.mac, attributes)
    raise BadStructure(f"content type {kind.dotted_string} is not enveloped data")


def _decoded(
    infos: asn1.TLV, encrypted: _OthersEncryptedContentInfo, mac: bytes | None = None, attributes: bytes = b""
) -> OthersEnveloped:
    if encrypted.content_type != oids.ID_DATA:
        raise BadStructure(f"encrypted content type {encrypted.content_type.dotted_string} is not data")
    if len(attributes) > MAX_ATTRIBUTES_OCTETS:
        raise BadStructure("authenticated attributes are too long")
    name, parameters = algorithm(encrypted.algorithm)
    recipients = _recipients(infos)
    if mac is None and name in _CBC_KEYS:
        vector = der.parse(bytes, parameters, "initialization vector")
        if len(vector) != 16 or not encrypted.content or len(encrypted.content) % 16:
            raise BadStructure("the content is not whole blocks of AES-CBC")
        return OthersEnveloped(recipients, "cbc", _CBC_KEYS[name], vector, encrypted.content)
    if mac is not None and name in _GCM_KEYS:
        gcm = der.parse(_OthersGCMParameters, parameters, "GCMParameters")
        if len(gcm.nonce) != 12 or gcm.icv_length not in TAG_OCTETS or len(mac) != gcm.icv_length:
            raise BadStructure("nonce or tag of AES-GCM has another length")
        signed = der.element(der.SET, attributes) if attributes else b""
        return OthersEnveloped(recipients, "gcm", _GCM_KEYS[name], gcm.nonce, encrypted.content, mac, signed)
    raise BadStructure(f"content encryption {name} is not one of AES-CBC and AES-GCM")


def _recipients(infos: asn1.TLV) -> tuple[OthersRecipient, ...]:
    """The recipients that are understood. Raises BadStructure for too many of any kind."""
    if infos.tag_bytes != b"\x31" or not 0 < len(infos.data) <= MAX_RECIPIENTS_OCTETS:
        raise BadStructure(f"recipientInfos are not a SET of 1 to {MAX_RECIPIENTS_OCTETS} octets")
    der.children(bytes(infos.data), MAX_RECIPIENTS, kept=False)
    each = der.parse(_OthersRecipientInfos, der.sequence(der.whole(infos)), "recipientInfos").infos.as_list()
    understood: list[OthersRecipient] = []
    for info in each:
        if info.tag_bytes == b"\x30":
            transport = _key_transport(der.parse(_OthersKeyTransRecipientInfo, info, "KeyTransRecipientInfo"))
            understood += [transport] if transport is not None else []
        elif info.tag_bytes == b"\xa1":
            sequence = der.retagged(der.SEQUENCE, der.whole(info))
            understood += _key_agreements(der.parse(_OthersKeyAgreeRecipientInfo, sequence, "KeyAgreeRecipientInfo"))
            if len(understood) > MAX_RECIPIENTS:
                raise BadStructure(f"more than {MAX_RECIPIENTS} keys of recipients")
    return tuple(understood)


def _key_transport(info: _OthersKeyTransRecipientInfo) -> KeyTransport | None:
    name, parameters = algorithm(info.algorithm)
    if name == _RSA_ENCRYPTION:
        return KeyTransport(decode_rid(info.rid), info.encrypted_key)
    if name == oids.ID_RSAES_OAEP.dotted_string:
        oaep = der.parse(_OthersOAEPParameters, parameters, "RSAES-OAEP-params")
        hashes = hash_of(oaep.hash, "1.3.14.3.2.26"), mgf1_hash(oaep.mask)
        if oaep.label is None and hashes[0] and hashes[1]:
            return KeyTransport(decode_rid(info.rid), info.encrypted_key, (hashes[0], hashes[1]))
    return None


def _key_agreements(info: _OthersKeyAgreeRecipientInfo) -> list[KeyAgreement]:
    name, parameters = algorithm(info.algorithm)
    if name not in _ECDH_HASHES or info.originator.tag_bytes != b"\xa0":
        return []
    wrap = der.parse(_OthersParts, der.sequence(parameters), "KeyWrapAlgorithm").parts
    wrap_name, _ = algorithm(wrap)
    if wrap_name not in _WRAP_KEYS:
        return []
    inside = bytes(info.originator.data)
    if inside[:1] != b"\xa1":  # a certificate's key, in place of an ephemeral one
        return []
    key = der.parse(_OthersOriginatorKey, der.retagged(der.SEQUENCE, inside), "OriginatorPublicKey")
    kek_octets = _WRAP_KEYS[wrap_name]
    ukm = der.element(0xA0, der.element(der.OCTET_STRING, info.ukm)) if info.ukm is not None else b""
    length = der.element(0xA2, der.element(der.OCTET_STRING, (8 * kek_octets).to_bytes(4)))
    shared_info = der.sequence(parameters, ukm, length)  # ECC-CMS-SharedInfo (RFC 5753, 7.2)
    return [
        KeyAgreement(_agreement_rid(each.rid), each.encrypted_key, key.point.as_bytes(), _ECDH_HASHES[name],
                     shared_info, kek_octets)
        for each in info.keys
    ]  # fmt: skip


def _agreement_rid(rid: IssuerAndSerial | _OthersRecipientKeyIdentifier) -> CertificateID:
    return decode_rid(rid.key_identifier if isinstance(rid, _OthersRecipientKeyIdentifier) else rid)


def algorithm(parts: list[asn1.TLV]) -> tuple[str, bytes]:
    """The name of an AlgorithmIdentifier, dotted, and its parameters (DER), b"" if absent. Raises BadStructure."""
    if not 0 < len(parts) <= 2:
        raise BadStructure("an AlgorithmIdentifier of other than one or two elements")
    name = der.parse(ObjectIdentifier, parts[0], "algorithm").dotted_string
    return name, der.whole(parts[1]) if len(parts) == 2 else b""


def hash_of(parts: list[asn1.TLV] | None, default: str) -> str:
    """The name of a hash in `cryptography`, "" for an unknown one; `default` is the dotted name of an absent one."""
    return HASHES.get(algorithm(parts)[0] if parts is not None else default, "")


def mgf1_hash(parts: list[asn1.TLV] | None) -> str:
    """The hash of a MaskGenAlgorithm (RFC 8017, A.2), "" for an unknown one."""
    if parts is None:
        return "sha1"
    name, parameters = algorithm(parts)
    if name != oids.ID_MGF1.dotted_string:
        return ""
    return hash_of(der.parse(_OthersParts, der.sequence(parameters), "MGF1").parts, "")


HASHES = {
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
}
"""Names of hashes. SHA-1 is for OAEP and key derivation, which do not need its resistance to collisions."""
_ECDH_HASHES = {
    "1.3.133.16.840.63.0.2": "sha1",
    "1.3.132.1.11.0": "sha224",
    "1.3.132.1.11.1": "sha256",
    "1.3.132.1.11.2": "sha384",
    "1.3.132.1.11.3": "sha512",
}
"""dhSinglePass-stdDH-sha*kdf-scheme (RFC 5753, 7.1.4)."""
_WRAP_KEYS = {f"2.16.840.1.101.3.4.1.{arc}": octets for arc, octets in ((5, 16), (25, 24), (45, 32))}
_CBC_KEYS = {f"2.16.840.1.101.3.4.1.{arc}": octets for arc, octets in ((2, 16), (22, 24), (42, 32))}
_GCM_KEYS = {f"2.16.840.1.101.3.4.1.{arc}": octets for arc, octets in ((6, 16), (26, 24), (46, 32))}
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"


# The structures, field by field as in the RFCs. An AlgorithmIdentifier is a list of its elements.


@asn1.sequence
class _OthersParts:
    parts: list[asn1.TLV]


@asn1.sequence
class _OthersGCMParameters:
    nonce: bytes
    icv_length: Annotated[int, asn1.Default(12)]


@asn1.sequence
class _OthersOAEPParameters:
    hash: Annotated[list[asn1.TLV] | None, asn1.Explicit(0)]
    mask: Annotated[list[asn1.TLV] | None, asn1.Explicit(1)]
    label: Annotated[list[asn1.TLV] | None, asn1.Explicit(2)]


@asn1.sequence
class _OthersKeyTransRecipientInfo:
    version: int
    rid: IssuerAndSerial | Annotated[bytes, asn1.Implicit(0)]
    algorithm: list[asn1.TLV]
    encrypted_key: bytes


@asn1.sequence
class _OthersRecipientKeyIdentifier:
    key_identifier: bytes
    date: asn1.GeneralizedTime | None
    other: list[asn1.TLV] | None


@asn1.sequence
class _OthersRecipientEncryptedKey:
    rid: IssuerAndSerial | Annotated[_OthersRecipientKeyIdentifier, asn1.Implicit(0)]
    encrypted_key: bytes


@asn1.sequence
class _OthersOriginatorKey:
    algorithm: list[asn1.TLV]
    point: asn1.BitString


@asn1.sequence
class _OthersKeyAgreeRecipientInfo:
    version: int
    originator: asn1.TLV
    ukm: Annotated[bytes | None, asn1.Explicit(1)]
    algorithm: list[asn1.TLV]
    keys: list[_OthersRecipientEncryptedKey]


@asn1.sequence
class _OthersRecipientInfos:
    infos: asn1.SetOf[asn1.TLV]


@asn1.sequence
class _OthersEncryptedContentInfo:
    content_type: ObjectIdentifier
    algorithm: list[asn1.TLV]
    content: Annotated[bytes, asn1.Implicit(0)]


@asn1.sequence
class _OthersEnvelopedData:
    version: int
    originator: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    recipient_infos: asn1.TLV
    encrypted: _OthersEncryptedContentInfo
    unprotected: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]


@asn1.sequence
class _OthersEnvelopedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_OthersEnvelopedData, asn1.Explicit(0)]


@asn1.sequence
class _OthersAuthEnvelopedData:
    version: int
    originator: Annotated[list[asn1.TLV] | None, asn1.Implicit(0)]
    recipient_infos: asn1.TLV
    encrypted: _OthersEncryptedContentInfo
    attributes: Annotated[list[asn1.TLV] | None, asn1.Implicit(1)]
    mac: bytes
    unauthenticated: Annotated[list[asn1.TLV] | None, asn1.Implicit(2)]


@asn1.sequence
class _OthersAuthEnvelopedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_OthersAuthEnvelopedData, asn1.Explicit(0)]


@asn1.sequence
class _OthersAnyContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[asn1.TLV, asn1.Explicit(0)]
