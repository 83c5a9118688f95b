"""Who this site is and who its peers are: private keys, certificates, and signed peer documents.
Standard: X.509 (RFC 5280) with ML-KEM-1024 (RFC 9935), ML-DSA-87 (RFC 9881) and RSA; read pairs.py first.
"""

from relay.identity.checks import domains_of, valid_now
from relay.identity.create import VALID_DAYS, create_identity, renew_identity, request_certificates
from relay.identity.document import MAX_LENGTH as MAX_DOCUMENT
from relay.identity.document import read_document, write_document
from relay.identity.export import peer_document
from relay.identity.findings import Expiry, expiring, identity_findings
from relay.identity.further import FurtherKEMPair, key_identifier
from relay.identity.layout import make_passphrase
from relay.identity.load import load_identity
from relay.identity.maker import Progress
from relay.identity.pairs import (
    Identity,
    KEMKeyPair,
    KeyPair,
    Role,
    RSAKeyPair,
    SigningKeyPair,
    fingerprint,
    same_fingerprint,
)
from relay.identity.peer import SPOKEN, BadDocument, ChangedKey, PeerCertificates, PinRefused, Rollback
from relay.identity.peers import Import, common_groups, examine, load_peer_documents, pin, trusted_peers

__all__ = [
    "MAX_DOCUMENT",
    "SPOKEN",
    "VALID_DAYS",
    "BadDocument",
    "ChangedKey",
    "Expiry",
    "FurtherKEMPair",
    "Identity",
    "Import",
    "KEMKeyPair",
    "KeyPair",
    "PeerCertificates",
    "PinRefused",
    "Progress",
    "RSAKeyPair",
    "Role",
    "Rollback",
    "SigningKeyPair",
    "common_groups",
    "create_identity",
    "domains_of",
    "examine",
    "expiring",
    "fingerprint",
    "identity_findings",
    "key_identifier",
    "load_identity",
    "load_peer_documents",
    "make_passphrase",
    "peer_document",
    "pin",
    "read_document",
    "renew_identity",
    "request_certificates",
    "same_fingerprint",
    "trusted_peers",
    "valid_now",
    "write_document",
]
