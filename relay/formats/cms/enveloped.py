"""AuthEnvelopedData: recipients, encrypted content, and the tag that authenticates it.
Standard: RFC 5083; AES-256-GCM (RFC 5084), and the one-time pad of relay/FORMAT.md.

Another content encryption is a class, its name in `Content`, and a case in `encode_content` and in `decode_content`.
mypy reports a case missing in encoding, and a test one missing in decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from operator import lt
from typing import Annotated, assert_never

from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure
from relay.formats.characters import casefold, is_printable
from relay.formats.cms import ber, der, oids, recipients
from relay.formats.cms.der import asn1
from relay.formats.cms.recipients import Recipient
from relay.formats.pieces import Octets, Pieces, part_of

FINGERPRINT_OCTETS = 32
TAG_OCTETS = 16
NONCE_OCTETS = 12
PAD_VERSION = 1
MIN_PAD_KEYS, MAX_PAD_KEYS = 2, 65_536
MAX_PARAMETERS_OCTETS = 16 * 1024 * 1024
_MIN_KEY_ID_OCTETS = 3
"""Minimum length of a key_ID in DER; the strict parser stops at one that is shorter."""


@dataclass(frozen=True, slots=True)
class GCMContent:
    """AES-256-GCM with a nonce of 12 octets and a tag of 16 (RFC 5084)."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class PadContent:
    """One-time pad and one-time Poly1305; the tag authenticates everything here.

    `compression` is 0 (none) or 1 (DEFLATE, RFC 1951). `key_IDs` ascend as UTF-8 octets, without duplicates: this
    determines the two keys of the tag, and nobody can exchange them.
    """

    master_sae: str
    slave_sae: str
    kme_group: str
    compression: int
    key_IDs: tuple[str, ...]

    def encode(self) -> bytes:
        """OneTimePadParameters as DER, authenticated with the ciphertext."""
        octets: bytes = asn1.encode_der(
            _PadParameters(
                version=PAD_VERSION,
                master_sae=self.master_sae,
                slave_sae=self.slave_sae,
                kme_group=self.kme_group,
                compression=self.compression,
                key_ids=list(self.key_IDs),
            )
        )
        return octets


Content = GCMContent | PadContent


@dataclass(frozen=True, slots=True)
class AuthEnveloped:
    """One AuthEnvelopedData; `tag` is 16 octets."""

    recipients: tuple[Recipient, ...]
    content: Content
    ciphertext: bytes = field(repr=False)
    tag: bytes

    def fingerprint(self) -> bytes:
        """The binding of a quantum key: SHA-256 of the DER of encryptedContentInfo and mac, 32 octets.

        Recipients are left out: otherwise re-encoding them would make a second message of one.
        """
        digest = hashlib.sha256(b"".join(_before_ciphertext(self.content, len(self.ciphertext))))
        digest.update(self.ciphertext)
        digest.update(_BEFORE_TAG + self.tag)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a received quantum key may open: one ciphertext at one level, any number of times.

    `fingerprint` (32 octets) is that of the ciphertext. `most` is the total number of ciphertexts that the key may
    open. It is more than one only at level aes, where a peer's key may wrap several messages.
    """

    level: str
    fingerprint: bytes
    most: int = 1

    def trouble(self, level: str | None, bound_to: bytes | None) -> str:
        """Why a key that opened these at this level (None: nothing yet) may not open this one, or ""."""
        if level is None or not bound_to:
            return ""
        if level != self.level:
            return f"it has opened something at level {level}"
        if self.opened_before(bound_to) or len(bound_to) // FINGERPRINT_OCTETS < self.most:
            return ""
        return "it has opened another message"

    def opened_before(self, bound_to: bytes | None) -> bool:
        """Whether this ciphertext is among these."""
        known = bound_to or b""
        starts = range(0, len(known), FINGERPRINT_OCTETS)
        return any(known[start : start + FINGERPRINT_OCTETS] == self.fingerprint for start in starts)


def encode_enveloped(enveloped: AuthEnveloped) -> bytes:
    """The ContentInfo around it, as DER."""

    def encrypted() -> Generator[Octets, None, bytes]:
        yield enveloped.ciphertext
        return enveloped.tag

    size = len(enveloped.ciphertext)
    return bytes(enveloped_pieces(enveloped.recipients, enveloped.content, size, encrypted))


def enveloped_pieces(
    to: Sequence[Recipient] | bytes,
    content: Content,
    size: int,
    encrypted: Callable[[], Generator[Octets, None, bytes]],
) -> Pieces:
    """The ContentInfo, as DER, around a ciphertext of `size` octets, which is made while the pieces are consumed.

    `encrypted` yields the ciphertext and returns the tag. `to` in DER are recipientInfos of other kinds.
    """
    infos = to if isinstance(to, bytes) else der.set_of(map(recipients.encode, to))
    more = size + len(_BEFORE_TAG) + TAG_OCTETS
    data = der.around(der.SEQUENCE, [_VERSION, infos, *_before_ciphertext(content, size)], more)
    before = b"".join(der.around(der.SEQUENCE, [_AUTH_ENVELOPED_DATA, *der.around(0xA0, data, more)], more))

    def made() -> Generator[Octets]:
        yield from part_of(before)
        tag = yield from encrypted()
        yield _BEFORE_TAG + tag

    return Pieces(len(before) + more, made)


def decode_enveloped(octets: bytes) -> AuthEnveloped:
    """Decodes the structures that the levels accept; raises BadStructure for anything else.

    BER of other software is converted first. Refused are trailing data, other versions and algorithms, tags that are
    not 16 octets, and attributes (our senders write none, RFC 5083 2.1).
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
        content=decode_content(data.encrypted.algorithm),
        ciphertext=data.encrypted.content,
        tag=data.mac,
    )


def _before_ciphertext(content: Content, size: int) -> list[bytes]:
    """The encryptedContentInfo up to its `size` octets of ciphertext, which are its end."""
    return der.around(der.SEQUENCE, [_DATA, encode_content(content), der.header(0x80, size)], size)


def encode_content(content: Content) -> bytes:
    """The algorithm identifier, as DER."""
    match content:
        case GCMContent(nonce):
            return _BEFORE_NONCE + nonce + _BEHIND_NONCE
        case PadContent():
            return der.algorithm(oids.ID_ONE_TIME_PAD, content.encode())
        case _:
            assert_never(content)


def decode_content(algorithm: AnyAlgorithm) -> Content:
    """Decodes an algorithm identifier; raises BadStructure for one that no level uses."""
    if algorithm.algorithm == oids.ID_AES256_GCM:
        gcm = der.parse(_GCMParameters, algorithm.parameters, "GCM parameters")
        if gcm.icv_length != TAG_OCTETS:
            raise BadStructure("the authentication tag is not 16 octets")
        if len(gcm.nonce) != NONCE_OCTETS:
            raise BadStructure("the nonce is not 12 octets")
        return GCMContent(gcm.nonce)
    if algorithm.algorithm == oids.ID_ONE_TIME_PAD:
        if len(algorithm.parameters.data) > MAX_PARAMETERS_OCTETS:
            raise BadStructure("the list of pad keys is too long")
        fields = der.children(algorithm.parameters.data, 6)
        if not fields or bytes(fields[0]) != bytes((PAD_VERSION,)):
            number = der.shown(int.from_bytes(fields[0][:64])) if fields else "missing"
            raise BadStructure(
                f"one-time pad version {number}; {PAD_VERSION} is the only one: its sender must be upgraded"
            )
        for key_IDs in fields[5:]:
            if len(key_IDs) > MAX_PAD_KEYS * _MIN_KEY_ID_OCTETS:
                der.children(key_IDs, MAX_PAD_KEYS, kept=False)
        pad = der.parse(_PadParameters, algorithm.parameters, "one-time pad parameters")
        return _decode_pad(pad)
    raise BadStructure(f"content encryption {algorithm.algorithm.dotted_string} is none that a level uses")


def _decode_pad(pad: _PadParameters) -> PadContent:
    if pad.compression not in (0, 1):
        raise BadStructure(f"compression {der.shown(pad.compression)} is unknown")
    key_IDs = tuple(pad.key_ids)
    if not MIN_PAD_KEYS <= len(key_IDs) <= MAX_PAD_KEYS:
        raise BadStructure(f"the pad has {len(key_IDs)} keys; {MIN_PAD_KEYS} to {MAX_PAD_KEYS} are accepted")
    # There may be thousands: each check is one pass over all of them.
    if not is_printable("".join(key_IDs)):
        raise BadStructure("a key_ID is not 1 to 256 printable characters")
    if not all(map(lt, key_IDs, key_IDs[1:])):  # code points are in the order of their UTF-8 octets
        raise BadStructure("the key_IDs of the pad do not ascend, each once")
    if len(set(casefold("\n".join(key_IDs)).split("\n"))) != len(key_IDs):
        raise BadStructure("the pad names one key twice, in other letters")
    return PadContent(pad.master_sae, pad.slave_sae, pad.kme_group, pad.compression, key_IDs)


_VERSION = der.integer(0)
_AUTH_ENVELOPED_DATA = der.oid(oids.ID_AUTH_ENVELOPED_DATA)
_DATA = der.oid(oids.ID_DATA)
_BEFORE_TAG = der.header(der.OCTET_STRING, TAG_OCTETS)
_GCM = der.algorithm(
    oids.ID_AES256_GCM, der.sequence(der.element(der.OCTET_STRING, bytes(NONCE_OCTETS)), der.integer(TAG_OCTETS))
)
_BEFORE_NONCE, _BEHIND_NONCE = _GCM.split(bytes(NONCE_OCTETS))


# The structures, field by field as in the RFCs. A field of type TLV is checked before it is parsed.


@asn1.sequence
class AnyAlgorithm:
    """An AlgorithmIdentifier whose parameters are checked before they are parsed."""

    algorithm: ObjectIdentifier
    parameters: asn1.TLV


@asn1.sequence
class _GCMParameters:
    nonce: bytes
    icv_length: Annotated[int, asn1.Default(12)]


@asn1.sequence
class _PadParameters:
    version: int
    master_sae: Annotated[str, asn1.Size(min=1, max=256)]
    slave_sae: Annotated[str, asn1.Size(min=1, max=256)]
    kme_group: Annotated[str, asn1.Size(min=1, max=256)]
    compression: int
    key_ids: list[Annotated[str, asn1.Size(min=1, max=256)]]


@asn1.sequence
class _EncryptedContentInfo:
    content_type: ObjectIdentifier
    algorithm: AnyAlgorithm
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
