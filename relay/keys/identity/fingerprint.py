"""What two people compare over the telephone before a site is trusted.
Standard: SHA-256 over the SubjectPublicKeyInfos (RFC 5280, 4.1.2.7) of the site's CA and of its ML-DSA-87 key.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

_CONTEXT = b"qumail-relay peer fingerprint 1\0"
_GROUP = 4
"""Hexadecimal digits read out in one breath."""


def fingerprint(ca: x509.Certificate, signing: x509.Certificate) -> str:
    """16 groups of 4 hexadecimal digits; the same as long as both keys are, whatever certificates are renewed.

    The hash covers a context string and the two keys, each of which is DER and so says where it ends.
    """
    digits = hashlib.sha256(_CONTEXT + public_key(ca) + public_key(signing)).hexdigest().upper()
    return " ".join(digits[start : start + _GROUP] for start in range(0, len(digits), _GROUP))


def same_fingerprint(first: str, second: str) -> bool:
    """Whether both are the same digits, however they are grouped."""
    return _digits(first) == _digits(second)


def public_key(certificate: x509.Certificate) -> bytes:
    """The DER of a certificate's SubjectPublicKeyInfo."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _digits(text: str) -> str:
    return "".join(text.replace(":", "").replace("-", "").split()).upper()
