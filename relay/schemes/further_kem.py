"""A further enveloping layer around level pqc, to the peer's key of a KEM of another mathematical family.
Standard: RFC 9629 (KEMs in CMS), mechanisms of relay/formats/cms/recipients.py; otherwise as level pqc; RFC 5083.

It does not authenticate the sender: the signature inside does. So it may only wrap pqc.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from relay.errors import KEMUnavailable, NotForUs
from relay.files.commands import command
from relay.formats import cms
from relay.formats.pieces import Octets, Pieces
from relay.identity import liboqs
from relay.identity.further import key_identifier
from relay.schemes import FreshKeys, Opening, Parties, Scheme, SealedPayload, Unsealed
from relay.schemes.content_key import KEY_OCTETS, decrypt, encrypt, kem_key, unwrap

if TYPE_CHECKING:
    from relay.identity import Identity


class FurtherKEM(Scheme):
    """The layer under the KEM `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.algorithms = f"{name}, HKDF-SHA256, AES-256 wrap, AES-256-GCM"

    def obstacle(self, parties: Parties) -> str:
        """Why not: liboqs, or the peer's public key, is missing."""
        if cause := liboqs.unavailable(self.name):
            return cause
        if parties.certificates is None or self.name not in parties.certificates.further_kems:
            make = command("qumail-relay", "identity", "new", "--kem", self.name)
            lacks = f"peer {parties.peer!r} has no key for {self.name}"
            return f"{lacks}: it makes one with `{make}`; then import its new document"
        return ""

    async def seal(self, payload: Octets | Pieces, parties: Parties, keys: FreshKeys) -> SealedPayload:
        """AuthEnvelopedData with one KEMRecipientInfo. Raises KEMUnavailable."""
        public_key = parties.certificates.further_kems.get(self.name) if parties.certificates is not None else None
        if public_key is None:
            raise KEMUnavailable(self.obstacle(parties))
        return SealedPayload(await asyncio.to_thread(self._seal, payload, public_key))

    def recognises(self, enveloped: cms.AuthEnveloped) -> bool:
        return all(
            isinstance(recipient, cms.KEMRecipient) and recipient.kem == self.name for recipient in enveloped.recipients
        )

    async def open(self, enveloped: cms.AuthEnveloped, opening: Opening) -> Unsealed:
        """The payload, released only after its tag has been verified. Raises KEMUnavailable."""
        return Unsealed(await asyncio.to_thread(self._open, enveloped, opening.identity))

    def _seal(self, payload: Octets | Pieces, public_key: bytes) -> Pieces:
        shared_secret, ciphertext = liboqs.encapsulate(self.name, public_key)
        key = os.urandom(KEY_OCTETS)
        certificate = cms.CertificateID(ski=key_identifier(public_key))
        wrapped = aes_key_wrap(kem_key(shared_secret), key)
        return encrypt(payload, key, cms.KEMRecipient(certificate, ciphertext, wrapped, self.name))

    def _open(self, enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
        return decrypt(enveloped, self._content_key(enveloped, identity))

    def _content_key(self, enveloped: cms.AuthEnveloped, identity: Identity | None) -> bytes:
        for recipient in enveloped.recipients:
            if identity is None or not isinstance(recipient, cms.KEMRecipient):
                continue
            if pair := identity.further_kem(self.name, recipient.certificate.ski):
                secret = liboqs.decapsulate(self.name, pair.private_key, recipient.kem_ciphertext)
                return unwrap(kem_key(secret), recipient.wrapped_cek, f"our key of {self.name}")
        raise NotForUs(f"encrypted to a key of {self.name} that is not ours")
