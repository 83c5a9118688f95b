"""A snapshot of this site and its peers, used by one mail from start to end.
If a new file is invalid, the previous state stays in force, except for a peer whose document is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from cryptography import x509

from relay.config import Config, PeerSettings
from relay.errors import ConfigError
from relay.files.stamps import Stamps, stamp_of, stamps_in, stamps_of
from relay.identity.directory import MAKE, own_identity
from relay.identity.document import PeerCertificates
from relay.identity.pairs import Identity
from relay.identity.peers import document_file, joined, trusted_peers

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KnownSites:
    """`config` is relay.toml with the peers of pinned documents; `certificates` are theirs, by peer name."""

    config: Config
    identity: Identity | None
    certificates: Mapping[str, PeerCertificates]

    @classmethod
    def read(cls, settings: Config) -> KnownSites:
        """The snapshot of relay.toml, the identity and the pinned documents.

        Raises ConfigError, also if there is no identity where relay.toml names one. Without it, mail that is sealed for
        this site would be taken for somebody else's, and handed on as it is.
        """
        certificates, identity = trusted_peers(settings), own_identity(settings)
        if identity is None and settings.identity is not None:
            raise ConfigError(f"{settings.identity.directory}: not there: put it back, or make one: {MAKE}")
        return cls(joined(settings, certificates), identity, certificates)

    def read_again(self, settings: Config) -> KnownSites:
        """A new snapshot of the files; unusable parts keep their current state, and are logged."""
        try:
            certificates = trusted_peers(settings)
        except ConfigError as error:
            log.error("peers_not_reloaded", problems=error.problems)
            certificates = self._still_pinned(settings)
        try:
            identity, problems = own_identity(settings), ["its directory is gone"]
        except ConfigError as error:
            identity, problems = None, error.problems
        if identity is None and self.identity is not None:
            log.error("identity_not_reloaded", problems=problems)
            identity = self.identity
        return KnownSites(joined(settings, certificates), identity, certificates)

    def log_changes(self, before: KnownSites) -> None:
        """Logs the changes since `before`."""
        fingerprint = self.identity.fingerprint if self.identity is not None else ""
        if _marks(self.identity) != _marks(before.identity):
            log.info("identity_reloaded", fingerprint=fingerprint)
        new, old = self._peers, before._peers
        differing = sorted(name for name in new.keys() & old.keys() if new[name] != old[name])
        added, gone = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
        if added or differing or gone:
            log.info("peers_reloaded", new=added, changed=differing, gone=gone)
        for peer, cause in self.config.peers_without_keys.items():
            if peer not in before.config.peers_without_keys:
                log.warning("peer_without_quantum_keys", peer=peer, cause=cause)

    @property
    def _peers(self) -> dict[str, tuple[PeerSettings, PeerCertificates | None]]:
        return {name: (peer, self.certificates.get(name)) for name, peer in self.config.peers.items()}

    def _still_pinned(self, settings: Config) -> dict[str, PeerCertificates]:
        """The current documents whose files still exist: an invalid document must not keep a deleted one pinned."""
        if settings.identity is None:
            return {}
        directory = settings.identity.peers_directory
        return {name: each for name, each in self.certificates.items() if stamp_of(document_file(directory, name))}


class _Marks(NamedTuple):
    """The comparable parts of an identity; private keys cannot be compared."""

    certificates: tuple[x509.Certificate, ...]
    further: tuple[bytes, ...]


def _marks(identity: Identity | None) -> _Marks | None:
    if identity is None:
        return None
    older = (each.certificate for each in identity.older)
    further = tuple(each.public_key for each in identity.further_kems)
    return _Marks((identity.ca, *identity.certificates.values(), *older), further)


def site_stamps(settings: Config) -> Stamps:
    """The stamps of all files that the snapshot is read from, and of their directories."""
    table = settings.identity
    if table is None:
        return {}
    stamps = stamps_of([table.passphrase] if table.passphrase is not None else [])
    for directory in (table.directory, table.peers_directory):
        stamps |= stamps_in(directory, "[!.]*")
    return stamps
