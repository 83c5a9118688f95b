"""Level rsa: signed with RSASSA-PSS, then AES-256-GCM under a content key encrypted to the peer's RSA-4096 key.
Standard: RFC 8017 (RSAES-OAEP, RSASSA-PSS), RFC 4055 and RFC 4056 (their use in CMS), RFC 5083.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from relay import levels
from relay.config import Config
from relay.errors import BadTag, CannotSeal, NotForUs
from relay.formats import cms
from relay.formats.cms import SignatureScheme
from relay.identity.certificates import MIN_RSA_BITS
from relay.schemes.signatures import SignedScheme, certificate_id, names

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates, RSAKeyPair


class RSA(SignedScheme, level=levels.RSA):
    """RSA-4096 with AES-256-GCM."""

    signature = SignatureScheme.RSA_PSS
    key_kind = "RSA"

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return all(isinstance(recipient, cms.RSARecipient) for recipient in enveloped.recipients)

    def signing_pair(self, identity: Identity) -> RSAKeyPair:
        return identity.rsa_signing

    def encryption_certificate(self, peer: PeerCertificates) -> x509.Certificate | None:
        return peer.rsa_encryption

    def recipient(self, peer: str, certificate: x509.Certificate, content_key: bytes) -> cms.RSARecipient:
        public_key = certificate.public_key()
        if not isinstance(public_key, RSAPublicKey) or public_key.key_size < MIN_RSA_BITS:
            raise CannotSeal(f"the RSA certificate of peer {peer!r} has less than {MIN_RSA_BITS} bits")
        return cms.RSARecipient(certificate_id(certificate), public_key.encrypt(content_key, oaep()))

    def content_key(self, enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
        pairs = [] if identity is None else [identity.rsa_encryption, *identity.older_rsa_encryption]
        for recipient in enveloped.recipients:
            for pair in pairs:
                if isinstance(recipient, cms.RSARecipient) and names(recipient.certificate, pair.certificate):
                    try:
                        return pair.private_key.decrypt(recipient.encrypted_cek, oaep())
                    except ValueError as error:
                        raise BadTag("our RSA key does not open this message: it was changed on the way") from error
        raise NotForUs("encrypted to an RSA key that is not ours")


def scheme(_: Config | None = None) -> RSA:
    """The scheme for all_schemes."""
    return RSA()


def oaep() -> padding.OAEP:
    """RSAES-OAEP with SHA-256 and MGF1 with SHA-256."""
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
