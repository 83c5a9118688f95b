"""The object identifiers of the message format, under their standards' names.
Standard: RFC 5652, RFC 5083, RFC 5084, RFC 3565, RFC 8017, RFC 9629, and the drafts of
composite ML-KEM and ML-DSA (relay/identity/composite.py); ours are under 2.25 (X.667).
"""

from __future__ import annotations

from cryptography.x509 import ObjectIdentifier

from relay import levels
from relay.formats.cms.der import asn1

ID_DATA = ObjectIdentifier("1.2.840.113549.1.7.1")
ID_SIGNED_DATA = ObjectIdentifier("1.2.840.113549.1.7.2")
ID_AUTH_ENVELOPED_DATA = ObjectIdentifier("1.2.840.113549.1.9.16.1.23")

ID_AES256_GCM = ObjectIdentifier(levels.ID_AES256_GCM)
ID_AES256_WRAP = ObjectIdentifier("2.16.840.1.101.3.4.1.45")

ID_RSAES_OAEP = ObjectIdentifier("1.2.840.113549.1.1.7")
ID_MGF1 = ObjectIdentifier("1.2.840.113549.1.1.8")
ID_RSASSA_PSS = ObjectIdentifier("1.2.840.113549.1.1.10")
ID_SHA256 = ObjectIdentifier("2.16.840.1.101.3.4.2.1")
ID_SHA512 = ObjectIdentifier("2.16.840.1.101.3.4.2.3")

ID_ORI_KEM = ObjectIdentifier(levels.ID_ORI_KEM)
ID_HKDF_SHA256 = ObjectIdentifier("1.2.840.113549.1.9.16.3.28")
ID_ML_KEM_1024_P384 = ObjectIdentifier(levels.ML_KEM_1024_P384.oid)
"""id-MLKEM1024-ECDH-P384-SHA3-256."""
ID_ML_DSA_87_P384 = ObjectIdentifier("1.3.6.1.5.5.7.6.49")
"""id-MLDSA87-ECDSA-P384-SHA512."""

ID_CONTENT_TYPE = ObjectIdentifier("1.2.840.113549.1.9.3")
ID_MESSAGE_DIGEST = ObjectIdentifier("1.2.840.113549.1.9.4")
ID_SIGNING_TIME = ObjectIdentifier("1.2.840.113549.1.9.5")
ID_ALGORITHM_PROTECTION = ObjectIdentifier("1.2.840.113549.1.9.52")

ID_QKD_KEY = ObjectIdentifier("2.25.70870596422438752823789839143307439983")
"""OtherKeyAttribute: the origin of the key that a key_ID names (UUID 35512e2d-8ec7-4c9b-9e58-ae021d05ef6f)."""
ID_ONE_TIME_PAD = ObjectIdentifier(levels.ID_ONE_TIME_PAD)
"""Content encryption by one-time pad and Poly1305 (UUID 8326b9c0-7f19-478b-b88a-8a0d15c8cf71)."""
ID_ORI_PAD = ObjectIdentifier(levels.ID_ORI_PAD)
"""OtherRecipientInfo: the holder of the pad's keys (UUID aaab867f-4cb1-42f8-a82a-59f577f22e46)."""
QUANTUM_KEY_NAMES = tuple(asn1.encode_der(each) for each in (ID_QKD_KEY, ID_ONE_TIME_PAD, ID_ORI_PAD))
"""In DER: one of them stands in each message under quantum keys, and in those of no other software."""
ID_HQC_256 = ObjectIdentifier(levels.HQC_256.oid)
"""KEM HQC-5, the name of HQC-256 in the revision of 2025 (UUID 1baebdb4-007f-4388-ae1b-719b0bdfcfe8)."""
ID_FRODOKEM_1344_SHAKE = ObjectIdentifier(levels.FRODOKEM_1344_SHAKE.oid)
"""KEM FrodoKEM-1344-SHAKE, the salted variant (UUID 06486032-dddb-452e-abfe-e37cb685d9f5)."""
ID_CLASSIC_MCELIECE_6688128 = ObjectIdentifier(levels.CLASSIC_MCELIECE_6688128.oid)
"""KEM Classic McEliece 6688128 of round 4 (UUID 4fb9ede5-beea-4eed-bb3c-c865d5c17b2d)."""
