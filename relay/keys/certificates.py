"""The certificates that one KME is asked with: renewed files count at once, and what ends soon is told.
Standard: ETSI GS QKD 014 V1.1.1, 5.1 (both sides authenticated); RFC 5280 for how long a certificate is valid.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from relay.errors import ConfigError
from relay.keys.events import Events
from relay.keys.tls import TLSRules, client_context

log = Events(__name__)

ENDS_SOON = timedelta(days=30)
"""A certificate that ends within this time is told of."""

_Stamp = tuple[tuple[int, int, int] | None, ...]


class ClientTLS:
    """The TLS settings for one KME, made of three PEM files: CA, our certificate with its chain, our private key."""

    def __init__(self, ca: Path, certificate: Path, key: Path, rules: TLSRules) -> None:
        """Raises ConfigError where the files cannot be used."""
        self._files = (ca, certificate, key)
        self._rules = rules
        self._kme_ends: datetime | None = None
        self._read_at = self._stamp()
        self.context = self._read()

    def renew(self, what: str, *, anyway: bool = False) -> bool:
        """Takes the files as they are now if they have changed, or `anyway`; whether there are new settings then.

        `what` names the KME for the log. Files that cannot be used, or do not belong together yet, leave all as it was.
        """
        stamp = self._stamp()
        if stamp == self._read_at and not anyway:
            return False
        self._read_at = stamp
        try:
            self.context = self._read()
        except ConfigError as error:
            log.error("kme_certificates_not_renewed", kme=what, problems=error.problems)
            return False
        log.info("kme_certificates_renewed", kme=what)
        return True

    def ending(self, now: datetime) -> list[str]:
        """What ends within 30 days of `now` (aware), or has ended: ours, the CA's, and the KME's own once it was seen.

        Of a file with several CAs the one counts that ends last: old ones stay in it while new ones come into use.
        """
        ca, certificate, _ = self._files
        try:
            ours = [(f"{certificate}: {_name(each)}", each.not_valid_after_utc) for each in _certificates(certificate)]
            last = max(_certificates(ca), key=lambda each: each.not_valid_after_utc)
        except (OSError, ValueError) as error:
            return [f"{certificate} or {ca}: cannot be read: {error}"]
        ends = [*ours, (f"{ca}: {_name(last)}", last.not_valid_after_utc)]
        if self._kme_ends is not None:
            ends.append(("the KME's own certificate", self._kme_ends))
        return list(_told(ends, now))

    def _read(self) -> ssl.SSLContext:
        return client_context(*self._files, self._rules, seen=self._saw)

    def _saw(self, peer: dict[str, Any]) -> None:
        """A handshake with the KME has succeeded; `peer` is its certificate as Python gives it."""
        if until := peer.get("notAfter"):
            self._kme_ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(until), UTC)

    def _stamp(self) -> _Stamp:
        return tuple(map(_stamp_of, self._files))


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _certificates(path: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(path.read_bytes())


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else "certificate"


def _told(ends: list[tuple[str, datetime]], now: datetime) -> Iterator[str]:
    for what, until in sorted(ends, key=lambda each: each[1]):
        if until <= now:
            yield f"{what} ended on {until:%Y-%m-%d %H:%M} UTC"
        elif until - now <= ENDS_SOON:
            yield f"{what} ends on {until:%Y-%m-%d %H:%M} UTC, in {(until - now).days} days"
