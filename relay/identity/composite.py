"""Hybrid key pairs of level pqc: ML-KEM-1024 with ECDH over P-384, and ML-DSA-87 with ECDSA over P-384.
Standard: draft-ietf-lamps-pq-composite-kem-17, id-MLKEM1024-ECDH-P384-SHA3-256; draft-ietf-lamps-pq-composite-sigs-19,
id-MLDSA87-ECDSA-P384-SHA512.

The primitives are those of `cryptography`; here is only how the drafts combine them. Both halves are needed: a shared
secret is hashed from both secrets, and a signature counts if both signatures do. Keys, ciphertexts and signatures have
the two halves one after the other. The first has a fixed length, that of ML-KEM or ML-DSA.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey, MLDSA87PublicKey
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PrivateKey, MLKEM1024PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    PrivateFormat,
    PublicFormat,
)

from relay import levels
from relay.formats.cms import der, oids

ML_KEM_OCTETS = 1568
"""Length of a public key of ML-KEM-1024, and of a ciphertext, in octets."""
ML_DSA_KEY_OCTETS, ML_DSA_SIGNATURE_OCTETS = 2592, 4627
POINT_OCTETS = 97
"""Length of a point of P-384, uncompressed, in octets."""
MAX_ECDSA_OCTETS = 104
"""Maximum length of an ECDSA signature (DER) over P-384, in octets."""
MAX_CONTEXT_OCTETS = 255

_UNCOMPRESSED = b"\x04"
_CURVE = ec.SECP384R1
_KEM_LABEL = b"MLKEM1024-P384"
_SIGNATURE_PREFIX = b"CompositeAlgorithmSignatures2025"
_SIGNATURE_LABEL = b"COMPSIG-MLDSA87-ECDSA-P384-SHA512"


@dataclass(frozen=True)
class CompositeKEMPublicKey:
    """A public key of id-MLKEM1024-ECDH-P384-SHA3-256."""

    ml_kem: MLKEM1024PublicKey
    ecdh: ec.EllipticCurvePublicKey

    @classmethod
    def from_public_bytes(cls, octets: bytes) -> CompositeKEMPublicKey:
        """The key that the draft serializes so. Raises ValueError."""
        ml_kem, point = octets[:ML_KEM_OCTETS], octets[ML_KEM_OCTETS:]
        return cls(MLKEM1024PublicKey.from_public_bytes(ml_kem), _point(point))

    def public_bytes_raw(self) -> bytes:
        """The key as the draft serializes it, 1,665 octets."""
        return self.ml_kem.public_bytes_raw() + _octets_of(self.ecdh)

    @property
    def halves(self) -> tuple[MLKEM1024PublicKey, ec.EllipticCurvePublicKey]:
        return self.ml_kem, self.ecdh

    def encapsulate(self) -> tuple[bytes, bytes]:
        """A fresh shared secret of 32 octets, and the ciphertext from which the private key recovers it."""
        ml_kem_secret, ml_kem_ciphertext = self.ml_kem.encapsulate()
        ephemeral = ec.generate_private_key(_CURVE())
        ecdh_secret, ecdh_ciphertext = ephemeral.exchange(ec.ECDH(), self.ecdh), _octets_of(ephemeral.public_key())
        secret = _combined(ml_kem_secret, ecdh_secret, ecdh_ciphertext, self.ecdh)
        return secret, ml_kem_ciphertext + ecdh_ciphertext


@dataclass(frozen=True)
class CompositeKEMPrivateKey:
    """A private key of id-MLKEM1024-ECDH-P384-SHA3-256."""

    ml_kem: MLKEM1024PrivateKey = field(repr=False)
    ecdh: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> CompositeKEMPrivateKey:
        """Two fresh halves, which are used for nothing else."""
        return cls(MLKEM1024PrivateKey.generate(), ec.generate_private_key(_CURVE()))

    @property
    def halves(self) -> tuple[MLKEM1024PrivateKey, ec.EllipticCurvePrivateKey]:
        return self.ml_kem, self.ecdh

    def public_key(self) -> CompositeKEMPublicKey:
        return CompositeKEMPublicKey(self.ml_kem.public_key(), self.ecdh.public_key())

    def decapsulate(self, ciphertext: bytes) -> bytes:
        """The shared secret, or another one if the ciphertext is for another key. Raises ValueError for none at all."""
        point = _point(ciphertext[ML_KEM_OCTETS:])
        ml_kem_secret = self.ml_kem.decapsulate(ciphertext[:ML_KEM_OCTETS])
        ecdh_secret = self.ecdh.exchange(ec.ECDH(), point)
        return _combined(ml_kem_secret, ecdh_secret, ciphertext[ML_KEM_OCTETS:], self.ecdh.public_key())


@dataclass(frozen=True)
class CompositeSigningPublicKey:
    """A public key of id-MLDSA87-ECDSA-P384-SHA512."""

    ml_dsa: MLDSA87PublicKey
    ecdsa: ec.EllipticCurvePublicKey

    @classmethod
    def from_public_bytes(cls, octets: bytes) -> CompositeSigningPublicKey:
        """The key that the draft serializes so. Raises ValueError."""
        ml_dsa, point = octets[:ML_DSA_KEY_OCTETS], octets[ML_DSA_KEY_OCTETS:]
        return cls(MLDSA87PublicKey.from_public_bytes(ml_dsa), _point(point))

    def public_bytes_raw(self) -> bytes:
        """The key as the draft serializes it, 2,689 octets."""
        return self.ml_dsa.public_bytes_raw() + _octets_of(self.ecdsa)

    @property
    def halves(self) -> tuple[MLDSA87PublicKey, ec.EllipticCurvePublicKey]:
        return self.ml_dsa, self.ecdsa

    def verify(self, signature: bytes, data: bytes, context: bytes = b"") -> None:
        """Returns if both signatures are right; raises InvalidSignature otherwise."""
        ml_dsa, ecdsa = signature[:ML_DSA_SIGNATURE_OCTETS], signature[ML_DSA_SIGNATURE_OCTETS:]
        if len(ml_dsa) != ML_DSA_SIGNATURE_OCTETS or not 0 < len(ecdsa) <= MAX_ECDSA_OCTETS:
            raise InvalidSignature
        representative = _representative(data, context)
        self.ml_dsa.verify(ml_dsa, representative, _SIGNATURE_LABEL)
        self.ecdsa.verify(ecdsa, representative, ec.ECDSA(hashes.SHA384()))


@dataclass(frozen=True)
class CompositeSigningPrivateKey:
    """A private key of id-MLDSA87-ECDSA-P384-SHA512."""

    ml_dsa: MLDSA87PrivateKey = field(repr=False)
    ecdsa: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> CompositeSigningPrivateKey:
        """Two fresh halves, which are used for nothing else."""
        return cls(MLDSA87PrivateKey.generate(), ec.generate_private_key(_CURVE()))

    @property
    def halves(self) -> tuple[MLDSA87PrivateKey, ec.EllipticCurvePrivateKey]:
        return self.ml_dsa, self.ecdsa

    def public_key(self) -> CompositeSigningPublicKey:
        return CompositeSigningPublicKey(self.ml_dsa.public_key(), self.ecdsa.public_key())

    def sign(self, data: bytes, context: bytes = b"") -> bytes:
        """Both signatures, ML-DSA's first. Raises ValueError for a context of more than 255 octets."""
        representative = _representative(data, context)
        ml_dsa = self.ml_dsa.sign(representative, _SIGNATURE_LABEL)
        return ml_dsa + self.ecdsa.sign(representative, ec.ECDSA(hashes.SHA384()))


CompositePublicKey = CompositeKEMPublicKey | CompositeSigningPublicKey
CompositePrivateKey = CompositeKEMPrivateKey | CompositeSigningPrivateKey

_OIDS: dict[type[CompositePublicKey], str] = {
    CompositeKEMPublicKey: levels.ML_KEM_1024_P384.oid,
    CompositeSigningPublicKey: oids.ID_ML_DSA_87_P384.dotted_string,
}
_PUBLIC_OCTETS: dict[type[CompositePublicKey], int] = {
    CompositeKEMPublicKey: ML_KEM_OCTETS + POINT_OCTETS,
    CompositeSigningPublicKey: ML_DSA_KEY_OCTETS + POINT_OCTETS,
}
COMPOSITE_OIDS = frozenset(_OIDS.values())
SIGNATURE_ALGORITHM = der.algorithm(oids.ID_ML_DSA_87_P384)
"""AlgorithmIdentifier of the signature; its parameters are absent."""


def public_info(key: CompositePublicKey) -> bytes:
    """The SubjectPublicKeyInfo of a composite key, as DER."""
    return _info(type(key), key.public_bytes_raw())


def from_public_info(info: bytes) -> CompositePublicKey:
    """The composite key in a SubjectPublicKeyInfo, exactly as `public_info` writes it. Raises ValueError."""
    for kind, octets in _PUBLIC_OCTETS.items():
        raw = info[-octets:]
        if info == _info(kind, raw):
            return kind.from_public_bytes(raw)
    raise ValueError("not a composite public key of ML-KEM-1024 or ML-DSA-87 with P-384")


def _info(kind: type[CompositePublicKey], raw: bytes) -> bytes:
    algorithm = der.algorithm(x509.ObjectIdentifier(_OIDS[kind]))
    return der.sequence(algorithm, der.element(der.BIT_STRING, b"\0", raw))


def private_pem(key: CompositePrivateKey, encryption: KeySerializationEncryption) -> bytes:
    """Both halves, each as PKCS#8 in PEM, the one of ML-KEM or ML-DSA first."""
    return b"".join(half.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption) for half in key.halves)


def kem_key(halves: Sequence[object]) -> CompositeKEMPrivateKey:
    """The key of these halves; raises TypeError if they are others."""
    match halves:
        case [MLKEM1024PrivateKey() as ml_kem, ec.EllipticCurvePrivateKey(curve=ec.SECP384R1()) as ecdh]:
            return CompositeKEMPrivateKey(ml_kem, ecdh)
    raise TypeError("not an ML-KEM-1024 key and one of P-384")


def signing_key(halves: Sequence[object]) -> CompositeSigningPrivateKey:
    """The key of these halves; raises TypeError if they are others."""
    match halves:
        case [MLDSA87PrivateKey() as ml_dsa, ec.EllipticCurvePrivateKey(curve=ec.SECP384R1()) as ecdsa]:
            return CompositeSigningPrivateKey(ml_dsa, ecdsa)
    raise TypeError("not an ML-DSA-87 key and one of P-384")


def _combined(ml_kem_secret: bytes, ecdh_secret: bytes, ciphertext: bytes, ecdh: ec.EllipticCurvePublicKey) -> bytes:
    """The shared secret of both (draft-ietf-lamps-pq-composite-kem, KEM Combiner Function)."""
    return hashlib.sha3_256(ml_kem_secret + ecdh_secret + ciphertext + _octets_of(ecdh) + _KEM_LABEL).digest()


def _representative(data: bytes, context: bytes) -> bytes:
    """What both keys sign, M' (draft-ietf-lamps-pq-composite-sigs, Prefix, Label, and CTX)."""
    if len(context) > MAX_CONTEXT_OCTETS:
        raise ValueError(f"a context has at most {MAX_CONTEXT_OCTETS} octets")
    return b"".join(
        (_SIGNATURE_PREFIX, _SIGNATURE_LABEL, bytes((len(context),)), context, hashlib.sha512(data).digest())
    )


def _point(octets: bytes) -> ec.EllipticCurvePublicKey:
    """A point of P-384, uncompressed; raises ValueError for any other octets, among them the point at infinity."""
    if len(octets) != POINT_OCTETS or not octets.startswith(_UNCOMPRESSED):
        raise ValueError(f"{len(octets)} octets are no uncompressed point of P-384")
    return ec.EllipticCurvePublicKey.from_encoded_point(_CURVE(), octets)


def _octets_of(point: ec.EllipticCurvePublicKey) -> bytes:
    return point.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
