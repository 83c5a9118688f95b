"""Which signatures of a SignedData fit the content, and with which certificates.
Standard: RFC 5652 5.6 (message digest, signature), RFC 4056, RFC 5754; trust.py judges the certificates.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from relay.formats.cms.smime_signed import OthersSigned, OthersSigner
from relay.formats.pieces import part_of
from relay.identity.certificates import UNREADABLE
from relay.smime.decrypting import names

MAX_VERIFICATIONS = 20
"""Maximum number of signatures verified for one message; several certificates may have one identifier."""
RSA_BITS = range(2048, 16_385)
"""A longer key would only cost time."""
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


@dataclass(frozen=True, slots=True)
class VerifiedSigners:
    """The certificates whose keys made a signature that fits, and all that came with the message."""

    signers: tuple[x509.Certificate, ...]
    others: tuple[x509.Certificate, ...]


def verify(signed: OthersSigned, content: bytes, known: Sequence[x509.Certificate] = ()) -> VerifiedSigners:
    """Verifies each signer with the certificates in the message and `known` ones. Proves nothing about who they are."""
    own = list(_readable(signed.certificates))
    candidates = [*own, *known]
    digests: dict[str, bytes] = {}
    left, fitting = MAX_VERIFICATIONS, []
    for signer in signed.signers:
        if signer.hash not in digests:
            digests[signer.hash] = _digest(signer.hash, content)
        if not hmac.compare_digest(digests[signer.hash], signer.digest):
            continue
        for certificate in [each for each in candidates if names(signer.certificate, each)][:left]:
            left -= 1
            if _fits(signer, certificate):
                fitting.append(certificate)
                break
    return VerifiedSigners(tuple(fitting), tuple(own))


def _readable(certificates: Iterable[bytes]) -> Iterable[x509.Certificate]:
    """Those of which all parts can be read, which is done lazily."""
    for octets in certificates:
        try:
            certificate = x509.load_der_x509_certificate(octets)
            _ = certificate.version, certificate.serial_number, certificate.subject, certificate.issuer
            _ = certificate.extensions, certificate.not_valid_before_utc, certificate.not_valid_after_utc
        except UNREADABLE:
            continue
        yield certificate


def _digest(name: str, content: bytes) -> bytes:
    digest = hashes.Hash(_HASHES[name]())
    for piece in part_of(content):
        digest.update(piece)
    return digest.finalize()


def _fits(signer: OthersSigner, certificate: x509.Certificate) -> bool:
    hash_algorithm = _HASHES[signer.hash]()
    try:
        key = certificate.public_key()
        if isinstance(key, RSAPublicKey) and signer.scheme in ("rsa", "pss") and key.key_size in RSA_BITS:
            pss = padding.PSS(padding.MGF1(hash_algorithm), signer.salt_octets)
            scheme = pss if signer.scheme == "pss" else padding.PKCS1v15()
            key.verify(signer.signature, signer.attributes, scheme, hash_algorithm)
            return True
        if isinstance(key, ec.EllipticCurvePublicKey) and signer.scheme == "ecdsa" and isinstance(key.curve, _CURVES):
            key.verify(signer.signature, signer.attributes, ec.ECDSA(hash_algorithm))
            return True
    except UNREADABLE:
        return False
    return False


_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}
