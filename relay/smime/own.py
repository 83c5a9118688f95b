"""This site's own S/MIME certificates with their private keys, as [smime] names them.
Standard: RFC 5208 and RFC 7468 (PEM), RFC 7292 (PKCS#12); files that only the relay can read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import pkcs12

from relay.config import SMIMEKeySettings
from relay.errors import ConfigError
from relay.identity.files import read_public, read_secret
from relay.smime.usable import comparable, unusable_for_signing

PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A certificate of this site, its private key, and the certificates of the CAs above it, as far as given.

    `mailboxes` are those of the person whose key it is, comparable; none for the key of the whole site.
    """

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()
    mailboxes: frozenset[str] = frozenset()


def load_own(settings: Sequence[SMIMEKeySettings]) -> tuple[OwnKey, ...]:
    """The keys in their order. Raises ConfigError; no key or passphrase is in its text."""
    return tuple(map(_load, settings))


def signing_key(keys: Sequence[OwnKey], now: datetime) -> OwnKey | None:
    """The first key of the whole site that may sign at this aware time."""
    of_site = (each for each in keys if not each.mailboxes)
    return next((each for each in of_site if not unusable_for_signing(each.certificate, now)), None)


def why_none_signs(keys: Sequence[OwnKey], now: datetime) -> str:
    """Why `signing_key` has none."""
    troubles = [
        f"{each.certificate.subject.rfc4514_string()}: {unusable_for_signing(each.certificate, now)}"
        for each in keys
        if not each.mailboxes
    ]
    return f"no certificate of [smime] may sign: {'; '.join(troubles) or 'none is of the whole site'}"


def _load(settings: SMIMEKeySettings) -> OwnKey:
    passphrase = None if settings.passphrase is None else read_secret(settings.passphrase).partition(b"\n")[0].rstrip()
    if settings.key is None:
        file = settings.certificate
        key, certificate, chain = _of_pkcs12(file, read_secret(file), passphrase)
    else:
        file = settings.key
        certificate, *chain = _of_pem(settings.certificate)
        key = _key(file, read_secret(file), passphrase)
    if not isinstance(key, PrivateKey):
        raise ConfigError(f"{file}: the key is neither RSA nor on an elliptic curve")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{file}: the key is not that of the certificate {certificate.subject.rfc4514_string()}")
    return OwnKey(certificate, key, tuple(chain), frozenset(map(comparable, settings.mailboxes)))


def _of_pem(file: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(read_public(file))
    except ValueError as error:
        raise ConfigError(f"{file}: not certificates in PEM: {error}") from error


def _key(file: Path, content: bytes, passphrase: bytes | None) -> object:
    try:
        return serialization.load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: not a private key in PEM, or its passphrase is another one or missing") from error


def _of_pkcs12(
    file: Path, content: bytes, passphrase: bytes | None
) -> tuple[object, x509.Certificate, list[x509.Certificate]]:
    try:
        bag = pkcs12.load_pkcs12(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{file}: not PKCS#12, or its passphrase is another one or missing") from error
    if bag.key is None or bag.cert is None:
        raise ConfigError(f"{file}: has no private key with its certificate")
    return bag.key, bag.cert.certificate, [each.certificate for each in bag.additional_certs]
