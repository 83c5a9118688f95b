"""DKIM and ARC: signs outgoing sealed mail (DKIM), and verifies the signatures and ARC chain of arriving sealed mail.
Standard: RFC 6376 (DKIM), RFC 8463 (Ed25519), RFC 8617 (ARC), RFC 8601 (Authentication-Results).
"""

from relay.dkim.keys import ADVISED_RSA_BITS, Algorithm, SigningKey, load_key, load_keys, make_key, record_name
from relay.dkim.records import KeyRecords
from relay.dkim.results import AuthResult
from relay.dkim.signing import Signer
from relay.dkim.verifying import Arrivals, Verifier, arrivals

__all__ = [
    "ADVISED_RSA_BITS",
    "Algorithm",
    "Arrivals",
    "AuthResult",
    "KeyRecords",
    "Signer",
    "SigningKey",
    "Verifier",
    "arrivals",
    "load_key",
    "load_keys",
    "make_key",
    "record_name",
]
