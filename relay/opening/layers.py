"""Opens a sealed message layer by layer: which keys it names, whether they are for us, then the tag and the signature.
Standard: relay/FORMAT.md, the receiver's order; nothing of a layer is used before the layer is verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from relay import cms, mime
from relay.cms import KeyUse
from relay.config import Config
from relay.errors import BadStructure, CannotOpen, KeyNotFound, KeyUsed, NotAccepted, UnknownPeer
from relay.keys import Key, KeyReference
from relay.keys.contract import by_origin
from relay.keys.keyring import KeyRing
from relay.levels import Level, Opening, Unsealed
from relay.levels.content import off_loop
from relay.levels.signatures import names, signs_under
from relay.mail import domain_of
from relay.store import Bound

if TYPE_CHECKING:
    from relay.keys.identity import Identity, PeerCertificates

log = structlog.get_logger(__name__)

MAX_LAYERS = 2 + len(cms.FURTHER_KEMS)
ASKED_FIRST = 128
"""So many keys are asked for at first: anybody can send a mail that names thousands which do not exist."""
_AROUND = frozenset({"aes", *cms.FURTHER_KEMS})
"""The levels that may go around another one."""


@dataclass(slots=True)
class Found:
    """What was found on the way inwards; `fingerprint` is that of the outermost layer."""

    protection: list[str] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    keys: list[KeyReference] = field(default_factory=list)
    bound: list[Bound] = field(default_factory=list)
    fingerprint: bytes = b""

    @property
    def names(self) -> str:
        """The layers from the inside out, as `pqc+aes`."""
        return "+".join(self.protection)


@contextmanager
def silent() -> Iterator[None]:
    """Failures in here are answered alike: else answers would tell who is named, or what is right about a forgery."""
    try:
        yield
    except CannotOpen as error:
        error.silent = True
        raise


@dataclass(frozen=True, slots=True)
class Layers:
    """What opens layers; `certificates` are the peers' by peer name."""

    config: Config
    levels: Mapping[str, Level]
    keys: KeyRing
    identity: Identity | None = None
    certificates: Mapping[str, PeerCertificates] = field(default_factory=dict)

    async def recognise(self, message: bytes, sender: str) -> cms.AuthEnveloped | None:
        """The outermost layer of a message that is sealed for us, None for ordinary mail and what others have sealed.

        `sender`, that of the SMTP envelope, only tells whether a message that we cannot read was meant for us. Raises
        BadStructure where it was.
        """
        if not await off_loop(len(message), mime.is_sealed, message):
            return None
        try:
            enveloped = await off_loop(len(message), _enveloped, message)
            return enveloped if self._for_us(enveloped) else None
        except BadStructure:
            if self.config.peer_by_domain(domain_of(sender)) is not None:
                raise
            return None

    async def open(self, found: Found, enveloped: cms.AuthEnveloped, size: int, *, patient: bool) -> mime.Entity:
        """The payload of the innermost layer; `size` is that of the message in octets.

        Raises CannotOpen, KeyUnavailable or StoreUnavailable; what was found until then stands in `found`.
        """
        level = self._level(enveloped)
        references = await off_loop(size, self._references, level, enveloped)
        found.fingerprint = fingerprint = await off_loop(size, enveloped.fingerprint)
        with silent():
            while True:
                found.protection.insert(0, level.name)
                use = self._use(level, fingerprint, references) if references else None
                unsealed = await self._unsealed(found, level, enveloped, references, use, patient=patient)
                entity = await off_loop(size, mime.unwrap, unsealed.payload)
                if entity.kind == "message" and level.name not in cms.FURTHER_KEMS:
                    _check_innermost(level, found)
                    return entity
                if entity.kind != "enveloped" or level.name not in _AROUND or len(found.protection) == MAX_LAYERS:
                    raise BadStructure(f"{entity.kind} data inside a layer of {level.name}")
                enveloped = await off_loop(len(entity.content), cms.decode_enveloped, entity.content)
                outer, level = level, self._level(enveloped)
                _check_order(outer, level, found.protection)
                references = await off_loop(size, self._references, level, enveloped)
                fingerprint = await off_loop(size, enveloped.fingerprint)

    def _level(self, enveloped: cms.AuthEnveloped) -> Level:
        for level in self.levels.values():
            if level.recognises(enveloped):
                return level
        raise BadStructure("no level seals for this mixture of recipients")

    def _for_us(self, enveloped: cms.AuthEnveloped) -> bool:
        """Whether a message is between a peer and us, rather than one that people sealed for each other."""
        level = self._level(enveloped)
        if not level.quantum:
            return self.identity is not None and any(
                _is_for(self.identity, recipient)
                for recipient in enveloped.recipients
                if isinstance(recipient, cms.KEMRecipient | cms.RSARecipient)
            )
        return bool(level.references(enveloped))

    def _references(self, level: Level, enveloped: cms.AuthEnveloped) -> list[KeyReference]:
        """The keys that a layer names, all of them ours to ask for. No key is fetched before: whoever may name any
        makes the KMEs work, and burns keys of others."""
        references = list(level.references(enveloped))
        for reference in references:
            self._check(level, reference)
        return references

    def _check(self, level: Level, reference: KeyReference) -> None:
        """The one place that tells whether a key is of a peer, for us, of a group that both share, for this level."""
        known = self.config.peer_by_sae(reference.master_sae or "")
        if known is None:
            raise UnknownPeer(
                f"key {reference.key_ID}: sealed by SAE {reference.master_sae!r}, which is no peer of ours"
            )
        name, peer = known
        if reference.slave_sae != self.config.site.sae_id:
            raise UnknownPeer(f"key {reference.key_ID}: sealed for SAE {reference.slave_sae!r}, which we are not")
        if reference.kme_group not in peer.kme_groups:
            raise UnknownPeer(f"key {reference.key_ID}: KME group {reference.kme_group!r} is not shared with {name!r}")
        if not self.config.serves(reference.kme_group, level.name):
            raise NotAccepted(f"keys of KME group {reference.kme_group!r} are not for level {level.name} (`use`)")
        if level.name == "otp" and "otp" not in peer.accept:
            raise NotAccepted(f"sealed at level otp, which peer {name!r} may not use (`accept`)")

    def _use(self, level: Level, fingerprint: bytes, references: list[KeyReference]) -> KeyUse:
        """What these keys are to open; a key of a pad never opens two messages, whatever is set."""
        peer = self.config.peer_by_sae(references[0].master_sae or "")
        most = peer[1].key_max_messages if peer is not None and level.name == "aes" else 1
        return KeyUse(level.name, fingerprint, most)

    async def _unsealed(
        self,
        found: Found,
        level: Level,
        enveloped: cms.AuthEnveloped,
        references: list[KeyReference],
        use: KeyUse | None,
        *,
        patient: bool,
    ) -> Unsealed:
        """One layer, opened and verified; what its tag has shown is noted even where something else is wrong."""
        keys = await self._keys(references, use, patient=patient)
        verified: list[bool] = []
        opening = Opening(keys, self.identity, self._signers, verified=lambda: verified.append(True))
        try:
            unsealed = await level.open(enveloped, opening)
        finally:
            if verified and use is not None:
                found.keys += references
                found.bound += [
                    Bound(group, master, tuple(each.key_ID for each in some), use)
                    for (group, master), some in by_origin(references).items()
                ]
        found.peers |= self._peers(references, unsealed)
        return unsealed

    async def _keys(self, references: list[KeyReference], use: KeyUse | None, *, patient: bool) -> dict[str, Key]:
        """The keys at hand, else from the KME; what came from there is stored before it is used.

        Only a pad has so many, and needs all of them: where one of the first is missing nobody is asked for the rest.
        """
        if not references:
            return {}
        first, rest = references[:ASKED_FIRST], references[ASKED_FIRST:]
        try:
            found = await self.keys.fetch(first, use=use, patient=patient)
            if rest and len(found) == len(first):
                found |= await self.keys.fetch(rest, use=use, patient=patient)
        except KeyUsed as error:
            log.error("key_used_before", peer_sae=references[0].master_sae, cause=str(error))
            raise
        keys = {reference.key_ID: key for reference, key in found.items()}
        if not keys:
            named = ", ".join(reference.key_ID for reference in references[:3])
            raise KeyNotFound(f"no KME knows key {named}: not synchronised yet, expired, or never issued")
        return keys

    def _signers(self, identifier: cms.CertificateID) -> list[PeerCertificates]:
        """The peers one of whose signing certificates this is."""
        return [peer for peer in self.certificates.values() if signs_under(peer, identifier)]

    def _peers(self, references: Iterable[KeyReference], unsealed: Unsealed) -> set[str]:
        """The peers whom the keys and the signature of a layer prove."""
        by_key = {self.config.peer_by_sae(sae) for sae in {reference.master_sae or "" for reference in references}}
        peers = {found[0] for found in by_key if found is not None}
        return peers | ({unsealed.signed_by.name} if unsealed.signed_by else set())


def _enveloped(message: bytes) -> cms.AuthEnveloped:
    return cms.decode_enveloped(mime.sealed_content(message))


def _check_innermost(level: Level, found: Found) -> None:
    """Quantum enhancement goes around what is signed."""
    if level.quantum and len(found.protection) > 1:
        raise BadStructure(f"{found.names}: level aes goes around pqc and rsa only")


def _check_order(outer: Level, inner: Level, protection: list[str]) -> None:
    """A further KEM goes around level pqc or another further KEM, each once: none of them says who sealed."""
    if outer.name not in cms.FURTHER_KEMS:
        return
    if inner.name != "pqc" and (inner.name not in cms.FURTHER_KEMS or inner.name in protection):
        raise BadStructure(f"{inner.name} inside a layer of {outer.name}")


def _is_for(identity: Identity, recipient: cms.KEMRecipient | cms.RSARecipient) -> bool:
    if isinstance(recipient, cms.KEMRecipient) and recipient.kem in cms.FURTHER_KEMS:
        return identity.further_kem(recipient.kem, recipient.certificate.ski) is not None
    pairs = (identity.kem, identity.rsa_encryption, *identity.older)
    return any(names(recipient.certificate, pair.certificate) for pair in pairs)
