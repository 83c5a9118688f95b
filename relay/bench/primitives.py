"""The bare cryptography of each level, and the work that sealing is measured against.
Standard: the same primitives with the same parameters as the levels, without CMS, MIME or base64 around them.
"""

from __future__ import annotations

import hashlib

import pybase64
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.poly1305 import Poly1305

from relay.identity import Identity


def reference(message: bytes) -> None:
    """Base64 in lines by pybase64, and AES-256-GCM."""
    pybase64.encodebytes(message)
    _gcm(message)


def bare(level: str, message: bytes, identity: Identity) -> None:
    """What level `otp`, `aes`, `pqc` or `rsa` does to seal for this site."""
    match level:
        case "otp":
            mask = int.from_bytes(message)
            Poly1305.generate_tag(bytes(32), (int.from_bytes(message) ^ mask).to_bytes(len(message)))
            return
        case "pqc":
            identity.signing.private_key.sign(hashlib.sha512(message).digest())
            identity.kem.private_key.public_key().encapsulate()
        case "rsa":
            pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
            oaep = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
            identity.rsa_signing.private_key.sign(message, pss, hashes.SHA256())
            identity.rsa_encryption.private_key.public_key().encrypt(bytes(32), oaep)
    _gcm(message)


def _gcm(message: bytes) -> None:
    AESGCM(bytes(32)).encrypt(bytes(12), message, None)
