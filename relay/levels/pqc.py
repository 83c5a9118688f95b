"""Level pqc: signed with ML-DSA-87, then encrypted to the peer's ML-KEM-1024 key.
Standard: RFC 9882 (ML-DSA in CMS), RFC 9629 and RFC 9936 (ML-KEM in CMS), RFC 5869 (HKDF), RFC 5083.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM1024PublicKey

from relay import cms, mime
from relay.aio import off_loop
from relay.cms import SignatureScheme
from relay.errors import BadStructure, CannotSeal, NotForUs
from relay.keys import KeyReference
from relay.levels import FreshKeys, Opening, Parties, Sealed, Unsealed
from relay.levels.content import decrypt, encrypt, kem_key, unwrap, wrap
from relay.levels.signatures import certificate_id, expired, names, sign, verify

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates


class PQC:
    """ML-KEM-1024 and ML-DSA-87 (level 3)."""

    name = "pqc"
    quantum = False

    def obstacle(self, parties: Parties) -> str:
        """Our own identity and the peer's certificates are needed, and none of them may have expired."""
        if parties.identity is None:
            return "this site has no certificates; make them with `qumail-relay identity new`"
        if parties.certificates is None or parties.certificates.kem is None:
            return "the peer's ML-KEM certificate was not imported; see `qumail-relay identity import`"
        ours = parties.identity.signing.certificate
        return expired(parties.certificates.kem, ours)

    async def seal(self, payload: bytes, parties: Parties, keys: FreshKeys) -> Sealed:
        """SignedData inside an AuthEnvelopedData with one KEMRecipientInfo. Raises CannotSeal."""
        return Sealed(await off_loop(len(payload), _seal, payload, parties.identity, parties.certificates))

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        """Whether everybody who can open it does so with an ML-KEM key."""
        return all(
            isinstance(recipient, cms.KEMRecipient) and recipient.kem == cms.ML_KEM_1024
            for recipient in enveloped.recipients
        )

    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        """No quantum keys."""
        return ()

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after tag and signature have been verified."""
        return await off_loop(len(enveloped.ciphertext), _open, enveloped, opening)


def _seal(payload: bytes, identity: Identity | None, peer: PeerCertificates | None) -> bytes:
    if identity is None or peer is None or peer.kem is None:
        raise CannotSeal("level pqc without certificates")
    public_key = peer.kem.public_key()
    if not isinstance(public_key, MLKEM1024PublicKey):
        raise CannotSeal(f"the KEM certificate of peer {peer.name!r} is not ML-KEM-1024")
    pair = identity.signing
    content = encrypt(mime.wrap_signed(sign(payload, pair.private_key, pair.certificate)))
    shared_secret, kem_ciphertext = public_key.encapsulate()
    wrapped = wrap(kem_key(shared_secret), content.key)
    return content.enveloped(cms.KEMRecipient(certificate_id(peer.kem), kem_ciphertext, wrapped))


def _open(enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
    inner = mime.unwrap(decrypt(enveloped, _content_key(enveloped, opening.identity)))
    if inner.kind != "signed":
        raise BadStructure("the content is not signed")
    payload, peer = verify(inner.content, SignatureScheme.ML_DSA_87, opening)
    return Unsealed(payload, peer)


def _content_key(enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
    pairs = [] if identity is None else [identity.kem, *identity.older_kem]
    for recipient in enveloped.recipients:
        for pair in pairs:
            if isinstance(recipient, cms.KEMRecipient) and names(recipient.certificate, pair.certificate):
                shared_secret = pair.private_key.decapsulate(recipient.kem_ciphertext)
                return unwrap(kem_key(shared_secret), recipient.wrapped_cek, "our ML-KEM key")
    raise NotForUs("encrypted to an ML-KEM key that is not ours")
