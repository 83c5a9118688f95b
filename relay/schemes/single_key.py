"""What all levels do that wrap a fresh content key with one quantum key: they differ in how the content is encrypted.
Standard: RFC 5652 6.2.3 (KEKRecipientInfo), RFC 3394 (AES key wrap), RFC 5083 (AuthEnvelopedData).
"""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import ClassVar, final

from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from relay.errors import BadStructure, BadTag, KeyNotFound, KMEBadReply
from relay.formats import cms
from relay.formats.characters import is_printable
from relay.formats.cms.enveloped import Content
from relay.formats.pieces import Octets, Pieces
from relay.keys import KeyReference
from relay.runtime.aio import off_loop
from relay.schemes import FreshKeys, Opening, Parties, Scheme, SealedPayload, Unsealed
from relay.schemes.content import KEY_OCTETS, unwrap


class SingleKeyScheme(Scheme):
    """A scheme whose message has one recipient, the holder of one quantum key.

    A subclass says which kind of `content` is its own, and encrypts and decrypts that under a content key.
    """

    content: ClassVar[type[Content]]

    @abstractmethod
    def encrypt(self, payload: Octets | Pieces, key: bytes, recipient: cms.KEKRecipient) -> Pieces:
        """The AuthEnvelopedData as DER; `key` is a fresh content key of 32 octets, which is used for this alone."""

    @abstractmethod
    def decrypt(self, enveloped: cms.AuthEnveloped, key: bytes) -> bytes:
        """The payload, after its tag was verified. Raises BadTag or BadStructure."""

    @final
    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """One AuthEnvelopedData with one KEKRecipientInfo, whose identifier is the key_ID."""
        taken = await keys.take(parties.peer, level=self.name, octets=len(payload))
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
        """The one key that the content key is wrapped under. Raises BadStructure where there are several recipients."""
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
        # The key wrap would take 16 or 24 octets as well.
        if len(key.key) != KEY_OCTETS:
            raise BadStructure(f"key {key.key_ID} has {len(key.key)} octets; level {self.name} needs {KEY_OCTETS}")
        content_key = unwrap(key.key, recipient.wrapped_cek, f"key {key.key_ID}")
        if len(content_key) != KEY_OCTETS:
            raise BadTag(f"the content key is not {KEY_OCTETS} octets")
        payload = self.decrypt(enveloped, content_key)
        opening.verified()
        return payload

    def _recipient(self, enveloped: cms.AuthEnveloped) -> cms.KEKRecipient:
        """The one recipient: with two, somebody who opens it knows the content key that another one trusts."""
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
