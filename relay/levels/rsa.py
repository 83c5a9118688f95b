"""Level rsa: signed with RSASSA-PSS, then AES-256-GCM under a content key encrypted to the peer's RSA-4096 key.
Standard: RFC 8017 (RSAES-OAEP, RSASSA-PSS), RFC 4055 and RFC 4056 (their use in CMS), RFC 5083.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from relay import cms, mime
from relay.aio import off_loop
from relay.cms import SignatureScheme
from relay.errors import BadStructure, BadTag, CannotSeal, NotForUs
from relay.keys import KeyReference
from relay.levels import FreshKeys, Opening, Parties, Sealed, Unsealed
from relay.levels.content import decrypt, encrypt
from relay.levels.signatures import MIN_RSA_BITS, certificate_id, expired, names, sign, verify

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates


class RSA:
    """RSA-4096 with AES-256-GCM (level 4)."""

    name = "rsa"
    quantum = False

    def obstacle(self, parties: Parties) -> str:
        """Our own identity and the peer's certificates are needed, and none of them may have expired."""
        if parties.identity is None:
            return "this site has no certificates; make them with `qumail-relay identity new`"
        if parties.certificates is None or parties.certificates.rsa_encryption is None:
            return "the peer's RSA certificate was not imported; see `qumail-relay identity import`"
        ours = parties.identity.rsa_signing.certificate
        return expired(parties.certificates.rsa_encryption, ours)

    async def seal(self, payload: bytes, parties: Parties, keys: FreshKeys) -> Sealed:
        """SignedData inside an AuthEnvelopedData with one KeyTransRecipientInfo. Raises CannotSeal."""
        return Sealed(await off_loop(len(payload), _seal, payload, parties.identity, parties.certificates))

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        """Whether everybody who can open it does so with an RSA key."""
        return all(isinstance(recipient, cms.RSARecipient) for recipient in enveloped.recipients)

    def references(self, enveloped: cms.AuthEnveloped) -> tuple[KeyReference, ...]:
        """No quantum keys."""
        return ()

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after tag and signature have been verified."""
        return await off_loop(len(enveloped.ciphertext), _open, enveloped, opening)


def _seal(payload: bytes, identity: Identity | None, peer: PeerCertificates | None) -> bytes:
    if identity is None or peer is None or peer.rsa_encryption is None:
        raise CannotSeal("level rsa without certificates")
    public_key = peer.rsa_encryption.public_key()
    if not isinstance(public_key, RSAPublicKey) or public_key.key_size < MIN_RSA_BITS:
        raise CannotSeal(f"the RSA certificate of peer {peer.name!r} has less than {MIN_RSA_BITS} bits")
    pair = identity.rsa_signing
    content = encrypt(mime.wrap_signed(sign(payload, pair.private_key, pair.certificate)))
    encrypted_key = public_key.encrypt(content.key, _oaep())
    return content.enveloped(cms.RSARecipient(certificate_id(peer.rsa_encryption), encrypted_key))


def _open(enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
    inner = mime.unwrap(decrypt(enveloped, _content_key(enveloped, opening.identity)))
    if inner.kind != "signed":
        raise BadStructure("the content is not signed")
    payload, peer = verify(inner.content, SignatureScheme.RSA_PSS, opening)
    return Unsealed(payload, peer)


def _content_key(enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
    pairs = [] if identity is None else [identity.rsa_encryption, *identity.older_rsa_encryption]
    for recipient in enveloped.recipients:
        for pair in pairs:
            if isinstance(recipient, cms.RSARecipient) and names(recipient.certificate, pair.certificate):
                try:
                    return pair.private_key.decrypt(recipient.encrypted_cek, _oaep())
                except ValueError as error:
                    raise BadTag("our RSA key does not open this message: it was changed on the way") from error
    raise NotForUs("encrypted to an RSA key that is not ours")


def _oaep() -> padding.OAEP:
    return padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
