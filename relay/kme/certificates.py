"""The certificates of the development servers: one authority, two KMEs, two SAEs, and their TLS settings.
Standard: RFC 5280, as strictly as OpenSSL's X509_STRICT; ETSI GS QKD 014 V1.1.1 (both authenticate).

Files, all of mode 0600 in a directory of mode 0700; keys are PEM PKCS#8 without a password::

    ca.pem ca.key                                the authority that servers and clients trust
    km-1.pem km-1.key  km-2.pem km-2.key         servers: CN "KM1" and "KM2", SAN localhost, 127.0.0.1, ::1
    sae-1.pem sae-1.key  sae-2.pem sae-2.key     clients: CN "sae-1" (Bob) and "sae-2" (Alice)
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import secrets
import ssl
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from relay.errors import ConfigError
from relay.keys.development import AUTHORITY, KME_IDS

SAES: Mapping[str, str] = {"1": "KM2", "2": "KM1"}
"""The KME of each SAE."""

_AUTHORITY_LIFETIME = timedelta(days=3652)
_LIFETIME = timedelta(days=397)
_RENEW_BEFORE = timedelta(days=30)
_CLOCK_SKEW = timedelta(hours=1)

_UNUSABLE = (
    FileNotFoundError,
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.ExtensionNotFound,
)
"""Exceptions for a certificate or key that is not ours."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """The holder of a certificate: file name, CN, and the host names of a server (none: a client)."""

    file: str
    common_name: str
    hosts: frozenset[str] = frozenset()

    @property
    def name(self) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)])

    @property
    def alternative_names(self) -> list[x509.GeneralName]:
        return [_general_name(host) for host in sorted(self.hosts)]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


_AUTHORITY = _Holder("ca", AUTHORITY)


def prepare(state_dir: Path, host: str, now: datetime | None = None, saes: Mapping[str, str] = SAES) -> None:
    """Ensures that `state_dir` has the complete set of certificates, valid at `now` and for `host`.

    A set that is incomplete, inconsistent, or valid for a month or less is replaced as a whole. Safe against other
    processes that do the same. Raises ConfigError if files cannot be written.
    """
    now = now or datetime.now(UTC)
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host})
    holders = [_Holder(_kme_file(kme), kme, hosts) for kme in KME_IDS]
    holders += [_Holder(f"sae-{sae}", common_name_of_sae(sae)) for sae in saes]
    _make_private_directory(state_dir)
    try:
        with _locked(state_dir):
            if not _is_complete(state_dir, holders, now):
                authority = _issue(state_dir, _AUTHORITY, None, now)
                for holder in holders:
                    _issue(state_dir, holder, authority, now)
    except OSError as error:
        raise ConfigError(f"{state_dir}: certificates cannot be kept here: {error}") from error


def server_context(state_dir: Path, kme: str) -> ssl.SSLContext:
    """TLS 1.2 or later as `kme` ("KM1", "KM2"), for clients with a certificate of our authority only."""
    file = _kme_file(kme)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(state_dir / "ca.pem")
    context.load_cert_chain(state_dir / f"{file}.pem", state_dir / f"{file}.key")
    return context


def common_name_of_sae(sae: str) -> str:
    """The CN of the client certificate of SAE `sae`."""
    return f"sae-{sae}"


def write_private(path: Path, content: bytes) -> None:
    """Writes `content` to `path` with mode 0600, atomically; on OSError nothing is changed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch(mode=0o600, exist_ok=False)
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _kme_file(kme: str) -> str:
    return f"km-{KME_IDS.index(kme) + 1}"


def _issue(state_dir: Path, holder: _Holder, authority: _Pair | None, now: datetime) -> _Pair:
    """Makes and writes a key and its certificate; without an `authority` it is the authority's own.

    RFC 5280, 4.2.1.1 and 4.2.1.2 require both key identifiers.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    signer = authority.key if authority else key
    builder = x509.CertificateBuilder(
        issuer_name=_AUTHORITY.name,
        subject_name=holder.name,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - _CLOCK_SKEW,
        not_valid_after=now + (_LIFETIME if authority else _AUTHORITY_LIFETIME),
    )
    builder = (
        builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None if authority else 0), critical=True)
        .add_extension(_key_usage(is_authority=authority is None), critical=True)
    )
    if authority:
        purpose = ExtendedKeyUsageOID.SERVER_AUTH if holder.hosts else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if holder.hosts:
        builder = builder.add_extension(x509.SubjectAlternativeName(holder.alternative_names), critical=False)
    certificate = builder.sign(signer, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(state_dir / f"{holder.file}.key", private)
    write_private(state_dir / f"{holder.file}.pem", certificate.public_bytes(Encoding.PEM))
    return _Pair(certificate, key)


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _is_complete(state_dir: Path, holders: list[_Holder], now: datetime) -> bool:
    """Whether all files exist, are consistent, and stay valid for a while."""
    try:
        authority = _read(state_dir, _AUTHORITY)
        for holder in (_AUTHORITY, *holders):
            certificate = _read(state_dir, holder)
            certificate.verify_directly_issued_by(authority)
            valid_until = certificate.not_valid_after_utc - _RENEW_BEFORE
            if certificate.subject != holder.name or not certificate.not_valid_before_utc <= now < valid_until:
                return False
            if holder.hosts:
                names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
                if not {*holder.alternative_names} <= {*names}:
                    return False
    except _UNUSABLE:
        return False
    return True


def _read(directory: Path, holder: _Holder) -> x509.Certificate:
    certificate = x509.load_pem_x509_certificate((directory / f"{holder.file}.pem").read_bytes())
    key = load_pem_private_key((directory / f"{holder.file}.key").read_bytes(), password=None)
    if key.public_key() != certificate.public_key():
        raise ValueError("the key is not the certificate's")
    if (directory / f"{holder.file}.key").stat().st_mode & 0o077:
        raise ValueError("others may have read the key")
    return certificate


def _make_private_directory(path: Path) -> None:
    """Creates `path` with mode 0700, or checks that it is a private directory of ours.

    Raises ConfigError with the remedy. It does not change the mode of an existing directory.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made into a directory: {error.strerror}") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path}: others may enter it; name another directory, or make it yours alone")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Exclusive lock of `directory`; waits for other processes."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
