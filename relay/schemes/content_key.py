"""Content under a fresh content key: AES-256-GCM, key wrapping, and the base class of levels with one quantum key.
Standard: RFC 5083 and RFC 5084 (AES-GCM in CMS), RFC 3394 (AES key wrap), RFC 5652 6.2.3 (KEKRecipientInfo), RFC 5869
and RFC 9629 5 (HKDF of a KEM's secret).

Levels aes, pqc and rsa use `encrypt`. Those under one quantum key are a `SingleKeyScheme`: they differ in their
content encryption.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Generator
from typing import ClassVar, final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from relay.errors import BadStructure, BadTag, KeyNotFound, KMEBadReply
from relay.formats import cms
from relay.formats.characters import is_printable
from relay.formats.cms.enveloped import Content
from relay.formats.pieces import Octets, Pieces, joined, part_of
from relay.keys import KeyReference
from relay.runtime.aio import off_loop
from relay.schemes import FreshKeys, Opening, Parties, Scheme, SealedPayload, Unsealed

KEY_OCTETS = 32


def encrypt(
    payload: Octets | Pieces, key: bytes, recipient: cms.KEKRecipient | cms.RSARecipient | cms.KEMRecipient
) -> Pieces:
    """The payload encrypted under `key`, as AuthEnvelopedData (DER) with this recipient."""
    content = cms.GCMContent(os.urandom(cms.NONCE_OCTETS))
    # A single encryptor: a second use raises, so that no nonce ever encrypts two payloads.
    encryptor = Cipher(algorithms.AES(key), modes.GCM(content.nonce)).encryptor()

    def encrypted() -> Generator[bytes, None, bytes]:
        for piece in part_of(payload):
            yield encryptor.update(piece)
        encryptor.finalize()
        return encryptor.tag

    return cms.enveloped_pieces((recipient,), content, len(payload), encrypted)


def decrypt(enveloped: cms.AuthEnveloped, key: bytes) -> bytes:
    """The payload, after its tag was verified. Raises BadTag or BadStructure."""
    if not isinstance(enveloped.content, cms.GCMContent):
        raise BadStructure("the content is not AES-256-GCM")
    if len(key) != KEY_OCTETS:
        raise BadTag(f"the content key is not {KEY_OCTETS} octets")
    decryptor = Cipher(algorithms.AES(key), modes.GCM(enveloped.content.nonce, enveloped.tag)).decryptor()
    payload = joined(len(enveloped.ciphertext), map(decryptor.update, part_of(enveloped.ciphertext)))
    try:
        decryptor.finalize()  # nothing may be released before the tag is verified
        return payload
    except InvalidTag as error:
        raise BadTag("the tag does not match: the message was changed on the way") from error


def unwrap(key_encryption_key: bytes, wrapped: bytes, whose: str) -> bytes:
    """The content key; raises BadTag, which names `whose` key failed."""
    try:
        return aes_key_unwrap(key_encryption_key, wrapped)
    except (InvalidUnwrap, ValueError) as error:
        raise BadTag(f"{whose} does not open this message: it is another key, or it was changed on the way") from error


def kem_key(shared_secret: bytes) -> bytes:
    """The key-encryption key of a KEM recipient: HKDF-SHA256 without salt (RFC 9629 5)."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_OCTETS, salt=None, info=cms.kem_kdf_info())
    return kdf.derive(shared_secret)


class SingleKeyScheme(Scheme):
    """A scheme with one recipient, the holder of one quantum key.

    A subclass sets its kind of `content`, and encrypts and decrypts it under a content key.
    """

    content: ClassVar[type[Content]]

    @abstractmethod
    def encrypt(self, payload: Octets | Pieces, key: bytes, recipient: cms.KEKRecipient) -> Pieces:
        """The AuthEnvelopedData as DER; `key` is a fresh content key of 32 octets, which is used only once."""

    @abstractmethod
    def decrypt(self, enveloped: cms.AuthEnveloped, key: bytes) -> bytes:
        """The payload, after its tag was verified. Raises BadTag or BadStructure."""

    @final
    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """One AuthEnvelopedData with one KEKRecipientInfo, whose identifier is the key_ID."""
        taken = await keys.take(parties.peer, level=self.name, size=len(payload))
        key, named = taken.key, taken.reference
        if len(key.key) != KEY_OCTETS:
            raise KMEBadReply(f"key {key.key_ID}: {len(key.key)} octets, level {self.name} needs {KEY_OCTETS}")
        content_key = os.urandom(KEY_OCTETS)
        attribute = cms.QKDKeyAttribute(named.master_sae or "", named.slave_sae or "", named.kme_group or "")
        recipient = cms.KEKRecipient(key.key_ID.encode(), aes_key_wrap(key.key, content_key), attribute)
        return SealedPayload(self.encrypt(payload, content_key, recipient), (named,), KEY_OCTETS * 8)

    @final
    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return isinstance(enveloped.content, self.content) and all(
            isinstance(recipient, cms.KEKRecipient) for recipient in enveloped.recipients
        )

    @final
    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        """The key that wraps the content key. Raises BadStructure for several recipients."""
        return (_reference(self._recipient(enveloped)),)

    @final
    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after its tag has been verified."""
        return Unsealed(await off_loop(len(enveloped.ciphertext), self._open, enveloped, opening))

    def _open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> bytes:
        recipient = self._recipient(enveloped)
        key = opening.keys.get(_reference(recipient).key_ID)
        if key is None:
            raise KeyNotFound("the key that this message names is not here")
        # The key wrap would also accept 16 or 24 octets.
        if len(key.key) != KEY_OCTETS:
            raise BadStructure(f"key {key.key_ID} has {len(key.key)} octets; level {self.name} needs {KEY_OCTETS}")
        content_key = unwrap(key.key, recipient.wrapped_cek, f"key {key.key_ID}")
        if len(content_key) != KEY_OCTETS:
            raise BadTag(f"the content key is not {KEY_OCTETS} octets")
        payload = self.decrypt(enveloped, content_key)
        opening.verified()
        return payload

    def _recipient(self, enveloped: cms.AuthEnveloped) -> cms.KEKRecipient:
        """The one recipient: with two, each would know the content key that the other one trusts."""
        match enveloped.recipients:
            case (cms.KEKRecipient() as recipient,):
                return recipient
        raise BadStructure(f"{len(enveloped.recipients)} recipients; level {self.name} has one")


def _reference(recipient: cms.KEKRecipient) -> KeyReference:
    try:
        key_ID = recipient.key_identifier.decode()
    except UnicodeDecodeError as error:
        raise BadStructure("the key_ID is not UTF-8") from error
    if len(key_ID) > 256 or not is_printable(key_ID):
        raise BadStructure("the key_ID is not 1 to 256 printable characters")
    named = recipient.attribute
    if named is None:
        raise BadStructure("whose key it is sealed under is not said (QKDKeyAttribute)")
    return KeyReference(key_ID, named.master_sae, named.slave_sae, named.kme_group)
