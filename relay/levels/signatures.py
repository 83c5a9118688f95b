"""Signs a payload and verifies the signature of a pinned peer, as the levels pqc and rsa use it.
Standard: RFC 5652 5.4 and 5.6, RFC 9882 (ML-DSA-87, SHA-512, empty context), RFC 4056 (RSASSA-PSS, SHA-256).
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA87PrivateKey, MLDSA87PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from relay import cms
from relay.cms import SignatureScheme
from relay.errors import BadSignature, CertificateExpired, UnknownSigner
from relay.identity.checks import valid_now
from relay.levels import Opening

if TYPE_CHECKING:
    from relay.identity import PeerCertificates

MIN_RSA_BITS = 4096

_DIGESTS = {SignatureScheme.ML_DSA_87: "sha512", SignatureScheme.RSA_PSS: "sha256"}


def sign(payload: bytes, key: MLDSA87PrivateKey | RSAPrivateKey, certificate: x509.Certificate) -> bytes:
    """SignedData around `payload`, with the signer's certificate, as DER."""
    scheme = SignatureScheme.RSA_PSS if isinstance(key, RSAPrivateKey) else SignatureScheme.ML_DSA_87
    digest = hashlib.new(_DIGESTS[scheme], payload).digest()
    attributes = cms.attributes_to_sign(scheme, digest, datetime.now(UTC))
    signature = (
        key.sign(attributes, _pss(), hashes.SHA256()) if isinstance(key, RSAPrivateKey) else key.sign(attributes)
    )
    return cms.encode_signed(
        cms.Signed(
            payload,
            scheme,
            certificate_id(certificate),
            attributes,
            digest,
            signature,
            certificate.public_bytes(serialization.Encoding.DER),
        )
    )


def verify(der: bytes, wanted: SignatureScheme, opening: Opening) -> tuple[bytes, PeerCertificates]:
    """The payload inside SignedData, and the peer that signed it with the scheme that is wanted.

    Only pinned certificates count; the one inside the message is not looked at. Of several peers that claim the
    signer's identifier it is the one whose key verifies. Raises BadStructure, BadSignature, UnknownSigner or
    CertificateExpired.
    """
    signed = cms.decode_signed(der)
    if signed.scheme is not wanted:
        raise BadSignature(f"signed with {signed.scheme.value}, {wanted.value} is expected")
    known = [(peer, certificate) for peer in opening.signers(signed.signer) for certificate in _named(peer, signed)]
    if not known:
        raise UnknownSigner(f"the signer is no peer whose certificate for {wanted.value} was imported")
    whose = ", ".join(peer.name for peer, _ in known)
    if not hmac.compare_digest(hashlib.new(_DIGESTS[wanted], signed.content).digest(), signed.digest):
        raise BadSignature(f"the signature of peer {whose} is over another content")
    for peer, certificate in known:
        if _verifies(certificate, signed):
            if cause := expired(certificate):
                raise CertificateExpired(f"peer {peer.name!r}: {cause}")
            return signed.content, peer
    raise BadSignature(f"the signature is not that of peer {whose}")


def signs_under(peer: PeerCertificates, identifier: cms.CertificateID) -> bool:
    """Whether this names one of the peer's signing certificates."""
    return any(each is not None and names(identifier, each) for each in (peer.signing, peer.rsa_signing))


def certificate_id(certificate: x509.Certificate) -> cms.CertificateID:
    """How a message names this certificate: by its SubjectKeyIdentifier."""
    ski = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return cms.CertificateID(ski=ski.value.digest)


def expired(*certificates: x509.Certificate) -> str:
    """Which of these certificates is not valid now and what to do, or ""."""
    now = datetime.now(UTC)
    for certificate in certificates:
        if not valid_now(certificate, now):
            until = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
            whose = certificate.subject.rfc4514_string()
            return f"certificate {whose} is valid from {until} only; renew it, and import the peer's new document"
    return ""


def names(identifier: cms.CertificateID, certificate: x509.Certificate) -> bool:
    """Whether a message's identifier is this certificate, by key identifier or by issuer and serial number."""
    if identifier.ski:
        return identifier.ski == certificate_id(certificate).ski
    return (identifier.issuer, identifier.serial) == (certificate.issuer.public_bytes(), certificate.serial_number)


def _named(peer: PeerCertificates, signed: cms.Signed) -> list[x509.Certificate]:
    """The peer's certificate for the scheme that was signed with, if that is the one that the message names."""
    certificate = peer.signing if signed.scheme is SignatureScheme.ML_DSA_87 else peer.rsa_signing
    return [certificate] if certificate is not None and names(signed.signer, certificate) else []


def _verifies(certificate: x509.Certificate, signed: cms.Signed) -> bool:
    """Whether the signature is that of the certificate's key, which has to fit the scheme."""
    try:
        match certificate.public_key():
            case MLDSA87PublicKey() as key if signed.scheme is SignatureScheme.ML_DSA_87:
                key.verify(signed.signature, signed.attributes)
            case RSAPublicKey() as key if signed.scheme is SignatureScheme.RSA_PSS and key.key_size >= MIN_RSA_BITS:
                key.verify(signed.signature, signed.attributes, _pss(), hashes.SHA256())
            case _:
                return False
    except InvalidSignature:
        return False
    return True


def _pss() -> padding.PSS:
    return padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
