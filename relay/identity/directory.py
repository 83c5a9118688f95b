"""The directory of an identity: names, reading and validation of its keys, certificates and requests.
Standard: PEM (RFC 7468) of PKCS#8 (RFC 5958; ML-KEM and ML-DSA as seeds, RFC 9935, RFC 9881), X.509 and PKCS#10.

The directory, of mode 0700, with files of mode 0600::

    ca.pem  ca.key                 the site's CA; ca.key is needed only to renew, so it may be kept elsewhere
    kem.ID.key  kem.ID.pem         the key of ML-KEM-1024 with P-384 and its certificate
    signing.ID.key ...             ML-DSA-87 with P-384; likewise rsa_encryption.ID and rsa_signing.ID
    signing.ID.csr, kem.ID.pub     requests to an organisation's CA (make.py)
    kem-NAME.ID.key  kem-NAME.ID.pub   a further KEM's pair, if there is one (further.py)
    serial                         the serial number of the newest peer document

ID is the first 16 hexadecimal digits of the key's identifier (SHA-1 of the public key, RFC 5280, 4.2.1.2). A key
is used once its certificate exists, so an interrupted run leaves the previous pairs in use. Of several
pairs for one role the newest valid one is in use, and the older encryption keys still open. The file of a composite key
has two PKCS#8 keys, its halves (composite.py).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from relay.config import Config
from relay.config.tables import IdentitySettings
from relay.errors import ConfigError
from relay.files.credentials import credential_name
from relay.files.rights import UnixUser, acting_as, as_owner_of
from relay.files.stamps import files_in, is_there
from relay.identity import files
from relay.identity.certificates import (
    MIN_RSA_BITS,
    UNREADABLE,
    check_ca,
    check_certificate,
    check_issued_by,
    domains_of,
    valid_now,
)
from relay.identity.composite import (
    CompositeSigningPublicKey,
    kem_key,
    private_pem,
    signing_key,
)
from relay.identity.further import read_pairs
from relay.identity.pairs import Identity, Key, KeyPair, PrivateKey, Role
from relay.identity.x509_keys import AnyPublicKey, PublicKey, identifier_of, key_of

MAKE = "`qumail-relay identity new` makes this site's keys and certificates"
_PUT_CA = "put the certificate of the organisation's CA here"
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\n[^-]+-----END \1-----")
_MAX_HALVES = 2
_NOT_HYBRID = (
    "a key of an earlier release, without the half of P-384, which level pqc no longer uses: move the directory away, "
    "make a new identity with `qumail-relay identity new`, and have each peer import its document "
    "(`qumail-relay identity export`) and compare the fingerprint anew"
)
MIN_PASSPHRASE = 22
"""Minimum length of a passphrase, in octets: 22 of base64 are 128 bits. It must be random, since PKCS#8 hardly slows
guessing.
"""


def file_of(stem: Path, suffix: str) -> Path:
    """Returns one of a key's files by its suffix: key, pem, csr, pub or cnf."""
    return stem.with_name(f"{stem.name}.{suffix}")


def ca_stem(directory: Path) -> Path:
    """The files of the site's CA, without suffix."""
    return directory / "ca"


def stem_of(directory: Path, role: Role, key: PublicKey) -> Path:
    """Returns the path of this key's files, without a suffix."""
    return directory / f"{role}.{identifier_of(key).hex()[:16]}"


def stems(directory: Path, role: Role) -> list[Path]:
    """The file stems of all keys of one role, with or without a certificate."""
    return [path.with_suffix("") for path in files_in(directory, f"{role}.*.key")]


def read_passphrase(path: Path | None) -> bytes | None:
    """The first line of the passphrase file; None without a file. Raises ConfigError."""
    if path is None:
        return None
    line = files.read_secret(path).partition(b"\n")[0].strip()
    if len(line) < MIN_PASSPHRASE:
        raise ConfigError(f"{path}: a passphrase of {len(line)} octets is too short: openssl rand -base64 32 makes one")
    return line


def make_passphrase(path: Path, directory: Path, *, user: UnixUser | None = None) -> bool:
    """Writes 256 random bits in base64 to `path`, if there is none, nor any key in the identity's `directory`.

    Returns whether it did: the missing passphrase of existing keys is not replaced, and credentials are systemd's. Root
    reads the directory as the relay's `user`, and creates the file for that user. Raises ConfigError.
    """
    if credential_name(path):
        return False
    with acting_as(user):
        if is_there(path) or files_in(directory, "*.key"):
            return False
    with as_owner_of(path.parent):
        return files.create(path, base64.b64encode(os.urandom(32)) + b"\n", owner=user)


def any_encrypted(directory: Path) -> bool:
    """Whether a private key there is encrypted under a passphrase. Raises ConfigError."""
    return any(_ENCRYPTED in files.read_secret(path) for path in files_in(directory, "*.key"))


def read_key(path: Path, narrow: Callable[[Sequence[object]], Key], passphrase: bytes | None) -> Key:
    """The private key in a file that only we can read; `narrow` makes it of the one or two that the file has.

    Raises ConfigError, never with its content.
    """
    content = files.read_secret(path)
    encrypted = _ENCRYPTED in content
    if encrypted and passphrase is None:
        raise ConfigError(f"{path}: encrypted, but no passphrase is set ([identity] passphrase)")
    try:
        # Primality was checked when the key was made; as_rsa detects later changes.
        secret = passphrase if encrypted else None
        keys = [
            load_pem_private_key(each[0], secret, unsafe_skip_rsa_key_validation=True)
            for each in islice(_PEM.finditer(content), _MAX_HALVES + 1)
        ]
        if len(keys) == 1 and isinstance(keys[0], MLKEM1024PrivateKey | MLDSA87PrivateKey):
            raise ConfigError(f"{path}: {_NOT_HYBRID}")
        return narrow(keys)
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, InternalError) as error:
        fault = "the passphrase is another one, or the file is damaged" if encrypted else "not a key for this role"
        raise ConfigError(f"{path}: {fault}; expected PKCS#8 in PEM (ML-KEM and ML-DSA in the seed form)") from error


def write_key(path: Path, key: PrivateKey, passphrase: bytes | None) -> None:
    """Writes PKCS#8 in PEM, encrypted (PBES2, AES-256-CBC) with the passphrase, if any. Raises ConfigError."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
    if isinstance(key, RSAPrivateKey):
        files.write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    else:
        files.write(path, private_pem(key, encryption))


def read_certificate(path: Path) -> x509.Certificate:
    """The one certificate in a PEM file that nobody else can write. Raises ConfigError."""
    try:
        [certificate] = x509.load_pem_x509_certificates(files.read_public(path))
    except UNREADABLE as error:
        raise ConfigError(f"{path}: not one X.509 certificate in PEM") from error
    return certificate


def write_certificate(path: Path, certificate: x509.Certificate) -> None:
    """Writes the certificate in PEM. Raises ConfigError."""
    files.write(path, certificate.public_bytes(Encoding.PEM))


def as_rsa(keys: Sequence[object]) -> RSAPrivateKey:
    """The one key if it is a consistent RSA key of 4096 bits or more.

    A signature proves consistency (FIPS 140-3, pair-wise consistency): testing the factors again would take half a
    second for each key. Raises TypeError, ValueError, InvalidSignature and
    InternalError.
    """
    match keys:
        case [RSAPrivateKey() as key] if key.key_size >= MIN_RSA_BITS:
            pass
        case _:
            raise TypeError("not an RSA key of 4096 bits or more")
    message = b"pair-wise consistency"
    signature = key.sign(message, PKCS1v15(), SHA256())
    key.public_key().verify(signature, message, PKCS1v15(), SHA256())
    return key


def own_identity(config: Config) -> Identity | None:
    """This site's keys and certificates, or None if there are none yet. Raises ConfigError."""
    if config.identity is None or not is_there(config.identity.directory):
        return None
    return load_identity(config.identity.directory, passphrase=config.identity.passphrase)


def load_identity(directory: Path, *, passphrase: Path | None = None, now: datetime | None = None) -> Identity:
    """The identity in `directory`; `passphrase` is the file with the passphrase of its keys, if any.

    An expired certificate is no error: `expiring` and `valid_now` report it. Raises ConfigError with the file name if
    something is missing, inconsistent, or readable for others.
    """
    files.check_directory(directory)
    secret = read_passphrase(passphrase)
    reader = _Reader(directory, secret, now or datetime.now(UTC))
    ca = reader.ca()
    kem, older_kem = reader.pairs(Role.KEM, kem_key, ca)
    signing, _ = reader.pairs(Role.SIGNING, signing_key, ca)
    rsa_encryption, older_rsa_encryption = reader.pairs(Role.RSA_ENCRYPTION, as_rsa, ca)
    rsa_signing, _ = reader.pairs(Role.RSA_SIGNING, as_rsa, ca)
    return Identity(
        ca=ca,
        domains=domains_of(signing.certificate),
        kem=kem,
        signing=signing,
        rsa_encryption=rsa_encryption,
        rsa_signing=rsa_signing,
        older_kem=older_kem,
        older_rsa_encryption=older_rsa_encryption,
        further_kems=read_pairs(directory, secret),
    )


def check_own_ca(identity: IdentitySettings) -> None:
    """Raises ConfigError if our own CA's key is unusable: then certificates cannot be renewed.

    It is not expected where certificates were requested from an organisation's CA, or the key is kept elsewhere.
    """
    stem, path = ca_stem(identity.directory), file_of(ca_stem(identity.directory), "key")
    if is_there(path):
        key = read_key(path, signing_key, read_passphrase(identity.passphrase))
        if key.public_key() != _public_key(file_of(stem, "pem")):
            raise ConfigError(f"{path}: the key of another CA than ca.pem: certificates cannot be renewed")
    elif not identity.ca_key_elsewhere and is_there(stem.parent) and not files_in(identity.directory, "*.csr"):
        raise ConfigError(
            f"{path}: missing: certificates cannot be renewed: put it back from a backup; if it is kept elsewhere on "
            "purpose: ca_key_elsewhere = true in [identity]"
        )


def signing_keys(directory: Path) -> list[CompositeSigningPublicKey]:
    """The public keys of all signing certificates, including renewed ones. Raises ConfigError."""
    paths = [file_of(stem, "pem") for stem in stems(directory, Role.SIGNING)]
    keys = [_public_key(path) for path in paths if is_there(path)]
    return [key for key in keys if isinstance(key, CompositeSigningPublicKey)]


def _public_key(path: Path) -> AnyPublicKey:
    try:
        return key_of(read_certificate(path))
    except UNREADABLE as error:
        raise ConfigError(f"{path}: a certificate whose key cannot be read") from error


class _Reader:
    def __init__(self, directory: Path, passphrase: bytes | None, now: datetime) -> None:
        self._directory, self._passphrase, self._now = directory, passphrase, now

    def ca(self) -> x509.Certificate:
        path = file_of(ca_stem(self._directory), "pem")
        if not is_there(path):
            requested = files_in(self._directory, "*.csr")
            raise ConfigError(f"{path}: missing; {_PUT_CA if requested else MAKE}")
        certificate = read_certificate(path)
        _named(path, check_ca, certificate)
        return certificate

    def pairs(
        self, role: Role, narrow: Callable[[Sequence[object]], Key], ca: x509.Certificate
    ) -> tuple[KeyPair[Key], tuple[KeyPair[Key], ...]]:
        """The pair in use and the older ones, newest first."""
        every = stems(self._directory, role)
        complete = [stem for stem in every if is_there(file_of(stem, "pem"))]
        if not every:
            raise ConfigError(
                f"{self._directory}: no key for {role.label}; `qumail-relay identity new` completes the set"
            )
        if not complete:
            missing = file_of(every[-1], "pem")
            raise ConfigError(f"{missing}: missing; the key is there, its certificate has yet to come")
        candidates = [(file_of(stem, "pem"), self._pair(stem, role, narrow)) for stem in complete]
        candidates.sort(key=lambda each: self._rank(each[1].certificate), reverse=True)
        (path, current), *older = candidates
        _named(path, check_issued_by, current.certificate, ca)
        return current, tuple(pair for _, pair in older)

    def _pair(self, stem: Path, role: Role, narrow: Callable[[Sequence[object]], Key]) -> KeyPair[Key]:
        path, key_path = file_of(stem, "pem"), file_of(stem, "key")
        private_key = read_key(key_path, narrow, self._passphrase)
        certificate = read_certificate(path)
        _named(path, check_certificate, certificate, role)
        if private_key.public_key() != key_of(certificate):
            raise ConfigError(f"{path}: the certificate of another key than {key_path.name}")
        return KeyPair(private_key, certificate)

    def _rank(self, certificate: x509.Certificate) -> tuple[bool, datetime, datetime, int]:
        """Sort key for the pair in use: validity first, then age."""
        return (
            valid_now(certificate, self._now),
            certificate.not_valid_before_utc,
            certificate.not_valid_after_utc,
            certificate.serial_number,
        )


def _named(path: Path, check: Callable[..., None], *arguments: object) -> None:
    try:
        check(*arguments)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
