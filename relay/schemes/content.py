"""AES-256-GCM content under a fresh content key, and that key under another, as the levels aes, pqc and rsa use them.
Standard: RFC 5084 (AES-GCM in CMS), RFC 3394 (AES key wrap), RFC 5869 and RFC 9629 5 (HKDF of a KEM's secret).
"""

from __future__ import annotations

import os
from collections.abc import Generator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

from relay.errors import BadStructure, BadTag
from relay.formats import cms
from relay.formats.pieces import Octets, Pieces, joined, part_of

KEY_OCTETS = 32


def encrypt(
    payload: Octets | Pieces, key: bytes, recipient: cms.KEKRecipient | cms.RSARecipient | cms.KEMRecipient
) -> Pieces:
    """The payload under `key`, which the one recipient has in their own way, as AuthEnvelopedData (DER)."""
    content = cms.GCMContent(os.urandom(cms.NONCE_OCTETS))
    # One for all time: taken twice it raises, so that no nonce ever encrypts two payloads.
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
        decryptor.finalize()  # until it has verified the tag, nothing of this may be seen
        return payload
    except InvalidTag as error:
        raise BadTag("the tag does not match: the message was changed on the way") from error


def unwrap(key_encryption_key: bytes, wrapped: bytes, whose: str) -> bytes:
    """The content key; raises BadTag, which names `whose` key did not fit."""
    try:
        return aes_key_unwrap(key_encryption_key, wrapped)
    except (InvalidUnwrap, ValueError) as error:
        raise BadTag(f"{whose} does not open this message: it is another key, or it was changed on the way") from error


def kem_key(shared_secret: bytes) -> bytes:
    """The key-encryption key of a KEM recipient: HKDF-SHA256 without salt, as RFC 9629 5 wants it."""
    kdf = HKDF(algorithm=hashes.SHA256(), length=KEY_OCTETS, salt=None, info=cms.kem_kdf_info())
    return kdf.derive(shared_secret)
