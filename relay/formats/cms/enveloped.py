"""AuthEnvelopedData: recipients, encrypted content, and the tag that authenticates it.
Standard: RFC 5083; content.py has the kinds of content encryption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from cryptography.hazmat import asn1
from cryptography.x509 import ObjectIdentifier

from relay.errors import BadStructure
from relay.formats.cms import ber, der, oids, recipients
from relay.formats.cms.content import TAG_OCTETS, AnyAlgorithm, Content, decode, encode
from relay.formats.cms.recipients import Recipient
from relay.formats.pieces import Octets, Pieces, part_of

FINGERPRINT_OCTETS = 32


@dataclass(frozen=True, slots=True)
class AuthEnveloped:
    """One AuthEnvelopedData; `tag` is 16 octets."""

    recipients: tuple[Recipient, ...]
    content: Content
    ciphertext: bytes = field(repr=False)
    tag: bytes

    def fingerprint(self) -> bytes:
        """What a quantum key is bound to: SHA-256 of the DER of encryptedContentInfo and mac, 32 octets.

        Recipients are left out: nobody may make a second message of one by writing them otherwise.
        """
        digest = hashlib.sha256(b"".join(_before_ciphertext(self.content, len(self.ciphertext))))
        digest.update(self.ciphertext)
        digest.update(_BEFORE_TAG + self.tag)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class KeyUse:
    """What a received quantum key may open: one ciphertext at one level, however often that one comes.

    `fingerprint` (32 octets) is that of the ciphertext. `most` is the number of ciphertexts that the key may open in
    all. It is more than one only at level aes, where a peer's key may wrap several messages.
    """

    level: str
    fingerprint: bytes
    most: int = 1

    def trouble(self, level: str | None, bound_to: bytes | None) -> str:
        """Why a key that opened these at this level (None: nothing yet) may not, or ""."""
        if level is None or not bound_to:
            return ""
        if level != self.level:
            return f"it has opened something at level {level}"
        if self.opened_before(bound_to) or len(bound_to) // FINGERPRINT_OCTETS < self.most:
            return ""
        return "it has opened another message"

    def opened_before(self, bound_to: bytes | None) -> bool:
        """Whether this very ciphertext is among these."""
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
    to: Sequence[Recipient],
    content: Content,
    size: int,
    encrypted: Callable[[], Generator[Octets, None, bytes]],
) -> Pieces:
    """The ContentInfo, as DER, around a ciphertext of `size` octets, which is made when the pieces are taken.

    `encrypted` yields the ciphertext and returns the tag.
    """
    infos = der.set_of(map(recipients.encode, to))
    more = size + len(_BEFORE_TAG) + TAG_OCTETS
    data = der.around(der.SEQUENCE, [_VERSION, infos, *_before_ciphertext(content, size)], more)
    before = b"".join(der.around(der.SEQUENCE, [_AUTH_ENVELOPED_DATA, *der.around(0xA0, data, more)], more))

    def made() -> Generator[Octets]:
        yield from part_of(before)
        tag = yield from encrypted()
        yield _BEFORE_TAG + tag

    return Pieces(len(before) + more, made)


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
        content=decode(data.encrypted.algorithm),
        ciphertext=data.encrypted.content,
        tag=data.mac,
    )


def _before_ciphertext(content: Content, size: int) -> list[bytes]:
    """The encryptedContentInfo as far as its `size` octets of ciphertext, with which it ends."""
    return der.around(der.SEQUENCE, [_DATA, encode(content), der.header(0x80, size)], size)


_VERSION = der.integer(0)
_AUTH_ENVELOPED_DATA = der.oid(oids.ID_AUTH_ENVELOPED_DATA)
_DATA = der.oid(oids.ID_DATA)
_BEFORE_TAG = der.header(der.OCTET_STRING, TAG_OCTETS)

# The structures, field by field as in the RFCs. A field of type TLV is looked at before it is parsed.


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
