"""TLS as a server: the certificate and its renewal without a restart, and what `check` says of it.
Standard: RFC 8314 and RFC 9325 (TLS 1.2 or later), RFC 5280 (validity). For users' programs, and for [status].
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import structlog
from cryptography import x509

from relay.errors import ConfigError
from relay.files import pem
from relay.files.stamps import Stamps, is_there, read_regular, stamps_of

log = structlog.get_logger(__name__)

EXPIRES_SOON = timedelta(days=14)
"""Time before its end at which a certificate is reported; automatic renewal comes earlier."""


class ServerTLS:
    """What a handshake uses at this moment; connections keep what they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """PEM files: the certificate with the chain below its root, and its private key. Raises ConfigError."""
        self._certificate = certificate
        self._key = key
        self.read_at = self.stamps()
        self.context = server_context(certificate, key)

    def stamps(self) -> Stamps:
        """What differs once a file has changed."""
        return stamps_of((self._certificate, self._key))

    def reload(self) -> None:
        """Reloads the files; keeps the certificate in use if they cannot be used."""
        self.read_at = self.stamps()
        try:
            self.context = server_context(self._certificate, self._key)
        except ConfigError as error:
            log.error("certificate_not_reloaded", problems=error.problems)
            return
        log.info("certificate_reloaded", file=str(self._certificate))


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """A context for TLS 1.2 or later. Raises ConfigError if one of the two files cannot be used."""
    for path in (certificate, key):
        if not is_there(path):
            raise ConfigError(f"{path}: no such file; a certificate and its key are needed, in PEM")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    try:
        pem.show(context, certificate, key, _no_passphrase)
    except ssl.SSLError as error:
        cause = "the key is another certificate's" if error.reason == "KEY_VALUES_MISMATCH" else str(error)
        raise ConfigError(f"{certificate}, {key}: cannot be used for TLS: {cause}") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}, {key}: cannot be read: {error}") from error
    return context


def _no_passphrase() -> str:
    """Raises ValueError; without a callback OpenSSL would prompt on the terminal."""
    raise ValueError("the private key is encrypted; the relay needs one without a passphrase")


def certificate_state(certificate: Path, key: Path, now: datetime) -> tuple[str, list[str]]:
    """A description of the certificate (names, expiry), and the faults of the two files."""
    try:
        server_context(certificate, key)
        leaf = x509.load_pem_x509_certificates(read_regular(certificate))[0]
    except ConfigError as error:
        return str(certificate), error.problems
    until = leaf.not_valid_after_utc
    detail = f"{certificate}: for {', '.join(_names(leaf)) or 'no host name'}, until {until:%Y-%m-%d}"
    return detail, list(_problems(leaf, certificate, now))


def _problems(leaf: x509.Certificate, certificate: Path, now: datetime) -> Iterator[str]:
    begin, until = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    if now < begin:
        yield f"{certificate}: is valid only from {begin:%Y-%m-%d %H:%M} UTC on"
    if until <= now:
        yield f"{certificate}: expired on {until:%Y-%m-%d %H:%M} UTC: mail programs refuse it"
    elif until - now < EXPIRES_SOON:
        yield f"{certificate}: expires on {until:%Y-%m-%d %H:%M} UTC, in {(until - now).days} days: renew it"


def _names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)
