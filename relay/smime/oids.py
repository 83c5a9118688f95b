"""The object identifiers of S/MIME that our own format has not, under their standards' names.
Standard: RFC 5652 (CMS), RFC 3565 (AES), RFC 8017 (RSA), RFC 5753 and RFC 5480 (ECDH), RFC 4262 (capabilities).
"""

from __future__ import annotations

from cryptography.x509 import ObjectIdentifier

from relay import levels

ID_AES256_CBC = ObjectIdentifier(levels.AES256_CBC)
ID_RSA_ENCRYPTION = ObjectIdentifier("1.2.840.113549.1.1.1")
"""RSAES-PKCS1-v1_5."""
ID_EC_PUBLIC_KEY = ObjectIdentifier("1.2.840.10045.2.1")
ID_ECDH_SHA256_KDF = ObjectIdentifier("1.3.132.1.11.1")
"""dhSinglePass-stdDH-sha256kdf-scheme."""
ID_CAPABILITIES = ObjectIdentifier("1.2.840.113549.1.9.15")
"""smimeCapabilities."""
