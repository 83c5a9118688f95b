"""The site secret, under which the store seals its data, and its rotation.
Standard: AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce, key by HKDF-SHA256 (RFC 5869).

The file has one line per secret, newest first: `id base64`. The id is 8 hexadecimal digits derived from the
secret itself, so it finds typing errors too. It may be left out, so `openssl rand -base64 32` makes a line.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from relay.errors import ConfigError, StoreUnavailable
from relay.files.commands import command
from relay.store import secret_file

SECRET_LENGTH = 32
"""Length of one secret, in bytes."""
_REMEDY = "put it back from its backup, for under another one what the store holds cannot be opened"
NONCE_LENGTH = 12
"""Length of the random nonce before each ciphertext, in bytes."""


@dataclass(frozen=True, slots=True)
class SealedOctets:
    """A sealed value in a table row: the secret's id; nonce, ciphertext and 16-byte tag in one piece."""

    secret_id: str
    data: bytes = field(repr=False)


class SiteSecret:
    """One or more secrets of 32 bytes, newest first: seals under the newest, opens under any."""

    def __init__(self, *secrets: bytes) -> None:
        """Raises ValueError unless there is at least one and each has 32 bytes."""
        if not secrets or any(len(secret) != SECRET_LENGTH for secret in secrets):
            raise ValueError(f"a site secret is one or more strings of {SECRET_LENGTH} bytes")
        self._secrets = {_id(secret): secret for secret in secrets}
        self._ciphers = {secret_id: AESGCM(_derive(secret, b"seal", 32)) for secret_id, secret in self._secrets.items()}

    @classmethod
    def load(cls, path: Path) -> SiteSecret:
        """The secrets in the file. Raises ConfigError if it is missing, unsafe or invalid."""
        return cls.parsed(secret_file.read(path), path)

    @classmethod
    def parsed(cls, content: bytes, path: Path) -> SiteSecret:
        """The secrets in the content of the file at `path`. Raises ConfigError."""
        return cls(*_parse(content, path))

    @classmethod
    def load_or_create(cls, path: Path) -> SiteSecret:
        """The secrets in the file, which is created with a fresh secret if missing.

        Readers never see a partial file, even after a power failure. Raises ConfigError.
        """
        secret_file.create(path, fresh_secret())
        return cls.load(path)

    @classmethod
    def rotate(cls, path: Path) -> SiteSecret:
        """Adds a fresh secret before those in the file, atomically. Raises ConfigError.

        Relays read the file at start: until restarted, they hold mail whose keys another one sealed under the fresh
        secret.
        """
        secret_file.replace(path, lambda content: with_fresh(content, path))
        return cls.load(path)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of all secrets, newest first; they reveal nothing about the secrets."""
        return tuple(self._secrets)

    def seal(self, plaintext: bytes, context: bytes) -> SealedOctets:
        """`plaintext` under the newest secret, bound to `context`, which opening must repeat."""
        nonce = os.urandom(NONCE_LENGTH)
        newest = self.ids[0]
        return SealedOctets(newest, nonce + self._ciphers[newest].encrypt(nonce, plaintext, context))

    def open(self, sealed: SealedOctets, context: bytes) -> bytes:
        """Opens what was sealed with the same context. Raises StoreUnavailable if it was modified."""
        cipher = self._ciphers.get(sealed.secret_id)
        if cipher is None:
            raise StoreUnavailable(f"a stored row is under site secret {sealed.secret_id}, which is missing")
        nonce, ciphertext = sealed.data[:NONCE_LENGTH], sealed.data[NONCE_LENGTH:]
        try:
            return cipher.decrypt(nonce, ciphertext, context)
        except (InvalidTag, ValueError) as error:
            raise StoreUnavailable("a stored row was changed: its tag does not match") from error

    def derived(self, purpose: bytes) -> tuple[bytes, ...]:
        """A key of 32 bytes for another purpose than sealing, from each secret, newest first."""
        return tuple(_derive(secret, b"derived " + purpose, 32) for secret in self._secrets.values())

    def __repr__(self) -> str:
        return f"SiteSecret({', '.join(self.ids)})"


def fresh_secret() -> bytes:
    """The content of a file with one fresh secret."""
    return _format([os.urandom(SECRET_LENGTH)])


def with_fresh(content: bytes, path: Path) -> bytes:
    """The content of the file at `path` with a fresh secret before those in it. Raises ConfigError."""
    return _format([os.urandom(SECRET_LENGTH), *_parse(content, path)])


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"qumail-relay store 1 " + purpose).derive(secret)


def _id(secret: bytes) -> str:
    return _derive(secret, b"id", 4).hex()


def _format(secrets: list[bytes]) -> bytes:
    return b"".join(b"%s %s\n" % (_id(s).encode(), base64.b64encode(s)) for s in secrets)


def _put_back(path: Path) -> str:
    return f"{_REMEDY}: {command('cp', f'BACKUP/{path.name}', path)}"


def _parse(content: bytes, path: Path) -> list[bytes]:
    """Parses the secrets. Raises ConfigError with the line's number, never its text."""
    secrets = []
    for number, line in enumerate(content.splitlines(), 1):
        *ids, encoded = line.split() or [b""]
        try:
            secret = base64.b64decode(encoded, validate=True)
        except binascii.Error:
            secret = b""
        if len(secret) != SECRET_LENGTH or len(ids) > 1:
            raise ConfigError(f"{path}:{number}: not a site secret: base64 of {SECRET_LENGTH} bytes: {_put_back(path)}")
        if ids and ids[0] != _id(secret).encode():
            raise ConfigError(
                f"{path}:{number}: the id is another secret's: one of the two was changed: {_put_back(path)}"
            )
        secrets.append(secret)
    if not secrets:
        raise ConfigError(f"{path}: holds no site secret: base64 of {SECRET_LENGTH} bytes: {_put_back(path)}")
    return secrets
