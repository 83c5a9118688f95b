"""The steps that making, renewing and requesting an identity are put together from.
A key is written before its certificate, so that an interrupted run leaves a usable set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.errors import ConfigError
from relay.identity import files, further, issue
from relay.identity.checks import is_ascii_domain
from relay.identity.layout import (
    Stem,
    as_kem,
    as_rsa,
    as_signing,
    ca_stem,
    read_certificate,
    read_key,
    read_passphrase,
    stem_of,
    stems,
    write_certificate,
    write_key,
)
from relay.identity.pairs import PrivateKey, Role

RSA_BITS = 4096

Progress = Callable[[str], None]
"""Told what is about to be made; RSA takes seconds."""


class Maker:
    """What making and renewing share: the arguments, and where things are written."""

    def __init__(
        self,
        directory: Path,
        name: str,
        domains: Sequence[str],
        valid_days: int,
        passphrase: Path | None,
        now: datetime | None,
        progress: Progress,
    ) -> None:
        _check_name(name)
        if wrong := [domain for domain in domains if not is_ascii_domain(domain)]:
            raise ConfigError(f"{', '.join(wrong)}: not a mail domain in ASCII (A-labels), as certificates need it")
        if not domains:
            raise ConfigError("an identity needs at least one mail domain")
        self.directory, self._name, self._domains = directory, name, domains
        self._days, self._now = valid_days, now or datetime.now(UTC)
        self._passphrase, self._progress = read_passphrase(passphrase), progress

    def has_certificate(self, role: Role) -> bool:
        """Whether there is a key with a certificate for this role."""
        return any(stem.certificate.exists() for stem in stems(self.directory, role))

    def ca(self) -> tuple[x509.Certificate, MLDSA87PrivateKey]:
        """The CA, made where there is none."""
        stem = ca_stem(self.directory)
        if not stem.key.exists():
            if stem.certificate.exists():
                raise ConfigError(f"{stem.key}: missing; put the CA's private key back here to issue certificates")
            self._progress("the CA (ML-DSA-87)")
            write_key(stem.key, MLDSA87PrivateKey.generate(), self._passphrase)
        key = read_key(stem.key, as_signing, self._passphrase)
        if not stem.certificate.exists():
            holder = issue.subject(self._name, "QuMail Relay CA")
            write_certificate(stem.certificate, issue.ca_certificate(key, holder, self._now))
        return read_certificate(stem.certificate), key

    def renewed_ca(self) -> tuple[x509.Certificate, MLDSA87PrivateKey]:
        """The CA, with a longer-lived certificate for the same key where it would end before what it issues."""
        ca, key = self.ca()
        if ca.not_valid_after_utc < self._now + timedelta(days=self._days):
            ca = issue.ca_certificate(key, ca.subject, self._now)
            write_certificate(ca_stem(self.directory).certificate, ca)
        return ca, key

    def waiting_key(self, role: Role) -> PrivateKey | None:
        """A key that has no certificate yet."""
        waiting = [stem for stem in stems(self.directory, role) if not stem.certificate.exists()]
        return self._read(role, waiting[-1].key) if waiting else None

    def _read(self, role: Role, path: Path) -> PrivateKey:
        if role is Role.KEM:
            return read_key(path, as_kem, self._passphrase)
        if role is Role.SIGNING:
            return read_key(path, as_signing, self._passphrase)
        return read_key(path, as_rsa, self._passphrase)

    def new_key(self, role: Role) -> PrivateKey:
        """A fresh key, written."""
        self._progress(role.label)
        key = _generate(role)
        write_key(self.stem(role, key).key, key, self._passphrase)
        return key

    def new_further_kem(self, name: str) -> None:
        """A fresh pair of a further KEM, written."""
        self._progress(name)
        further.make_pair(self.directory, name, self._passphrase, self._now)

    def certify(self, role: Role, key: PrivateKey, ca: x509.Certificate, ca_key: MLDSA87PrivateKey) -> None:
        """A certificate for the key from our own CA, written."""
        try:
            certificate = issue.certificate(
                role, key.public_key(), name=self._name, domains=self._domains,
                ca=ca, ca_key=ca_key, now=self._now, days=self._days,
            )  # fmt: skip
        except ValueError as error:
            raise ConfigError(f"no certificate can be made for {self._name!r}: {error}") from error
        write_certificate(self.stem(role, key).certificate, certificate)

    def request(self, role: Role, key: PrivateKey) -> list[Path]:
        """What an organisation's CA needs to certify the key, written."""
        stem = self.stem(role, key)
        if isinstance(key, MLKEM1024PrivateKey):
            files.write(stem.public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
            files.write(stem.extensions, issue.openssl_extensions(stem.name, self._domains).encode())
            return [stem.public, stem.extensions]
        try:
            request = issue.signing_request(role, key, name=self._name, domains=self._domains)
        except ValueError as error:
            raise ConfigError(f"no request can be made for {self._name!r}: {error}") from error
        files.write(stem.request, request.public_bytes(Encoding.PEM))
        return [stem.request]

    def stem(self, role: Role, key: PrivateKey) -> Stem:
        """Where the files of this key belong."""
        return stem_of(self.directory, role, key.public_key())


def _check_name(name: str) -> None:
    try:
        issue.subject(name, "CA")
    except ValueError as error:
        raise ConfigError(f"{name!r}: not a name that a certificate can carry: {error}") from error


def _generate(role: Role) -> PrivateKey:
    if role is Role.KEM:
        return MLKEM1024PrivateKey.generate()
    if role is Role.SIGNING:
        return MLDSA87PrivateKey.generate()
    return rsa.generate_private_key(public_exponent=65537, key_size=RSA_BITS)
