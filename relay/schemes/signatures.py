"""Common base of levels pqc and rsa: the payload is signed with our certificate, then encrypted to one of the peer's.
Standard: RFC 5652 5.4 and 5.6, composite ML-DSA (SHA-512, empty context), RFC 4056 (RSASSA-PSS, SHA-256).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from abc import abstractmethod
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey

from relay.errors import BadSignature, BadStructure, CannotSeal, CertificateExpired, UnknownSigner
from relay.formats import cms, mime
from relay.formats.cms import SignatureScheme
from relay.formats.pieces import Octets, Pieces, part_of
from relay.identity.certificates import MIN_RSA_BITS, valid_now
from relay.identity.composite import CompositeSigningPrivateKey, CompositeSigningPublicKey
from relay.identity.pairs import subject_key_identifier
from relay.identity.x509_keys import key_of
from relay.runtime.aio import off_loop
from relay.schemes import FreshKeys, Opening, Parties, Scheme, SealedPayload, Unsealed
from relay.schemes.content_key import KEY_OCTETS, decrypt, encrypt

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates, RSAKeyPair, SigningKeyPair

_DIGESTS = {SignatureScheme.ML_DSA_87_P384: "sha512", SignatureScheme.RSA_PSS: "sha256"}


class SignedScheme(Scheme):
    """A level without quantum keys; `signature` is its signature scheme, `key_kind` its kind of encryption key."""

    signature: ClassVar[SignatureScheme]
    key_kind: ClassVar[str]

    def obstacle(self, parties: Parties) -> str:
        """Why not: our identity or the peer's certificates are missing or expired."""
        if parties.identity is None:
            return "this site has no certificates; make them with `qumail-relay identity new`"
        certificate = self.encryption_certificate(parties.certificates) if parties.certificates is not None else None
        if certificate is None:
            return f"the peer's {self.key_kind} certificate was not imported; see `qumail-relay identity import`"
        return expired(certificate, self.signing_pair(parties.identity).certificate)

    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """SignedData inside an AuthEnvelopedData with one recipient; the payload must be consumable twice.

        Raises CannotSeal.
        """
        return SealedPayload(await off_loop(len(payload), self._seal, payload, parties))

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after tag and signature have been verified."""
        return await off_loop(len(enveloped.ciphertext), self._open, enveloped, opening)

    @abstractmethod
    def signing_pair(self, identity: Identity) -> SigningKeyPair | RSAKeyPair:
        """Our signing key and its certificate."""

    @abstractmethod
    def encryption_certificate(self, peer: PeerCertificates) -> x509.Certificate | None:
        """The peer's certificate to encrypt to, if any."""

    @abstractmethod
    def recipient(
        self, peer: str, certificate: x509.Certificate, content_key: bytes
    ) -> cms.KEMRecipient | cms.RSARecipient:
        """The content key encrypted to this certificate's key. Raises CannotSeal."""

    @abstractmethod
    def content_key(self, enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
        """The content key, decrypted by one of our keys, including older ones. Raises NotForUs or BadTag."""

    def _seal(self, payload: Octets | Pieces, parties: Parties) -> Pieces:
        peer = parties.certificates
        certificate = self.encryption_certificate(peer) if peer is not None else None
        if parties.identity is None or peer is None or certificate is None:
            raise CannotSeal(f"level {self.name} without certificates")
        key = os.urandom(KEY_OCTETS)
        recipient = self.recipient(peer.name, certificate, key)
        pair = self.signing_pair(parties.identity)
        return encrypt(mime.wrap_signed(sign(payload, pair.private_key, pair.certificate)), key, recipient)

    def _open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        inner = mime.unwrap(decrypt(enveloped, self.content_key(enveloped, opening.identity)))
        if inner.kind != "signed":
            raise BadStructure("the content is not signed")
        return Unsealed(*verify(inner.content, self.signature, opening))


def sign(
    payload: Octets | Pieces, key: CompositeSigningPrivateKey | RSAPrivateKey, certificate: x509.Certificate
) -> Pieces:
    """SignedData around `payload`, with the signer's certificate, as DER."""
    scheme = SignatureScheme.RSA_PSS if isinstance(key, RSAPrivateKey) else SignatureScheme.ML_DSA_87_P384
    hasher = hashlib.new(_DIGESTS[scheme])
    for piece in part_of(payload):
        hasher.update(piece)
    digest = hasher.digest()
    attributes = cms.attributes_to_sign(scheme, digest, datetime.now(UTC))
    signature = (
        key.sign(attributes, _pss(), hashes.SHA256()) if isinstance(key, RSAPrivateKey) else key.sign(attributes)
    )
    der = certificate.public_bytes(serialization.Encoding.DER)
    signed = cms.Signed(b"", scheme, certificate_id(certificate), attributes, digest, signature, der)
    return cms.signed_pieces(signed, payload)


def verify(der: bytes, expected: SignatureScheme, opening: Opening) -> tuple[bytes, PeerCertificates]:
    """The payload inside SignedData, and the peer that signed it with the expected scheme.

    Only pinned certificates are used, not the one inside the message. Of several peers that claim the signer's
    identifier it is the one whose key verifies. Raises BadStructure, BadSignature, UnknownSigner or
    CertificateExpired.
    """
    signed = cms.decode_signed(der)
    if signed.scheme is not expected:
        raise BadSignature(f"signed with {signed.scheme.value}, {expected.value} is expected")
    candidates = [
        (peer, certificate) for peer in opening.signers(signed.signer) for certificate in _named(peer, signed)
    ]
    if not candidates:
        raise UnknownSigner(f"the signer is no peer whose certificate for {expected.value} was imported")
    peers = ", ".join(peer.name for peer, _ in candidates)
    if not hmac.compare_digest(hashlib.new(_DIGESTS[expected], signed.content).digest(), signed.digest):
        raise BadSignature(f"the signature of peer {peers} is over another content")
    for peer, certificate in candidates:
        if _verifies(certificate, signed):
            if cause := expired(certificate):
                raise CertificateExpired(f"peer {peer.name!r}: {cause}")
            return signed.content, peer
    raise BadSignature(f"the signature is not that of peer {peers}")


def signs_under(peer: PeerCertificates, identifier: cms.CertificateID) -> bool:
    """Whether this names one of the peer's signing certificates."""
    return any(each is not None and names(identifier, each) for each in (peer.signing, peer.rsa_signing))


def certificate_id(certificate: x509.Certificate) -> cms.CertificateID:
    """The ID of this certificate in messages: its SubjectKeyIdentifier."""
    return cms.CertificateID(ski=subject_key_identifier(certificate))


def expired(*certificates: x509.Certificate) -> str:
    """The first of these certificates that is not valid now, and the remedy, or ""."""
    now = datetime.now(UTC)
    for certificate in certificates:
        if not valid_now(certificate, now):
            until = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
            subject = certificate.subject.rfc4514_string()
            return f"certificate {subject} is valid from {until} only; renew it, and import the peer's new document"
    return ""


def names(identifier: cms.CertificateID, certificate: x509.Certificate) -> bool:
    """Whether a message's identifier is this certificate, by key identifier or by issuer and serial number."""
    if identifier.ski:
        return identifier.ski == subject_key_identifier(certificate)
    return (identifier.issuer, identifier.serial) == (certificate.issuer.public_bytes(), certificate.serial_number)


def _named(peer: PeerCertificates, signed: cms.Signed) -> list[x509.Certificate]:
    """The peer's certificate for the signature scheme, if the message names it."""
    certificate = peer.signing if signed.scheme is SignatureScheme.ML_DSA_87_P384 else peer.rsa_signing
    return [certificate] if certificate is not None and names(signed.signer, certificate) else []


def _verifies(certificate: x509.Certificate, signed: cms.Signed) -> bool:
    """Whether the signature is by the certificate's key, which must match the scheme."""
    try:
        match key_of(certificate):
            case CompositeSigningPublicKey() as key if signed.scheme is SignatureScheme.ML_DSA_87_P384:
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
