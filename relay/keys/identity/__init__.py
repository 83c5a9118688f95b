"""Who this site is and who its peers are: private keys, certificates, and signed peer documents.
Standard: X.509 (RFC 5280) with ML-KEM-1024 (RFC 9935), ML-DSA-87 (RFC 9881) and RSA; read pairs.py first.
"""

from relay.keys.identity.checks import valid_now
from relay.keys.identity.create import create_identity, renew_identity
from relay.keys.identity.document import read_document, write_document
from relay.keys.identity.errors import BadDocument, ChangedKey, PinRefused, Rollback
from relay.keys.identity.load import load_identity
from relay.keys.identity.pairs import Identity, KEMKeyPair, KeyPair, Role, RSAKeyPair, SigningKeyPair
from relay.keys.identity.peer import PeerCertificates
from relay.keys.identity.requests import request_certificates

__all__ = [
    "BadDocument",
    "ChangedKey",
    "Identity",
    "KEMKeyPair",
    "KeyPair",
    "PeerCertificates",
    "PinRefused",
    "RSAKeyPair",
    "Role",
    "Rollback",
    "SigningKeyPair",
    "create_identity",
    "load_identity",
    "read_document",
    "renew_identity",
    "request_certificates",
    "valid_now",
    "write_document",
]
