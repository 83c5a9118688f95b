"""Level aes: AES-256-GCM under a fresh content key, wrapped with one quantum key that both sites hold.
Standard: RFC 5083 and RFC 5084 (AuthEnvelopedData, AES-GCM), RFC 5652 6.2.3 (KEK), RFC 3394 (key wrap).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from relay import cms
from relay.errors import BadStructure, BadTag, KMEBadReply
from relay.keys import Key, KeyReference, KeySource
from relay.levels import Parties, Sealed

KEY_OCTETS = 32
SMALL_OCTETS = 256 * 1024
"""Up to this size sealing takes less time than handing it to a thread."""

P = ParamSpec("P")
T = TypeVar("T")


class AES:
    """AES-256-GCM with quantum keys (level 2)."""

    name = "aes"

    async def seal(self, payload: bytes, parties: Parties, source: KeySource) -> Sealed:
        """One AuthEnvelopedData with one KEKRecipientInfo, whose identifier is the key_ID."""
        key = await source.take(parties.slave_sae, KEY_OCTETS * 8)
        if len(key.key) != KEY_OCTETS:
            raise KMEBadReply(f"key {key.key_ID}: {len(key.key) * 8} bits, level aes needs {KEY_OCTETS * 8}")
        reference = KeyReference(key.key_ID, parties.master_sae, parties.slave_sae, source.group)
        return Sealed(await _off_loop(len(payload), _encrypt, payload, key, reference), (reference,))

    def references(self, der: bytes) -> tuple[KeyReference, ...]:
        """One reference a KEKRecipientInfo; SAEs and group are None where other software sealed."""
        return tuple(_reference(recipient) for recipient in cms.decode(der).recipients)

    async def open(self, der: bytes, keys: Mapping[str, Key]) -> bytes:
        """The payload, released only after its tag has been verified. Raises BadStructure or BadTag."""
        return await _off_loop(len(der), _decrypt, der, keys)


def _encrypt(payload: bytes, key: Key, reference: KeyReference) -> bytes:
    content_key = AESGCM.generate_key(256)
    nonce = os.urandom(cms.NONCE_OCTETS)
    encrypted = AESGCM(content_key).encrypt(nonce, payload, None)
    recipient = cms.KEKRecipient(
        key_identifier=key.key_ID.encode(),
        wrapped_cek=aes_key_wrap(key.key, content_key),
        attribute=cms.QKDKeyAttribute(
            reference.master_sae or "", reference.slave_sae or "", reference.kme_group or ""
        ),
    )
    return cms.encode(
        cms.GCMEnveloped((recipient,), nonce, encrypted[: -cms.TAG_OCTETS], encrypted[-cms.TAG_OCTETS :])
    )


def _decrypt(der: bytes, keys: Mapping[str, Key]) -> bytes:
    enveloped = cms.decode(der)
    for recipient in enveloped.recipients:
        key = keys.get(_reference(recipient).key_ID)
        if key is None:
            continue
        try:
            content_key = aes_key_unwrap(key.key, recipient.wrapped_cek)
            return AESGCM(content_key).decrypt(enveloped.nonce, enveloped.ciphertext + enveloped.tag, None)
        except (InvalidUnwrap, InvalidTag, ValueError) as error:
            raise BadTag(f"key {key.key_ID} does not open this message: it was changed on the way") from error
    raise BadTag("none of the keys at hand is named by this message")


def _reference(recipient: cms.KEKRecipient) -> KeyReference:
    try:
        key_ID = recipient.key_identifier.decode()
    except UnicodeDecodeError as error:
        raise BadStructure("the key_ID is not UTF-8") from error
    if len(key_ID) > 256 or not key_ID.isprintable():
        raise BadStructure("the key_ID is not 1 to 256 printable characters")
    named = recipient.attribute
    if named is None:
        return KeyReference(key_ID)
    return KeyReference(key_ID, named.master_sae, named.slave_sae, named.kme_group)


async def _off_loop(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` here when `size` octets are few, else in a thread, so that the event loop stays free."""
    if size <= SMALL_OCTETS:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)
