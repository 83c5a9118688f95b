"""The key encapsulation mechanisms that a KEMRecipientInfo may name, and the exact sizes of what they exchange.
Standard: FIPS 203 and RFC 9936 for ML-KEM-1024; HQC, FrodoKEM and Classic McEliece as liboqs 0.16 has them.

HQC, FrodoKEM and Classic McEliece have no object identifier for CMS yet: they have ours (oids.py). A revision of one
of them that exchanges other sizes would be another mechanism, with another identifier.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.x509 import ObjectIdentifier

from relay.cms import oids


@dataclass(frozen=True, slots=True)
class KEM:
    """One mechanism, under the name that policies, files and peer documents give it; its secret has 32 octets."""

    name: str
    oid: ObjectIdentifier
    public_key_octets: int
    ciphertext_octets: int


ML_KEM_1024 = "ml-kem-1024"

KEMS = {
    kem.name: kem
    for kem in (
        KEM(ML_KEM_1024, oids.ID_ML_KEM_1024, 1568, 1568),
        KEM("hqc-256", oids.ID_HQC_256, 7237, 14_421),
        KEM("frodokem-1344-shake", oids.ID_FRODOKEM_1344_SHAKE, 21_520, 21_696),
        KEM("classic-mceliece-6688128", oids.ID_CLASSIC_MCELIECE_6688128, 1_044_992, 208),
    )
}

FURTHER_KEMS = tuple(name for name in KEMS if name != ML_KEM_1024)
"""Those that go around level pqc as one more layer each, and need liboqs."""


def kem_by_oid(oid: ObjectIdentifier) -> KEM | None:
    """The mechanism with this identifier, or None."""
    return next((kem for kem in KEMS.values() if kem.oid == oid), None)
