"""What an attacker makes of a captured message: the octets that its keys have hidden, and forgeries out of these.
Standard: relay/FORMAT.md; they know the payload to the last octet, but not what Bob's KME knows.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from cryptography.hazmat.primitives.poly1305 import Poly1305

from relay.formats import cms, mime
from relay.schemes.padding import pad
from tests.testlib import mails
from tests.testlib.payloads import sealed_envelope

FORGED = mails.plain(body="Pay the bearer. Signed, the board.\r\n")
KEY_OCTETS = 32
UNHIDDEN_OCTETS = 16


@dataclass(frozen=True)
class ReadOff:
    """What is known of the keys of a captured pad, by key_ID: all octets but the first 16 of each."""

    content: cms.PadContent
    hidden: Mapping[str, bytes]


def read_off(message: bytes, payload: bytes) -> ReadOff:
    """The pad under a payload that is known: ciphertext XOR padded payload, key after key (of 32 octets each)."""
    enveloped = cms.decode_enveloped(mime.sealed_content(message))
    assert isinstance(enveloped.content, cms.PadContent)
    octets = bytes(a ^ b for a, b in zip(enveloped.ciphertext, bytes(pad(payload)), strict=True))
    width = KEY_OCTETS - UNHIDDEN_OCTETS
    return ReadOff(
        enveloped.content,
        {key_ID: octets[n * width : (n + 1) * width] for n, key_ID in enumerate(enveloped.content.key_IDs)},
    )


def outer(der: bytes) -> bytes:
    """The forgery as it is sent."""
    return mime.sealed_message(FORGED, der)


def forged_payload(layers: str, **envelope: object) -> bytes:
    """The forger's mail, under a sealed envelope that fits."""
    return bytes(mime.wrap_payload(FORGED, sealed_envelope(layers, **envelope).encode()))  # type: ignore[arg-type]


def pad_forgery(known: ReadOff, key_IDs: Sequence[str], tag_key: bytes, payload: bytes) -> bytes:
    """An otp message under keys that were read off, with this for the tag's key."""
    octets = b"".join(known.hidden[key_ID] for key_ID in key_IDs)
    padded = bytes(pad(payload, "none"))
    padded += bytes(len(octets) - len(padded)) if len(octets) > len(padded) else b""
    ciphertext = bytes(a ^ b for a, b in zip(padded, octets, strict=False))
    of = known.content
    content = cms.PadContent(of.master_sae, of.slave_sae, of.kme_group, 0, tuple(key_IDs))
    return _pad_message(content, ciphertext, tag_key)


def _pad_message(content: cms.PadContent, ciphertext: bytes, tag_key: bytes) -> bytes:
    parameters = content.encode()
    filled = b"".join(part + bytes(-len(part) % 16) for part in (parameters, ciphertext))
    tag = Poly1305.generate_tag(tag_key, filled + struct.pack("<QQ", len(parameters), len(ciphertext)))
    return outer(cms.encode_enveloped(cms.AuthEnveloped((cms.PadRecipient(),), content, ciphertext, tag)))


def key_wrap_forgery(known: ReadOff, key_ID: str, key: bytes, payload: bytes) -> bytes:
    """An aes message under a key-encryption key that is named like one of the pad."""
    content_key, nonce = os.urandom(32), os.urandom(12)
    encrypted = AESGCM(content_key).encrypt(nonce, payload, None)
    of = known.content
    attribute = cms.QKDKeyAttribute(of.master_sae, of.slave_sae, of.kme_group)
    recipient = cms.KEKRecipient(key_ID.encode(), aes_key_wrap(key, content_key), attribute)
    return outer(
        cms.encode_enveloped(cms.AuthEnveloped((recipient,), cms.GCMContent(nonce), encrypted[:-16], encrypted[-16:]))
    )
