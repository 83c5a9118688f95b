"""Findings of `qumail-relay check` on this site's identity and the pinned peers, and certificates that end soon.
One entry for each object checked; changes nothing; warns 30, 7 and 1 days before the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import NamedTuple

from cryptography import x509

from relay.config import Config, IdentitySettings
from relay.errors import ConfigError
from relay.identity import liboqs
from relay.identity.directory import check_own_ca, load_identity
from relay.identity.document import RENEW, PeerCertificates
from relay.identity.pairs import Identity
from relay.identity.peers import common_groups, trusted_peers

Finding = tuple[str, tuple[str, ...]]
"""The object checked, and its problems."""


def identity_findings(config: Config, now: datetime) -> list[Finding]:
    """The identity, then each pinned peer, each with its problems; empty without [identity]. Raises nothing."""
    if config.identity is None:
        return []
    own = "identity", tuple(_of_identity(config, config.identity, now))
    try:
        peers = trusted_peers(config)
    except ConfigError as error:
        return [own, ("peer documents", tuple(error.problems))]
    return [own, *((f"peer document {name}", tuple(_of_peer(config, peer, now))) for name, peer in peers.items())]


def _of_identity(config: Config, files: IdentitySettings, now: datetime) -> Iterator[str]:
    try:
        identity = load_identity(files.directory, passphrase=files.passphrase, now=now)
    except ConfigError as error:
        yield from error.problems
        return
    try:
        check_own_ca(files)
    except ConfigError as error:
        yield from error.problems
    if missing := sorted(set(config.site.domains) - set(identity.domains)):
        yield f"the certificates do not name {', '.join(missing)}; {RENEW}"
    yield from (f"{expiry}; {RENEW}" for expiry in expiring(identity, {}, now))
    # Peers seal with our keys, whether or not we can open.
    yield from (cause for name in identity.offered_kems if (cause := liboqs.unavailable(name)))


def _of_peer(config: Config, peer: PeerCertificates, now: datetime) -> Iterator[str]:
    table = config.peers.get(peer.name)
    explicit = table is not None and "kme_groups" in table.model_fields_set
    if peer.kme_groups and config.kmes and not explicit and not common_groups(config, peer):
        yield f"shares no KME group with us; it has {', '.join(peer.kme_groups)}"
    for expiry in expiring(None, {peer.name: peer}, now):
        yield f"{expiry}; ask the peer for its new document"


WARN_DAYS = (30, 7, 1)
"""Days before the end at which a warning is due."""


class Expiry(NamedTuple):
    """A certificate that ends within 30 days: a description, and whole days left (below 0: days since)."""

    what: str
    days: int

    @property
    def stage(self) -> int:
        """The stage of warnings reached, 30, 7 or 1, or 0 when it has ended; each is logged once."""
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
