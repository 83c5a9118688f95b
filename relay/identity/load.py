"""Reads an identity from its directory and checks that its parts belong together.
Standard: RFC 5280, 6.1 for the one step from the site's CA; layout.py says which files there are.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from relay.errors import ConfigError
from relay.identity import files
from relay.identity.checks import check_ca, check_certificate, check_issued_by, domains_of, valid_now
from relay.identity.further import read_pairs
from relay.identity.layout import (
    Stem,
    as_kem,
    as_rsa,
    as_signing,
    ca_stem,
    read_certificate,
    read_key,
    read_passphrase,
    stems,
)
from relay.identity.pairs import Identity, Key, KeyPair, Role

_MAKE = "`qumail-relay identity new` makes this site's keys and certificates"
_PUT_CA = "put the certificate of the organisation's CA here"


def load_identity(directory: Path, *, passphrase: Path | None = None, now: datetime | None = None) -> Identity:
    """The identity in `directory`; `passphrase` is the file that its keys are encrypted with, if they are.

    An expired certificate is no error here: `expiring` reports it and `valid_now` tells. Raises ConfigError
    with the file's name where something is missing, does not belong together, or could be read by others.
    """
    files.check_directory(directory)
    secret = read_passphrase(passphrase)
    reader = _Reader(directory, secret, now or datetime.now(UTC))
    ca = reader.ca()
    kem, older_kem = reader.pairs(Role.KEM, as_kem, ca)
    signing, _ = reader.pairs(Role.SIGNING, as_signing, ca)
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


class _Reader:
    def __init__(self, directory: Path, passphrase: bytes | None, now: datetime) -> None:
        self._directory, self._passphrase, self._now = directory, passphrase, now

    def ca(self) -> x509.Certificate:
        path = ca_stem(self._directory).certificate
        if not path.exists():
            requested = any(self._directory.glob("*.csr"))
            raise ConfigError(f"{path}: missing; {_PUT_CA if requested else _MAKE}")
        certificate = read_certificate(path)
        _named(path, check_ca, certificate)
        return certificate

    def pairs(
        self, role: Role, narrow: Callable[[object], Key], ca: x509.Certificate
    ) -> tuple[KeyPair[Key], tuple[KeyPair[Key], ...]]:
        """The pair in use and the older ones, newest first."""
        found = [(stem, self._pair(stem, role, narrow)) for stem in self._complete(role)]
        found.sort(key=lambda each: self._rank(each[1].certificate), reverse=True)
        (stem, current), *older = found
        _named(stem.certificate, check_issued_by, current.certificate, ca)
        return current, tuple(pair for _, pair in older)

    def _complete(self, role: Role) -> list[Stem]:
        every = stems(self._directory, role)
        complete = [stem for stem in every if stem.certificate.exists()]
        if not every:
            raise ConfigError(
                f"{self._directory}: no key for {role.label}; `qumail-relay identity new` completes the set"
            )
        if not complete:
            raise ConfigError(f"{every[-1].certificate}: missing; the key is there, its certificate has yet to come")
        return complete

    def _pair(self, stem: Stem, role: Role, narrow: Callable[[object], Key]) -> KeyPair[Key]:
        certificate = read_certificate(stem.certificate)
        _named(stem.certificate, check_certificate, certificate, role)
        private_key = read_key(stem.key, narrow, self._passphrase)
        if private_key.public_key() != certificate.public_key():
            raise ConfigError(f"{stem.certificate}: the certificate of another key than {stem.key.name}")
        return KeyPair(private_key, certificate)

    def _rank(self, certificate: x509.Certificate) -> tuple[bool, datetime, datetime, int]:
        """What makes a pair the one in use: that it is valid, then that it is new."""
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
