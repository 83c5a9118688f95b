"""Level pqc: signed with ML-DSA-87, then encrypted to the peer's ML-KEM-1024 key.
Standard: RFC 9882 (ML-DSA in CMS), RFC 9629 and RFC 9936 (ML-KEM in CMS), RFC 5869 (HKDF), RFC 5083.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PublicKey
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from relay import levels
from relay.config import Config
from relay.errors import CannotSeal, NotForUs
from relay.formats import cms
from relay.formats.cms import SignatureScheme
from relay.schemes.content_key import kem_key, unwrap
from relay.schemes.signatures import SignedScheme, certificate_id, names

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates, SigningKeyPair


class PQC(SignedScheme, level=levels.PQC):
    """ML-KEM-1024 and ML-DSA-87."""

    signature = SignatureScheme.ML_DSA_87
    key_kind = "ML-KEM"

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return all(
            isinstance(recipient, cms.KEMRecipient) and recipient.kem == cms.ML_KEM_1024
            for recipient in enveloped.recipients
        )

    def signing_pair(self, identity: Identity) -> SigningKeyPair:
        return identity.signing

    def encryption_certificate(self, peer: PeerCertificates) -> x509.Certificate | None:
        return peer.kem

    def recipient(self, peer: str, certificate: x509.Certificate, content_key: bytes) -> cms.KEMRecipient:
        public_key = certificate.public_key()
        if not isinstance(public_key, MLKEM1024PublicKey):
            raise CannotSeal(f"the KEM certificate of peer {peer!r} is not ML-KEM-1024")
        shared_secret, ciphertext = public_key.encapsulate()
        return cms.KEMRecipient(
            certificate_id(certificate), ciphertext, aes_key_wrap(kem_key(shared_secret), content_key)
        )

    def content_key(self, enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
        pairs = [] if identity is None else [identity.kem, *identity.older_kem]
        for recipient in enveloped.recipients:
            for pair in pairs:
                if isinstance(recipient, cms.KEMRecipient) and names(recipient.certificate, pair.certificate):
                    shared_secret = pair.private_key.decapsulate(recipient.kem_ciphertext)
                    return unwrap(kem_key(shared_secret), recipient.wrapped_cek, "our ML-KEM key")
        raise NotForUs("encrypted to an ML-KEM key that is not ours")


def scheme(_: Config | None = None) -> PQC:
    """The scheme for all_schemes."""
    return PQC()
