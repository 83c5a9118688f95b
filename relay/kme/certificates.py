"""The certificates of the development servers: one authority, two KMEs, two SAEs, and their TLS settings.
Standard: RFC 5280, as strictly as OpenSSL's X509_STRICT reads it; ETSI GS QKD 014 V1.1.1 (both authenticate).

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
from relay.keys.development import KME_IDS

SAES: Mapping[str, str] = {"1": "KM2", "2": "KM1"}
"""Which KME each SAE is attached to."""

_AUTHORITY_NAME = "QuMail Relay development CA"
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
"""How reading and checking says that a certificate or key is not one that we made."""


@dataclass(frozen=True, slots=True)
class _Holder:
    """Who a certificate is for: its files' name, its CN, and the names of a server (none: a client)."""

    file: str
    common_name: str
    hosts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Pair:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def write(self, directory: Path, file: str) -> None:
        private = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_private(directory / f"{file}.key", private)
        write_private(directory / f"{file}.pem", self.certificate.public_bytes(Encoding.PEM))


def prepare(state_dir: Path, host: str, now: datetime | None = None, saes: Mapping[str, str] = SAES) -> None:
    """See that `state_dir` has the complete set of certificates, valid at `now` and for `host`.

    A set that is incomplete, does not belong together, or has a month or less to live, is made anew as a
    whole. Safe against other processes that do the same. Raises ConfigError where files cannot be written.
    """
    now = now or datetime.now(UTC)
    holders = _holders(host, saes)
    _private_directory(state_dir)
    try:
        with _locked(state_dir):
            if not _is_complete(state_dir, holders, now):
                _make(state_dir, holders, now)
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


def _kme_file(kme: str) -> str:
    return f"km-{KME_IDS.index(kme) + 1}"


def _holders(host: str, saes: Mapping[str, str]) -> list[_Holder]:
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host})
    kmes = [_Holder(_kme_file(kme), kme, hosts) for kme in KME_IDS]
    return kmes + [_Holder(f"sae-{sae}", common_name_of_sae(sae)) for sae in saes]


def _make(state_dir: Path, holders: list[_Holder], now: datetime) -> None:
    authority = _authority(now)
    authority.write(state_dir, "ca")
    for holder in holders:
        _issue(authority, holder, now).write(state_dir, holder.file)


def _authority(now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(_AUTHORITY_NAME)
    usage = _key_usage(key_cert_sign=True, crl_sign=True)
    unsigned = (
        _builder(name, name, key.public_key(), key.public_key(), now, _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _Pair(unsigned.sign(key, hashes.SHA256()), key)


def _issue(authority: _Pair, holder: _Holder, now: datetime) -> _Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate.subject
    purpose = ExtendedKeyUsageOID.SERVER_AUTH if holder.hosts else ExtendedKeyUsageOID.CLIENT_AUTH
    unsigned = (
        _builder(_name(holder.common_name), issuer, key.public_key(), authority.key.public_key(), now, _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    )
    if holder.hosts:
        names = x509.SubjectAlternativeName([_general_name(host) for host in sorted(holder.hosts)])
        unsigned = unsigned.add_extension(names, critical=False)
    return _Pair(unsigned.sign(authority.key, hashes.SHA256()), key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    """What every certificate has; RFC 5280, 4.2.1.1 and 4.2.1.2 want both key identifiers."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
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
    """Whether every file is there, they belong together, and all of them will do for a while."""
    try:
        authority = _read(state_dir, "ca")
        pairs = {holder: _read(state_dir, holder.file) for holder in holders}
        return _will_do(authority, authority, now) and all(
            _will_do(pair, authority, now) and _is_for(pair.certificate, holder) for holder, pair in pairs.items()
        )
    except _UNUSABLE:
        return False


def _read(directory: Path, file: str) -> _Pair:
    certificate = x509.load_pem_x509_certificate((directory / f"{file}.pem").read_bytes())
    key = load_pem_private_key((directory / f"{file}.key").read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("the key is not the certificate's")
    if (directory / f"{file}.key").stat().st_mode & 0o077:
        raise ValueError("others may have read the key")
    return _Pair(certificate, key)


def _will_do(pair: _Pair, authority: _Pair, now: datetime) -> bool:
    pair.certificate.verify_directly_issued_by(authority.certificate)
    valid_until = pair.certificate.not_valid_after_utc - _RENEW_BEFORE
    return pair.certificate.not_valid_before_utc <= now < valid_until


def _is_for(certificate: x509.Certificate, holder: _Holder) -> bool:
    if certificate.subject != _name(holder.common_name):
        return False
    if not holder.hosts:
        return True
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {_general_name(host) for host in holder.hosts} <= set(names)


def _private_directory(path: Path) -> None:
    """Make `path` with mode 0700, or see that it is a directory of ours that nobody else may enter.

    Raises ConfigError saying what to do. A directory that others use is not closed to them.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be made into a directory: {error.strerror}") from error
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(f"{path}: others may enter it; name another directory, or chown and chmod 700 it")


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Wait until no other process holds `directory`, and hold it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_private(path: Path, content: bytes) -> None:
    """Put `content` into `path` with mode 0600, in one step; raises OSError and then changes nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
