"""Level pqc: signed with ML-DSA-87 and ECDSA, then encrypted to the peer's key of ML-KEM-1024 and ECDH, always both.
Standard: draft-ietf-lamps-cms-composite-sigs-01, draft-ietf-lamps-cms-composite-kem-00 (RFC 9629), RFC 5869, RFC 5083.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from relay import levels
from relay.config import Config
from relay.errors import BadTag, CannotSeal, NotForUs
from relay.formats import cms
from relay.formats.cms import SignatureScheme
from relay.identity.composite import CompositeKEMPublicKey
from relay.identity.x509_keys import key_of
from relay.schemes.content_key import kem_key, unwrap
from relay.schemes.signatures import SignedScheme, certificate_id, names

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates, SigningKeyPair
    from relay.identity.pairs import KEMKeyPair


class PQC(SignedScheme, level=levels.PQC):
    """ML-KEM-1024 with ECDH P-384, and ML-DSA-87 with ECDSA P-384."""

    signature = SignatureScheme.ML_DSA_87_P384
    key_kind = "ML-KEM"

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return all(
            isinstance(recipient, cms.KEMRecipient) and recipient.kem == cms.ML_KEM_1024_P384
            for recipient in enveloped.recipients
        )

    def signing_pair(self, identity: Identity) -> SigningKeyPair:
        return identity.signing

    def encryption_certificate(self, peer: PeerCertificates) -> x509.Certificate | None:
        return peer.kem

    def recipient(self, peer: str, certificate: x509.Certificate, content_key: bytes) -> cms.KEMRecipient:
        public_key = key_of(certificate)
        if not isinstance(public_key, CompositeKEMPublicKey):
            raise CannotSeal(f"the KEM certificate of peer {peer!r} is not one of ML-KEM-1024 with P-384")
        shared_secret, ciphertext = public_key.encapsulate()
        return cms.KEMRecipient(
            certificate_id(certificate), ciphertext, aes_key_wrap(kem_key(shared_secret), content_key)
        )

    def content_key(self, enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
        pairs = [] if identity is None else [identity.kem, *identity.older_kem]
        for recipient in enveloped.recipients:
            for pair in pairs:
                if isinstance(recipient, cms.KEMRecipient) and names(recipient.certificate, pair.certificate):
                    return _unwrapped(pair, recipient)
        raise NotForUs("encrypted to an ML-KEM key that is not ours")


def _unwrapped(pair: KEMKeyPair, recipient: cms.KEMRecipient) -> bytes:
    """The content key. A ciphertext that has no point of the curve fails as one for another key does: BadTag."""
    try:
        shared_secret = pair.private_key.decapsulate(recipient.kem_ciphertext)
    except ValueError as error:
        raise BadTag(
            "our ML-KEM key does not open this message: the ciphertext of ECDH is no point of P-384"
        ) from error
    return unwrap(kem_key(shared_secret), recipient.wrapped_cek, "our ML-KEM key")


def scheme(_: Config | None = None) -> PQC:
    """The scheme for all_schemes."""
    return PQC()
