"""What `qumail-relay check` says of this site's identity and of the pinned peers.
Standard: one entry a thing that was looked at; nothing is changed; what ends within 30 days is a problem.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from relay.config import Config, IdentityFiles
from relay.errors import ConfigError
from relay.keys import liboqs
from relay.keys.identity.domains import ascii_domain
from relay.keys.identity.expiry import expiring
from relay.keys.identity.export import RENEW
from relay.keys.identity.load import load_identity
from relay.keys.identity.pairs import Identity
from relay.keys.identity.peer import PeerCertificates
from relay.keys.identity.peers import common_groups, trusted_peers

Finding = tuple[str, tuple[str, ...]]
"""What was looked at, and what is wrong with it."""


def identity_findings(config: Config, now: datetime) -> list[Finding]:
    """The identity, then each pinned peer, each with its problems; nothing without [identity]. Raises nothing."""
    if config.identity is None:
        return []
    return [_own(config, config.identity, now), *_peers(config, now)]


def _own(config: Config, files: IdentityFiles, now: datetime) -> Finding:
    what = "identity"
    try:
        identity = load_identity(files.directory, passphrase=files.passphrase, now=now)
    except ConfigError as error:
        return what, tuple(error.problems)
    return what, (*_domains_missing(config, identity), *_ending(identity, {}, now), *_kems_not_here(identity))


def _peers(config: Config, now: datetime) -> list[Finding]:
    try:
        peers = trusted_peers(config)
    except ConfigError as error:
        return [("peer documents", tuple(error.problems))]
    return [
        (f"peer document {name}", (*_no_group(config, peer), *_ending(None, {name: peer}, now)))
        for name, peer in peers.items()
    ]


def _domains_missing(config: Config, identity: Identity) -> tuple[str, ...]:
    missing = sorted(set(map(ascii_domain, config.site.domains)) - set(identity.domains))
    return (f"the certificates do not name {', '.join(missing)}; {RENEW}",) if missing else ()


def _kems_not_here(identity: Identity) -> tuple[str, ...]:
    """Peers seal with the keys that we gave them, whether we can open or not."""
    return tuple(cause for name in identity.offered_kems if (cause := liboqs.unavailable(name)))


def _no_group(config: Config, peer: PeerCertificates) -> tuple[str, ...]:
    if peer.kme_groups and config.kmes and not common_groups(config, peer):
        return (f"shares no KME group with us; it has {', '.join(peer.kme_groups)}",)
    return ()


def _ending(identity: Identity | None, peers: Mapping[str, PeerCertificates], now: datetime) -> tuple[str, ...]:
    help_text = RENEW if identity is not None else "ask the peer for its new document"
    return tuple(f"{expiry}; {help_text}" for expiry in expiring(identity, peers, now))
