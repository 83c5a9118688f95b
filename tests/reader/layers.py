"""From a layer and its keys to what is inside: each level's cryptography, of primitives.

Standard: RFC 3394, 5084, 8439, 9629; relay/FORMAT.md, 4 to 6.
"""

import hmac
import zlib
from collections.abc import Sequence
from itertools import product

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap
from cryptography.hazmat.primitives.poly1305 import Poly1305

from tests.reader import der, limits, structures
from tests.reader.model import Failure, PrivateKey
from tests.reader.structures import Layer

AUTHENTICATING = 16  # octets at the beginning of a pad's key, which hide nothing
LEAST_KEY = 32
_HKDF_INFO = der.tlv(der.SEQUENCE, structures.AES256_WRAP, der.integer(32))


def check_lengths(layer: Layer, keys: Sequence[bytes]) -> None:
    """The end of step 5: the lengths of quantum keys, and that a pad has neither too few nor too many."""
    if layer.name == "aes" and len(keys[0]) != 32:
        raise Failure(5, "bad structure", "a key-encryption key has 32 octets")
    if layer.name != "otp":
        return
    if any(len(key) < LEAST_KEY for key in keys):
        raise Failure(5, "bad structure", "a key of a pad has 32 octets or more")
    hiding = [len(key) - AUTHENTICATING for key in keys]
    if sum(hiding) < len(layer.ciphertext):
        raise Failure(5, "bad structure", "too short a pad")
    if len(keys) > 2 and sum(hiding[:-1]) >= len(layer.ciphertext):
        raise Failure(5, "bad structure", "more keys than the pad needs")


def open_pad(layer: Layer, keys: Sequence[bytes]) -> bytes:
    """Step 6 at level otp: verify the whole tag, then XOR. Returns what step 8 unpads."""
    if not hmac.compare_digest(pad_tag(layer.parameters, layer.ciphertext, keys), layer.mac):
        raise Failure(6, "bad tag", "of a pad")
    return xored(layer.ciphertext, keys)


def pad_tag(parameters: bytes, ciphertext: bytes, keys: Sequence[bytes]) -> bytes:
    """Poly1305 over P and the ciphertext, under the beginnings of the first two keys."""
    tagger = Poly1305(keys[0][:AUTHENTICATING] + keys[1][:AUTHENTICATING])
    for part in (parameters, ciphertext):
        tagger.update(part + bytes(-len(part) % 16))
    for part in (parameters, ciphertext):
        tagger.update(len(part).to_bytes(8, "little"))
    return tagger.finalize()


def xored(octets: bytes, keys: Sequence[bytes]) -> bytes:
    """`octets` XOR what the keys hide with, one after the other."""
    size = len(octets)
    pad = b"".join(key[AUTHENTICATING:] for key in keys)[:size]
    return (int.from_bytes(octets, "big") ^ int.from_bytes(pad, "big")).to_bytes(size, "big")


def unpad(padded: bytes, *, compressed: bool) -> bytes:
    """Step 8 at level otp: the length, nothing but zeros behind, DEFLATE."""
    size = int.from_bytes(padded[:8], "big")
    if len(padded) < 8 or size > len(padded) - 8 or any(padded[8 + size :]):
        raise Failure(8, "bad structure", "padding")
    packed = padded[8 : 8 + size]
    if not compressed:
        return packed
    bound = min(max(limits.EXPANSION * size, limits.EXPANSION_LEAST), limits.EXPANSION_MOST)
    inflater = zlib.decompressobj(wbits=-15)
    try:
        payload = inflater.decompress(packed, bound + 1)
    except zlib.error as error:
        raise Failure(8, "bad structure", "DEFLATE") from error
    if len(payload) > bound or not inflater.eof or inflater.unused_data or inflater.unconsumed_tail:
        raise Failure(8, "bad structure", "DEFLATE that is too large, or does not end where it should")
    return payload


def open_aes(layer: Layer, key: bytes) -> bytes:
    """Step 6 at level aes, under the quantum key."""
    return open_content(layer, unwrap(key, layer.wrapped))


def open_for(layer: Layer, private_keys: Sequence[PrivateKey]) -> bytes | None:
    """Step 6 at rsa and with every KEM; None where none of the recipients' keys is ours."""
    key = content_key(layer, private_keys)
    return None if key is None else open_content(layer, key)


def content_key(layer: Layer, private_keys: Sequence[PrivateKey]) -> bytes | None:
    """The content key for the first recipient whose key is ours; None where none is."""
    for recipient, key in product(layer.recipients, private_keys):
        if recipient.identifier is None:
            ours = (recipient.issuer, recipient.serial) == (key.issuer, key.serial)
        else:
            ours = recipient.identifier == key.identifier
        if ours and key.name == layer.name:
            return _decapsulated(key, recipient)
    return None


def _decapsulated(key: PrivateKey, recipient: structures.Recipient) -> bytes:
    try:
        secret = key.open(recipient.encapsulated)
    except ValueError as error:
        raise Failure(6, "bad tag", "a key that cannot be decapsulated") from error
    if key.name == "rsa":
        return secret
    wrapping = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=_HKDF_INFO).derive(secret)
    return unwrap(wrapping, recipient.wrapped)


def unwrap(key: bytes, wrapped: bytes) -> bytes:
    """A content key from under AES-256 wrap."""
    try:
        return aes_key_unwrap(key, wrapped)
    except (InvalidUnwrap, ValueError) as error:
        raise Failure(6, "bad tag", "a key that cannot be unwrapped") from error


def open_content(layer: Layer, key: bytes) -> bytes:
    """What AES-256-GCM hides."""
    if len(key) != 32:
        raise Failure(6, "bad tag", "the length of a content key")
    try:
        return AESGCM(key).decrypt(layer.nonce, layer.ciphertext + layer.mac, None)
    except InvalidTag as error:
        raise Failure(6, "bad tag", "of AES-GCM") from error
