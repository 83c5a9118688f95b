"""The identity of this site and of its peers: private keys, certificates, and signed peer documents.
Standard: X.509 (RFC 5280) with composite ML-KEM and ML-DSA (composite.py) and RSA; read pairs.py first.
"""

from relay.identity.certificates import domains_of, valid_now
from relay.identity.directory import any_encrypted, check_own_ca, load_identity, make_passphrase, own_identity
from relay.identity.document import MAX_DOCUMENT, PeerCertificates, only_sending, peer_document, read_document
from relay.identity.findings import Expiry, expiring, identity_findings
from relay.identity.further import key_identifier
from relay.identity.invitation import is_invitation, read_invitation, write_invitation
from relay.identity.known import KnownSites, site_stamps
from relay.identity.make import (
    VALID_DAYS,
    About,
    Progress,
    create_identity,
    needs_nothing,
    renew_identity,
    request_certificates,
)
from relay.identity.pairs import Identity, RSAKeyPair, SigningKeyPair, fingerprint, same_fingerprint
from relay.identity.peers import Import, common_groups, examine, load_peer_documents, pin, trusted_peers, with_documents
from relay.identity.words import lines_of, same_words, words_of

__all__ = [
    "MAX_DOCUMENT",
    "VALID_DAYS",
    "About",
    "Expiry",
    "Identity",
    "Import",
    "KnownSites",
    "PeerCertificates",
    "Progress",
    "RSAKeyPair",
    "SigningKeyPair",
    "any_encrypted",
    "check_own_ca",
    "common_groups",
    "create_identity",
    "domains_of",
    "examine",
    "expiring",
    "fingerprint",
    "identity_findings",
    "is_invitation",
    "key_identifier",
    "lines_of",
    "load_identity",
    "load_peer_documents",
    "make_passphrase",
    "needs_nothing",
    "only_sending",
    "own_identity",
    "peer_document",
    "pin",
    "read_document",
    "read_invitation",
    "renew_identity",
    "request_certificates",
    "same_fingerprint",
    "same_words",
    "site_stamps",
    "trusted_peers",
    "valid_now",
    "with_documents",
    "words_of",
    "write_invitation",
]
