"""Level aes: AES-256-GCM under a fresh content key, wrapped with one quantum key that both sites hold.
Standard: RFC 5083 and RFC 5084 (AuthEnvelopedData, AES-GCM), RFC 5652 6.2.3 (KEK), RFC 3394 (key wrap).
"""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from relay import levels
from relay.config import Config
from relay.errors import BadStructure, KeyNotFound, KMEBadReply
from relay.formats import cms
from relay.formats.characters import is_printable
from relay.formats.pieces import Octets, Pieces
from relay.keys import KeyReference
from relay.runtime.aio import off_loop
from relay.schemes import FreshKeys, Opening, Parties, Scheme, SealedPayload, Unsealed
from relay.schemes.content import KEY_OCTETS, decrypt, encrypt, unwrap


class AES(Scheme, level=levels.AES):
    """AES-256-GCM with quantum keys; also the layer that quantum enhancement adds."""

    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """One AuthEnvelopedData with one KEKRecipientInfo, whose identifier is the key_ID."""
        taken = await keys.take(parties.peer, level=self.name, octets=len(payload))
        if len(taken.key.key) != KEY_OCTETS:
            raise KMEBadReply(f"key {taken.key.key_ID}: {len(taken.key.key)} octets, level aes needs {KEY_OCTETS}")
        key, named = taken.key, taken.reference
        content_key = os.urandom(KEY_OCTETS)
        attribute = cms.QKDKeyAttribute(named.master_sae or "", named.slave_sae or "", named.kme_group or "")
        recipient = cms.KEKRecipient(key.key_ID.encode(), aes_key_wrap(key.key, content_key), attribute)
        return SealedPayload(encrypt(payload, content_key, recipient), (named,), KEY_OCTETS * 8)

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return not isinstance(enveloped.content, cms.PadContent) and all(
            isinstance(recipient, cms.KEKRecipient) for recipient in enveloped.recipients
        )

    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        """The one key that the content key is wrapped under. Raises BadStructure where there are several recipients."""
        return (_reference(_recipient(enveloped)),)

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after its tag has been verified."""
        return Unsealed(await off_loop(len(enveloped.ciphertext), _open, enveloped, opening))


def scheme(_: Config | None = None) -> AES:
    """As all_schemes makes it."""
    return AES()


def _open(enveloped: cms.AuthEnveloped, opening: Opening) -> bytes:
    recipient = _recipient(enveloped)
    key = opening.keys.get(_reference(recipient).key_ID)
    if key is None:
        raise KeyNotFound("the key that this message names is not here")
    if len(key.key) != KEY_OCTETS:
        raise BadStructure(f"key {key.key_ID} has {len(key.key)} octets; level aes needs {KEY_OCTETS}")
    payload = decrypt(enveloped, unwrap(key.key, recipient.wrapped_cek, f"key {key.key_ID}"))
    opening.verified()
    return payload


def _recipient(enveloped: cms.AuthEnveloped) -> cms.KEKRecipient:
    """The one recipient: with two, somebody who opens it knows the content key that another one trusts."""
    match enveloped.recipients:
        case (cms.KEKRecipient() as recipient,):
            return recipient
    raise BadStructure(f"{len(enveloped.recipients)} recipients; level aes has one")


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
