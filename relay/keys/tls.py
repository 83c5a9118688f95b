"""TLS to a KME: mutual authentication, name checks, renewed files, and warnings before certificates end.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (TLS 1.2 or later); RFC 9525 for host names; RFC 5280 for
validity. It can't be switched off.
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import ConfigError
from relay.files import pem
from relay.files.stamps import Seen, is_there, read_regular, stamp_of
from relay.keys.events import Events
from relay.keys.takes import TEXT, Parameters, one_of

NameFrom = Literal["san", "cn", "either"]


@dataclass(frozen=True, slots=True)
class TLSRules(Parameters):
    """Verification rules for a KME's certificate; the minimum is TLS 1.2.

    `kme_id`: the required name, in place of the URL's host. `name_from`: where that name may be: in the
    subjectAltName, in the subject's CN, or in either. `ciphers` is an OpenSSL list for TLS 1.2; suites without
    authentication or encryption are always excluded.
    """

    ciphers: str | None = None
    kme_id: str | None = None
    name_from: NameFrom = "san"

    TAKES: ClassVar = {"ciphers": TEXT, "kme_id": TEXT, "name_from": one_of("san", "cn", "either")}


def client_context(
    ca: Path,
    certificate: Path,
    key: Path,
    rules: TLSRules = TLSRules(),
    *,
    seen: Callable[[dict[str, Any]], None] = lambda _peer: None,
) -> ssl.SSLContext:
    """The TLS settings for one KME; the three files are PEM. Raises ConfigError if they are unusable.

    `seen` is called with the KME's certificate, from `getpeercert`, after each handshake.
    """
    for path in (ca, certificate, key):
        if not is_there(path):
            raise ConfigError(f"{path}: no such file; it is needed to talk to the KME")
    check_ca(ca)
    try:
        context = pem.trusting(ca)
        pem.show(context, certificate, key, _no_passphrase)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{certificate}, {key} or {ca}: cannot be used for TLS: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Python 3.13 requires extensions that the certificates of real KMEs lack. The chain, the dates and the name are
    # still checked, equally with every Python.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if rules.ciphers:
        set_ciphers(context, rules.ciphers)
    context.check_hostname = rules.kme_id is None
    context.hostname_checks_common_name = rules.name_from != "san"
    # Documented hook: asyncio makes its TLS objects from this class, and the check runs before any request.
    context.sslobject_class = _checking(rules.kme_id, rules.name_from, seen)
    return context


def check_ca(path: Path) -> None:
    """Raises ConfigError if a file has no trust anchor: neither a CA certificate nor a self-signed one."""
    try:
        context = pem.trusting(path)
        if context.cert_store_stats()["x509_ca"]:
            return
        certificates = x509.load_pem_x509_certificates(read_regular(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be used as CA: {error}") from error
    if not any(each.issuer == each.subject for each in certificates):
        raise ConfigError(f"{path}: holds no certificate of a CA; the KME's certificate could be checked by none of it")


def _no_passphrase() -> str:
    """Raises ValueError instead of OpenSSL's prompt on the terminal, which would block."""
    raise ValueError("the private key is encrypted; one without a passphrase is needed")


def set_ciphers(context: ssl.SSLContext, ciphers: str) -> None:
    """Sets an OpenSSL cipher list for TLS 1.2, without unauthenticated or unencrypted suites. Raises ConfigError."""
    try:
        context.set_ciphers(f"{ciphers}:!aNULL:!eNULL")
    except ssl.SSLError as error:
        text = f"ciphers (tls_ciphers in relay.toml): OpenSSL knows none of {ciphers!r}; `openssl ciphers` lists them"
        raise ConfigError(text) from error


def _checking(kme_id: str | None, name_from: NameFrom, seen: Callable[[dict[str, Any]], None]) -> type[ssl.SSLObject]:
    class CheckedTLS(ssl.SSLObject):
        """A TLS connection whose handshake fails unless the certificate carries the KME ID, if required."""

        def do_handshake(self) -> None:
            super().do_handshake()
            certificate = dict(self.getpeercert() or {})
            names = sorted(set(names_in(certificate, name_from)))
            if kme_id is not None and kme_id.casefold() not in (name.casefold() for name in names):
                text = f"the certificate is not KME {kme_id}'s; it says {', '.join(names) or 'no name'}"
                if kme_id.casefold() in (name.casefold() for name in names_in(certificate, "cn")):
                    text += '; its common name is that: name_from = "cn" looks there'
                raise ssl.SSLCertVerificationError(1, text)
            seen(certificate)

    return CheckedTLS


def names_in(certificate: Mapping[str, Any], name_from: NameFrom) -> Iterator[str]:
    """The names of a certificate (from `getpeercert`) in those places."""
    if name_from != "cn":
        yield from (str(value) for _, value in certificate.get("subjectAltName", ()))
    if name_from != "san":
        subject = (pair for names in certificate.get("subject", ()) for pair in names)
        yield from (str(value) for name, value in subject if name == "commonName")


log = Events(__name__)

ENDS_SOON = timedelta(days=30)
"""Time before a certificate's end from which it is reported."""


class CertificateEnd(NamedTuple):
    """The end of a certificate: our client certificate, its CA's, or the KME's; `what` is a description."""

    of: Literal["kme_client", "kme_ca", "kme_server"]
    what: str
    until: datetime


class FileTLS(ABC):
    """The TLS settings for one KME, made of files that may be renewed."""

    def __init__(self, *files: Path) -> None:
        """Raises ConfigError if the files are unusable."""
        self._files = files
        self.context = self.renewed()

    @abstractmethod
    def _read(self) -> ssl.SSLContext:
        """The settings from the current files. Raises ConfigError."""

    @abstractmethod
    def ends(self) -> list[CertificateEnd]:
        """The ends of these certificates, from the current files. Raises OSError and ValueError."""

    def renewed(self) -> ssl.SSLContext:
        """The settings from the current files. Raises ConfigError if they are unusable together."""
        self._read_at = self._stamp()
        return self._read()

    @property
    def changed(self) -> bool:
        """Whether the files have changed since the last check."""
        return self._stamp() != self._read_at

    def take(self, name: str, context: ssl.SSLContext) -> None:
        """Applies these settings."""
        self.context = context
        ending = self.ending(datetime.now(UTC))
        (log.warning if ending else log.info)("kme_certificates_renewed", kme=name, ending=ending)

    def ending(self, now: datetime) -> list[str]:
        """Certificates that have ended, or end within 30 days of `now` (aware): ours, the CA's, the KME's once seen.

        Of several CAs in a file the last to end counts: old ones may stay in it.
        """
        try:
            return list(_ending_texts([(each.what, each.until) for each in self.ends()], now))
        except (OSError, ValueError) as error:
            return [f"{' or '.join(map(str, self._files))}: cannot be read: {error}"]

    def own_ended(self, now: datetime) -> str:
        """A message if our certificate has ended, else "". Reads the file."""
        return ""

    def _stamp(self) -> tuple[Seen, ...]:
        return tuple(map(stamp_of, self._files))


class ClientTLS(FileTLS):
    """The TLS settings from three PEM files: CA, our certificate with its chain, our private key."""

    def __init__(self, ca: Path, certificate: Path, key: Path, rules: TLSRules) -> None:
        """Raises ConfigError if the files are unusable."""
        self._rules = rules
        self._kme_ends: datetime | None = None
        super().__init__(ca, certificate, key)

    def own_ended(self, now: datetime) -> str:
        """A message if our certificate has ended, else "". Reads the file."""
        try:
            own = _certificates(self._files[1])[0]
        except (OSError, ValueError):
            return ""
        until = own.not_valid_after_utc
        return f"our certificate {self._files[1]} ended on {until:%Y-%m-%d %H:%M} UTC" if until <= now else ""

    def ends(self) -> list[CertificateEnd]:
        """As for all."""
        ca, certificate, _ = self._files
        last = max(_certificates(ca), key=lambda each: each.not_valid_after_utc)
        ends = [
            CertificateEnd("kme_client", f"{certificate}: {_name(each)}", each.not_valid_after_utc)
            for each in _certificates(certificate)
        ]
        ends.append(CertificateEnd("kme_ca", f"{ca}: {_name(last)}", last.not_valid_after_utc))
        if self._kme_ends is not None:
            ends.append(CertificateEnd("kme_server", "the KME's own certificate", self._kme_ends))
        return ends

    def _read(self) -> ssl.SSLContext:
        ca, certificate, key = self._files
        return client_context(ca, certificate, key, self._rules, seen=self._saw)

    def _saw(self, peer: dict[str, Any]) -> None:
        """Records the KME's certificate (from `getpeercert`) after a handshake."""
        if until := peer.get("notAfter"):
            self._kme_ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(until), UTC)


def _certificates(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(read_regular(path))


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "certificate"


def _ending_texts(ends: list[tuple[str, datetime]], now: datetime) -> Iterator[str]:
    for name, until in sorted(ends, key=lambda each: each[1]):
        if until <= now:
            yield f"{name} ended on {until:%Y-%m-%d %H:%M} UTC"
        elif until - now <= ENDS_SOON:
            yield f"{name} ends on {until:%Y-%m-%d %H:%M} UTC, in {(until - now).days} days"
