"""The private signing keys of this site's mail domains, and their DNS records.
Standard: RFC 6376 3.6.1 (key records), RFC 8301 (RSA sizes), RFC 8463 (Ed25519); keys are PKCS#8 PEM of mode 0600.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey, generate_private_key

from relay.config import Config, DKIMKeySettings
from relay.errors import ConfigError
from relay.files.rights import UnixUser
from relay.formats.mailbox import fold_domain
from relay.identity import files

Algorithm = Literal["rsa", "ed25519"]

LEAST_RSA_BITS = 1024
"""Minimum RSA key length of a valid signature, in bits (RFC 8301, 3.2)."""
ADVISED_RSA_BITS = 2048
"""Minimum RSA key length for signers, in bits (RFC 8301, 3.2)."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, and the domain (A-labels) and selector of its public key in the DNS."""

    domain: str
    selector: str
    private: RSAPrivateKey | Ed25519PrivateKey = field(repr=False)

    @property
    def algorithm(self) -> Algorithm:
        """The k= tag of its record."""
        return "rsa" if isinstance(self.private, RSAPrivateKey) else "ed25519"

    @property
    def bits(self) -> int:
        """The size of the key."""
        return self.private.key_size if isinstance(self.private, RSAPrivateKey) else 256

    @property
    def name(self) -> str:
        """The DNS name of its record (RFC 6376, 3.6.2.1)."""
        return record_name(self.domain, self.selector)

    @property
    def record(self) -> str:
        """The TXT record that verifiers need."""
        return f"v=DKIM1; k={self.algorithm}; p={base64.b64encode(self.public).decode()}"

    @property
    def public(self) -> bytes:
        """The octets of p= in its record."""
        return public_octets(self.private.public_key())

    def sign(self, data: bytes) -> bytes:
        """The signature over the SHA-256 of `data` (RFC 6376, 3.3.2; RFC 8463, 3)."""
        if isinstance(self.private, RSAPrivateKey):
            return self.private.sign(data, PKCS1v15(), hashes.SHA256())
        return self.private.sign(hashlib.sha256(data).digest())


def record_name(domain: str, selector: str) -> str:
    """The DNS name of a key record, in lower case, without the last dot."""
    return f"{selector}._domainkey.{domain}".lower()


def public_octets(key: RSAPublicKey | Ed25519PublicKey) -> bytes:
    """A public key in the form of p=: SubjectPublicKeyInfo of RSA, the bare key of Ed25519 (RFC 8463, 4)."""
    if isinstance(key, RSAPublicKey):
        return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def load_keys(config: Config) -> list[SigningKey]:
    """The keys of [[dkim.keys]]. Raises ConfigError if one is unusable."""
    return [load_key(table) for table in config.dkim.keys] if config.dkim else []


def load_key(table: DKIMKeySettings) -> SigningKey:
    """The key of one [[dkim.keys]] table. Raises ConfigError, also if others can read the file."""
    content = files.read_secret(table.key)
    try:
        private = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{table.key}: not a private key in PEM without passphrase") from error
    if not isinstance(private, RSAPrivateKey | Ed25519PrivateKey):
        raise ConfigError(f"{table.key}: DKIM knows RSA and Ed25519 keys only")
    try:
        key = SigningKey(fold_domain(table.domain), table.selector, private)
    except ValueError as error:
        raise ConfigError(f"dkim.keys: {error}") from error
    if key.algorithm == "rsa" and key.bits < LEAST_RSA_BITS:
        raise ConfigError(f"{table.key}: an RSA key of {key.bits} bits, which no verifier accepts; make another one")
    return key


def make_key(
    path: Path,
    domain: str,
    selector: str,
    algorithm: Algorithm,
    bits: int = ADVISED_RSA_BITS,
    *,
    owner: UnixUser | None = None,
) -> SigningKey:
    """A fresh key in a new file, readable by its owner only; root creates it for `owner`, if given.

    Raises ConfigError, also if the file exists.
    """
    private = Ed25519PrivateKey.generate() if algorithm == "ed25519" else generate_private_key(65537, bits)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with files.changing(path.parent):
        if path.exists():
            raise ConfigError(f"{path}: is there already; choose another selector, so that old mail can be verified")
        files.write(path, pem, owner=owner)
    return SigningKey(domain, selector, private)
