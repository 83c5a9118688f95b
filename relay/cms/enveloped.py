"""AuthEnvelopedData: recipients, encrypted content, and the tag that authenticates it.
Standard: RFC 5083; content encryption is AES-256-GCM (RFC 5084) or the one-time pad of relay/FORMAT.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from relay.cms import ber, der, oids, recipients
from relay.cms.recipients import Recipient
from relay.errors import BadStructure

TAG_OCTETS = 16
NONCE_OCTETS = 12
MAX_SEGMENTS = 65_536
MAX_PARAMETERS_OCTETS = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GCMContent:
    """AES-256-GCM with a nonce of 12 octets and a tag of 16 (RFC 5084)."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class PadSegment:
    """The first `length` octets of the key named `key_ID` are the next octets of the pad."""

    key_ID: str
    length: int


@dataclass(frozen=True, slots=True)
class PadContent:
    """One-time pad and one-time Poly1305; everything here is under the tag.

    `compression` is 0 (none) or 1 (DEFLATE, RFC 1951).
    """

    master_sae: str
    slave_sae: str
    kme_group: str
    compression: int
    segments: tuple[PadSegment, ...]

    def encode(self) -> bytes:
        """OneTimePadParameters as DER: what is authenticated beside the ciphertext."""
        octets: bytes = asn1.encode_der(
            _PadParameters(
                version=0,
                master_sae=self.master_sae,
                slave_sae=self.slave_sae,
                kme_group=self.kme_group,
                compression=self.compression,
                segments=[_PadSegment(key_id=each.key_ID, length=each.length) for each in self.segments],
            )
        )
        return octets


@dataclass(frozen=True, slots=True)
class AuthEnveloped:
    """One AuthEnvelopedData; `tag` is 16 octets."""

    recipients: tuple[Recipient, ...]
    content: GCMContent | PadContent
    ciphertext: bytes = field(repr=False)
    tag: bytes


def encode_enveloped(enveloped: AuthEnveloped) -> bytes:
    """The ContentInfo around it, as DER."""
    data = der.sequence(
        der.integer(0),
        der.set_of(recipients.encode(recipient) for recipient in enveloped.recipients),
        der.sequence(
            der.oid(oids.ID_DATA),
            _content_algorithm(enveloped.content),
            der.Element(0x80, enveloped.ciphertext),
        ),
        der.Element(der.OCTET_STRING, enveloped.tag),
    )
    return der.sequence(der.oid(oids.ID_AUTH_ENVELOPED_DATA), der.Element(0xA0, data)).octets()


def decode_enveloped(octets: bytes) -> AuthEnveloped:
    """The structures that the levels accept; anything else is BadStructure, before any key is asked for.

    DER, after one pass where other software wrote BER. Refused are trailing data, other versions and
    algorithms, tags that are not 16 octets, and attributes (our senders write none, RFC 5083 2.1).
    """
    if not ber.is_definite(octets):
        octets = ber.to_der(octets)
    kind = der.parse(_AnyContentInfo, octets, "not CMS").content_type
    if kind != oids.ID_AUTH_ENVELOPED_DATA:
        raise BadStructure(f"content type {kind.dotted_string} is not authenticated enveloped data")
    data = der.parse(_EnvelopedContentInfo, octets, "not AuthEnvelopedData as we accept it").content
    if data.version != 0:
        raise BadStructure(f"AuthEnvelopedData version {der.shown(data.version)}; 0 is the only one")
    if data.encrypted.content_type != oids.ID_DATA:
        raise BadStructure(f"encrypted content type {data.encrypted.content_type.dotted_string} is not data")
    if len(data.mac) != TAG_OCTETS:
        raise BadStructure("the authentication tag is not 16 octets")
    return AuthEnveloped(
        recipients=recipients.decode_all(data.recipient_infos),
        content=_decode_algorithm(data.encrypted.algorithm),
        ciphertext=data.encrypted.content,
        tag=data.mac,
    )


def _content_algorithm(content: GCMContent | PadContent) -> bytes:
    if isinstance(content, PadContent):
        return der.algorithm(oids.ID_ONE_TIME_PAD, content.encode())
    parameters = der.sequence(der.Element(der.OCTET_STRING, content.nonce), der.integer(TAG_OCTETS))
    return der.algorithm(oids.ID_AES256_GCM, parameters)


def _decode_algorithm(algorithm: _AnyAlgorithm) -> GCMContent | PadContent:
    if algorithm.algorithm == oids.ID_AES256_GCM:
        gcm = der.parse_tlv(_GCMParameters, algorithm.parameters, "GCM parameters")
        if gcm.icv_length != TAG_OCTETS:
            raise BadStructure("the authentication tag is not 16 octets")
        if len(gcm.nonce) != NONCE_OCTETS:
            raise BadStructure("the nonce is not 12 octets")
        return GCMContent(gcm.nonce)
    if algorithm.algorithm == oids.ID_ONE_TIME_PAD:
        if len(algorithm.parameters.data) > MAX_PARAMETERS_OCTETS:
            raise BadStructure("the list of pad segments is too long")
        for fields in der.children(algorithm.parameters.data, 6)[5:]:
            der.check_number(fields, MAX_SEGMENTS)
        pad = der.parse_tlv(_PadParameters, algorithm.parameters, "one-time pad parameters")
        return _decode_pad(pad)
    raise BadStructure(
        f"content encryption {algorithm.algorithm.dotted_string} is neither AES-256-GCM nor one-time pad"
    )


def _decode_pad(pad: _PadParameters) -> PadContent:
    if pad.version != 0:
        raise BadStructure(f"one-time pad version {der.shown(pad.version)}; 0 is the only one")
    if pad.compression not in (0, 1):
        raise BadStructure(f"compression {der.shown(pad.compression)} is unknown")
    if not 1 <= len(pad.segments) <= MAX_SEGMENTS:
        raise BadStructure(f"the pad has {len(pad.segments)} segments; 1 to {MAX_SEGMENTS} are accepted")
    segments = tuple(PadSegment(each.key_id, each.length) for each in pad.segments)
    if any(each.length < 1 for each in segments):
        raise BadStructure("a segment of the pad is empty")
    if not all(each.key_ID.isprintable() for each in segments):
        raise BadStructure("a key_ID is not 1 to 256 printable characters")
    if len({each.key_ID for each in segments}) != len(segments):
        raise BadStructure("the pad names one key twice")
    return PadContent(pad.master_sae, pad.slave_sae, pad.kme_group, pad.compression, segments)


# The structures, field by field as in the RFCs. A field of type TLV is looked at before it is parsed.


@asn1.sequence
class _GCMParameters:
    nonce: bytes
    icv_length: Annotated[int, asn1.Default(12)]


@asn1.sequence
class _PadSegment:
    key_id: Annotated[str, asn1.Size(min=1, max=256)]
    length: int


@asn1.sequence
class _PadParameters:
    version: int
    master_sae: Annotated[str, asn1.Size(min=1, max=256)]
    slave_sae: Annotated[str, asn1.Size(min=1, max=256)]
    kme_group: Annotated[str, asn1.Size(min=1, max=256)]
    compression: int
    segments: list[_PadSegment]


@asn1.sequence
class _AnyAlgorithm:
    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _EncryptedContentInfo:
    content_type: ObjectIdentifier
    algorithm: _AnyAlgorithm
    content: Annotated[bytes, asn1.Implicit(0)]


@asn1.sequence
class _AuthEnvelopedData:
    version: int
    recipient_infos: asn1.TLV
    encrypted: _EncryptedContentInfo
    mac: bytes


@asn1.sequence
class _EnvelopedContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[_AuthEnvelopedData, asn1.Explicit(0)]


@asn1.sequence
class _AnyContentInfo:
    content_type: ObjectIdentifier
    content: Annotated[asn1.TLV, asn1.Explicit(0)]
