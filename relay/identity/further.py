"""Key pairs of further KEMs, which have no certificates: file names, writing and reading.
Standard: JSON with base64; with a passphrase, AES-256-GCM (SP 800-38D) under a key made by scrypt (RFC 7914).

Beside the other files of an identity (directory.py), of mode 0600 like them::

    kem-NAME.ID.key   the private key in liboqs' form, encrypted if the identity has a passphrase
    kem-NAME.ID.pub   the public key and its time of creation; the pair is used once this exists

NAME is that of the KEM, ID the first 16 hexadecimal digits of SHA-256 over the public key. Of several pairs of one KEM
peers get the newest, and the others still open. The signature on the peer document authenticates public keys.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from relay.errors import ConfigError, KEMUnavailable
from relay.files.stamps import files_in
from relay.formats.cms import FURTHER_KEMS, KEMS, KEY_IDENTIFIER_OCTETS
from relay.identity import files, liboqs

_SALT_OCTETS = 16
_NONCE_OCTETS = 12


@dataclass(frozen=True)
class FurtherKEMPair:
    """A key pair of the KEM `name`; `made` (aware) decides which of several is the newest.

    `identifier` (20 octets) names the recipient in CMS.
    """

    name: str
    made: datetime
    public_key: bytes = field(repr=False)
    private_key: bytes = field(repr=False)
    identifier: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "identifier", key_identifier(self.public_key))


class _StrictFile(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, hide_input_in_errors=True,
        ser_json_bytes="base64", val_json_bytes="base64",
    )  # fmt: skip


class _Public(_StrictFile):
    format: Literal[1] = 1
    kem: str
    made: AwareDatetime
    public_key: bytes


class _Private(_StrictFile):
    """`salt` and `nonce` are empty if `private_key` is not encrypted."""

    format: Literal[1] = 1
    kem: str
    private_key: bytes
    salt: bytes = b""
    nonce: bytes = b""


_Model = TypeVar("_Model", bound=_StrictFile)


def key_identifier(public_key: bytes) -> bytes:
    """The identifier of a further KEM's public key in messages: the first 20 octets of its SHA-256."""
    return hashlib.sha256(public_key).digest()[:KEY_IDENTIFIER_OCTETS]


def check_names(names: Sequence[str]) -> None:
    """Raises ConfigError unless each is a further KEM that is available on this machine."""
    if faults := [cause for name in names if (cause := liboqs.unavailable(name))]:
        raise ConfigError(faults)


def names_in(directory: Path) -> tuple[str, ...]:
    """The further KEMs with keys in `directory`, in the order of the format's table."""
    return tuple(name for name in FURTHER_KEMS if _public_files(directory, name))


def make_pair(directory: Path, name: str, passphrase: bytes | None, now: datetime) -> None:
    """Writes a fresh pair, newer than previous ones even if the clock went back. Raises ConfigError."""
    try:
        keys = liboqs.generate(name)
    except KEMUnavailable as error:
        raise ConfigError(str(error)) from error
    before = [_public(path).made for path in _public_files(directory, name)]
    made = max([now, *(each + timedelta(seconds=1) for each in before)])
    stem = directory / f"kem-{name}.{_identifier(keys.public_key)}"
    private = _sealed(name, keys, passphrase)
    files.write(stem.with_name(stem.name + ".key"), private.model_dump_json(indent=2).encode() + b"\n")
    public = _Public(kem=name, made=made, public_key=keys.public_key)
    files.write(stem.with_name(stem.name + ".pub"), public.model_dump_json(indent=2).encode() + b"\n")


def read_pairs(directory: Path, passphrase: bytes | None) -> tuple[FurtherKEMPair, ...]:
    """All pairs, the newest of each KEM first; does not need liboqs. Raises ConfigError."""
    pairs = [_read(path, name, passphrase) for name in names_in(directory) for path in _public_files(directory, name)]
    return tuple(sorted(pairs, key=lambda pair: pair.made, reverse=True))


def public_keys_in(directory: Path) -> list[bytes]:
    """The public key of every pair in the directory; does not read private keys. Raises ConfigError."""
    return [_public(path).public_key for name in names_in(directory) for path in _public_files(directory, name)]


def _read(path: Path, name: str, passphrase: bytes | None) -> FurtherKEMPair:
    public = _public(path)
    public_key = public.public_key
    if public.kem != name or len(public_key) != KEMS[name].public_key_octets:
        raise ConfigError(f"{path}: not a public key of {name}")
    if path.name != f"kem-{name}.{_identifier(public_key)}.pub":
        raise ConfigError(f"{path}: the public key of another file")
    secret = path.with_suffix(".key")
    private = _parsed(secret, files.read_secret(secret), _Private)
    if private.kem != name:
        raise ConfigError(f"{secret}: not a private key of {name}")
    return FurtherKEMPair(name, public.made, public_key, _unsealed(secret, private, public_key, passphrase))


def _sealed(name: str, keys: liboqs.KEMKeys, passphrase: bytes | None) -> _Private:
    if passphrase is None:
        return _Private(kem=name, private_key=keys.private_key)
    salt, nonce = os.urandom(_SALT_OCTETS), os.urandom(_NONCE_OCTETS)
    encrypted = AESGCM(_key(passphrase, salt)).encrypt(nonce, keys.private_key, _bound(name, keys.public_key))
    return _Private(kem=name, private_key=encrypted, salt=salt, nonce=nonce)


def _unsealed(path: Path, private: _Private, public_key: bytes, passphrase: bytes | None) -> bytes:
    if not private.salt:
        return private.private_key
    if passphrase is None:
        raise ConfigError(f"{path}: encrypted, but no passphrase is set ([identity] passphrase)")
    try:
        cipher = AESGCM(_key(passphrase, private.salt))
        return cipher.decrypt(private.nonce, private.private_key, _bound(private.kem, public_key))
    except (InvalidTag, ValueError) as error:
        raise ConfigError(f"{path}: the passphrase is another one, or the file is damaged") from error


def _key(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, n=2**14, r=8, p=1).derive(passphrase)


def _bound(name: str, public_key: bytes) -> bytes:
    """The associated data of the private key: KEM and public key."""
    return b"qumail-relay KEM key 1\0" + name.encode() + b"\0" + hashlib.sha256(public_key).digest()


def _identifier(public_key: bytes) -> str:
    return key_identifier(public_key).hex()[:16]


def _public_files(directory: Path, name: str) -> list[Path]:
    return files_in(directory, f"kem-{name}.*.pub")


def _public(path: Path) -> _Public:
    return _parsed(path, files.read_public(path), _Public)


def _parsed(path: Path, content: bytes, model: type[_Model]) -> _Model:
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: not a key file of a further KEM") from error
