"""Opens a sealed message layer by layer: which keys it names, whether they are for us, then the tag and the signature.
Standard: relay/FORMAT.md, the receiver's order; nothing of a layer is used before the layer is verified.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import structlog

from relay import cms, mime
from relay.aio import off_loop
from relay.cms import KeyUse
from relay.config import Config
from relay.errors import BadStructure, CannotOpen, KeyNotFound, KeyUsed, NotAccepted, UnknownPeer
from relay.keys import Key, KeyReference
from relay.keys.ring import KeyRing
from relay.keys.types import by_origin
from relay.levels import Level, Opening, Unsealed
from relay.levels.signatures import names, signs_under
from relay.mail import domain_of
from relay.store import Bound

if TYPE_CHECKING:
    from relay.identity import Identity, PeerCertificates

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


class Layer(NamedTuple):
    """One layer that is still sealed, and the keys that it names."""

    level: Level
    enveloped: cms.AuthEnveloped
    references: tuple[KeyReference, ...]


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

    async def recognise(self, message: bytes, sender: str) -> Layer | None:
        """The outermost layer of a message that is sealed for us, None for ordinary mail and what others have sealed.

        `sender`, that of the SMTP envelope, only tells whether a message that we cannot read was meant for us. Raises
        BadStructure where it was, UnknownPeer and NotAccepted.
        """
        if not await off_loop(len(message), mime.is_sealed, message):
            return None
        try:
            return await off_loop(len(message), self._outermost, message)
        except BadStructure:
            if self.config.peer_by_domain(domain_of(sender)) is not None:
                raise
            return None

    async def open(self, found: Found, layer: Layer, size: int, *, patient: bool) -> mime.Entity:
        """The payload of the innermost layer; `size` is that of the message in octets.

        Raises CannotOpen, KeyUnavailable or StoreUnavailable; what was found until then stands in `found`.
        """
        with silent():
            while True:
                level = layer.level
                found.protection.insert(0, level.name)
                payload = await self._unsealed(found, layer, patient=patient)
                entity = await off_loop(size, mime.unwrap, payload)
                if entity.kind == "message" and level.name not in cms.FURTHER_KEMS:
                    _check_innermost(level, found)
                    return entity
                if entity.kind != "enveloped" or level.name not in _AROUND or len(found.protection) == MAX_LAYERS:
                    raise BadStructure(f"{entity.kind} data inside a layer of {level.name}")
                layer = await off_loop(size, self._layer, entity.content)
                _check_order(level, layer.level, found.protection)
                await off_loop(size, self._check, layer)

    def _outermost(self, message: bytes) -> Layer | None:
        layer = self._layer(mime.sealed_content(message))
        if not self._is_for_us(layer):
            return None
        self._check(layer)
        return layer

    def _layer(self, der: bytes) -> Layer:
        enveloped = cms.decode_enveloped(der)
        for level in self.levels.values():
            if level.recognises(enveloped):
                return Layer(level, enveloped, level.references(enveloped))
        raise BadStructure("no level seals for this mixture of recipients")

    def _is_for_us(self, layer: Layer) -> bool:
        """Whether a message is between a peer and us, rather than one that people sealed for each other."""
        if layer.level.quantum:
            return bool(layer.references)
        return self.identity is not None and any(
            _is_for(self.identity, recipient)
            for recipient in layer.enveloped.recipients
            if isinstance(recipient, cms.KEMRecipient | cms.RSARecipient)
        )

    def _check(self, layer: Layer) -> None:
        """The one place that tells whether keys are of a peer, for us, of a group that both share, for this level.

        No key is asked for before: whoever could name any would make KMEs work, and burn keys of others.
        """
        level = layer.level.name
        for each in layer.references:
            known = self.config.peer_by_sae(each.master_sae or "")
            if known is None:
                raise UnknownPeer(f"key {each.key_ID}: sealed by SAE {each.master_sae!r}, which is no peer of ours")
            name, peer = known
            if each.slave_sae != self.config.site.sae_id:
                raise UnknownPeer(f"key {each.key_ID}: sealed for SAE {each.slave_sae!r}, which we are not")
            if each.kme_group not in peer.kme_groups:
                raise UnknownPeer(f"key {each.key_ID}: KME group {each.kme_group!r} is not shared with {name!r}")
            if not self.config.serves(each.kme_group, level):
                raise NotAccepted(f"keys of KME group {each.kme_group!r} are not for level {level} (`use`)")
            if level == "otp" and "otp" not in peer.accept:
                raise NotAccepted(f"sealed at level otp, which peer {name!r} may not use (`accept`)")

    async def _unsealed(self, found: Found, layer: Layer, *, patient: bool) -> bytes:
        """The payload of one layer, verified; what its tag has shown is noted even where something else is wrong."""
        fingerprint = await off_loop(len(layer.enveloped.ciphertext), layer.enveloped.fingerprint)
        found.fingerprint = found.fingerprint or fingerprint
        use = self._use(layer, fingerprint)
        keys = await self._keys(layer.references, use, patient=patient)
        verified: list[bool] = []
        opening = Opening(keys, self.identity, self._signers, verified=lambda: verified.append(True))
        try:
            unsealed = await layer.level.open(layer.enveloped, opening)
        finally:
            if verified:
                found.keys += layer.references
                found.bound += [
                    Bound(group, master, tuple(each.key_ID for each in some), use)
                    for (group, master), some in by_origin(layer.references).items()
                ]
        found.peers |= self._peers(layer.references, unsealed)
        return unsealed.payload

    def _use(self, layer: Layer, fingerprint: bytes) -> KeyUse:
        """What the keys of a layer are to open; a key of a pad never opens two messages, whatever is set."""
        known = self.config.peer_by_sae(layer.references[0].master_sae or "") if layer.references else None
        most = known[1].key_max_messages if known is not None and layer.level.name == "aes" else 1
        return KeyUse(layer.level.name, fingerprint, most)

    async def _keys(self, references: Sequence[KeyReference], use: KeyUse, *, patient: bool) -> dict[str, Key]:
        """The keys at hand, else from the KME.

        What came from there is stored before it is used: a KME gives a key once, and a relay that is killed while it
        opens the mail, or cannot hand it on, needs the key again. Only a pad has so many, and needs all of them: where
        one of the first is missing nobody is asked for the rest.
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
