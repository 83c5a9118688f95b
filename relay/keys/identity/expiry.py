"""Which certificates end soon, ours and our peers'.
Standard: warned of 30, 7 and 1 days before, and from then on as long as it lasts.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509

from relay.keys.identity.pairs import Identity
from relay.keys.identity.peer import PeerCertificates

WARN_DAYS = (30, 7, 1)
"""Days before the end at which a warning is due."""


class Expiry(NamedTuple):
    """A certificate that ends within 30 days: whose and which, and whole days left (below 0: days since)."""

    what: str
    days: int

    @property
    def stage(self) -> int:
        """The smallest of 30, 7 and 1 that it has come to, or 0 when it has ended: warn once at each."""
        return min((days for days in WARN_DAYS if self.days <= days), default=0) if self.days >= 0 else 0

    def __str__(self) -> str:
        if self.days < 0:
            return f"{self.what} has ended"
        left = f"{self.days} days" if self.days > 1 else f"{24 * (self.days + 1)} hours or less"
        return f"{self.what} ends in {left}"


def expiring(identity: Identity | None, peers: Mapping[str, PeerCertificates], now: datetime) -> list[Expiry]:
    """The certificates in use that end within 30 days of `now` (aware) or have ended, the most urgent first."""
    certificates: dict[str, x509.Certificate] = {}
    if identity is not None:
        certificates["our CA certificate"] = identity.ca
        certificates |= {f"our certificate for {role.label}": each for role, each in identity.certificates.items()}
    for name, peer in peers.items():
        certificates[f"the CA certificate of {name}"] = peer.ca
        certificates |= {
            f"the certificate of {name} for {role.label}": each for role, each in peer.certificates.items()
        }
    ending = [Expiry(what, _days_left(each, now)) for what, each in certificates.items()]
    return sorted((each for each in ending if each.days <= max(WARN_DAYS)), key=lambda each: each.days)


def _days_left(certificate: x509.Certificate, now: datetime) -> int:
    return (certificate.not_valid_after_utc - now) // timedelta(days=1)
