"""Who knows all keys seals anew: another inside under right tags, other signed attributes under a right signature.
Standard: relay/FORMAT.md, 4 to 6; Alice's and Bob's keys are those of tests/vectors. It shares no code with relay.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.reader import OneKey, layers, structures, vector
from tests.reader.structures import Layer
from tests.testlib.der_edits import Element, parse

Keys = Mapping[OneKey, bytes]


def inside(octets: bytes, keys: Keys) -> bytes:
    """What is under the seal of one layer; at otp the payload without its padding."""
    layer = structures.read(octets)
    if layer.name == "otp":
        return layers.unpad(layers.open_pad(layer, _of(layer, keys)), compressed=layer.compressed)
    return layers.open_content(layer, _content_key(layer, keys))


def resealed(octets: bytes, keys: Keys, content: bytes) -> bytes:
    """The same layer with another content. At otp `content` is what is XORed, padding and all."""
    layer = structures.read(octets)
    if layer.name == "otp":
        ciphertext = layers.xored(content, _of(layer, keys))
        return _with(octets, ciphertext, layers.pad_tag(layer.parameters, ciphertext, _of(layer, keys)))
    sealed = AESGCM(_content_key(layer, keys)).encrypt(layer.nonce, content, None)
    return _with(octets, sealed[:-16], sealed[-16:])


def retagged(octets: bytes, keys: Sequence[bytes]) -> bytes:
    """A message of level otp with a tag that is right for what its parameters are now, under these keys."""
    content = _enveloped(parse(octets)[0]).children[2]
    parameters = content.children[1].children[1].encode()
    ciphertext = content.children[2].contents
    return _with(octets, ciphertext, layers.pad_tag(parameters, ciphertext, keys))


def padded(content: bytes, size: int) -> bytes:
    """Its length, itself, zeros up to `size`."""
    return len(content).to_bytes(8, "big") + content + bytes(max(0, size - 8 - len(content)))


def resigned(octets: bytes, level: str) -> bytes:
    """SignedData whose signature, by Alice, is right for the signed attributes as they stand in it."""
    root = parse(octets)[0]
    signer = root.children[1].children[0].children[-1].children[0]
    attributes = next(child for child in signer.children if child.identifier == 0xA0)
    signed = Element(0x31, attributes.contents, attributes.children).encode()
    signature = next(child for child in reversed(signer.children) if child.identifier == 0x04)
    signature.children = []
    if level == "pqc":
        signature.contents = _both_signatures(signed)
    else:
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        signature.contents = _alices_rsa().sign(signed, pss, hashes.SHA256())
    return root.encode()


def redigested(octets: bytes, level: str) -> bytes:
    """SignedData whose message digest is that of the content it has; to be signed anew."""
    root = parse(octets)[0]
    signed = root.children[1].children[0]
    content = signed.children[2].children[1].children[0]
    digest = hashlib.new("sha512" if level == "pqc" else "sha256", content.contents).digest()
    attributes = next(child for child in signed.children[-1].children[0].children if child.identifier == 0xA0)
    for attribute in attributes.children:
        if attribute.children[0].encode() == bytes.fromhex("06092a864886f70d010904"):
            attribute.children[1].children[0].contents = digest
    return root.encode()


def _both_signatures(octets: bytes) -> bytes:
    label = b"COMPSIG-MLDSA87-ECDSA-P384-SHA512"
    message = b"CompositeAlgorithmSignatures2025" + label + b"\0" + hashlib.sha512(octets).digest()
    lattice = MLDSA87PrivateKey.from_seed_bytes(vector.seed("alice signing", 32)).sign(message, label)
    return lattice + vector.p384("alice signing").sign(message, ec.ECDSA(hashes.SHA384()))


@cache
def _alices_rsa() -> rsa.RSAPrivateKey:
    pem = (vector.VECTORS / "keys" / "test-only-alice-rsa-signing.key.pem").read_bytes()
    key = load_pem_private_key(pem, None, unsafe_skip_rsa_key_validation=True)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _of(layer: Layer, keys: Keys) -> list[bytes]:
    quantum = layer.quantum
    assert quantum is not None
    return [keys[OneKey(quantum.group, quantum.master, key_id)] for key_id in quantum.key_ids]


def _content_key(layer: Layer, keys: Keys) -> bytes:
    if layer.name == "aes":
        return layers.unwrap(_of(layer, keys)[0], layer.wrapped)
    key = layers.content_key(layer, vector.bobs_keys())
    assert key is not None
    return key


def _enveloped(root: Element) -> Element:
    return root.children[1].children[0]


def _with(octets: bytes, ciphertext: bytes, mac: bytes) -> bytes:
    root = parse(octets)[0]
    *_, content, tag = _enveloped(root).children
    content.children[2] = Element(0x80, ciphertext)
    tag.contents, tag.children = mac, []
    return root.encode()


def body_of(message: bytes) -> bytes:
    """The CMS of a sealed message as relay writes it."""
    return base64.b64decode(message.partition(b"\r\n\r\n")[2])
