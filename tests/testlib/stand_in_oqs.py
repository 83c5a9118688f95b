"""What the relay uses of the module `oqs`, with the right names and sizes and no security at all.
Standard: liboqs-python 0.16; a ciphertext of these KEMs reveals its secret.
"""

from __future__ import annotations

import hashlib
import os
from types import ModuleType
from typing import Any

_SIZES = {
    "HQC-5": (7237, 7333, 14_421),
    "FrodoKEM-1344-SHAKE": (21_520, 43_088, 21_696),
    "Classic-McEliece-6688128": (1_044_992, 13_932, 208),
}
"""Octets of public key, private key and ciphertext."""


class KeyEncapsulation:
    """The public key follows from the private key, the secret from public key and ciphertext."""

    def __init__(self, algorithm: str, secret_key: bytes | None = None) -> None:
        self._public, self._private, self._ciphertext = _SIZES[algorithm]
        self._key = secret_key
        self.details = {
            "length_public_key": self._public,
            "length_secret_key": self._private,
            "length_ciphertext": self._ciphertext,
            "length_shared_secret": 32,
        }

    def __enter__(self) -> KeyEncapsulation:
        return self

    def __exit__(self, *_: object) -> None:
        self._key = None

    def generate_keypair(self) -> bytes:
        self._key = os.urandom(self._private)
        return self._public_key()

    def export_secret_key(self) -> bytes:
        assert self._key is not None
        return self._key

    def encap_secret(self, public_key: bytes) -> tuple[bytes, bytes]:
        ciphertext = os.urandom(self._ciphertext)
        return ciphertext, hashlib.sha256(ciphertext + public_key).digest()

    def decap_secret(self, ciphertext: bytes) -> bytes:
        return hashlib.sha256(ciphertext + self._public_key()).digest()

    def _public_key(self) -> bytes:
        assert self._key is not None
        return hashlib.shake_256(self._key).digest(self._public)


def stand_in(*without: str) -> Any:
    """The module, without the algorithms named."""
    module: Any = ModuleType("oqs")
    module.KeyEncapsulation = KeyEncapsulation
    module.get_enabled_kem_mechanisms = lambda: tuple(name for name in _SIZES if name not in without)
    module.oqs_version = lambda: "0.16.0"
    return module
